package sample

import (
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"io"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func write(t *testing.T, seed uint64, people int) ([]byte, Made) {
	t.Helper()
	var b bytes.Buffer
	m, err := Write(&b, seed, people)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), m
}

func TestTheSameSeedMakesTheSameBytes(t *testing.T) {
	t.Parallel()
	a, _ := write(t, 1, 500)
	b, _ := write(t, 1, 500)
	c, _ := write(t, 2, 500)
	if !bytes.Equal(a, b) {
		t.Error("two samples of one seed differ")
	}
	if bytes.Equal(a, c) {
		t.Error("two seeds make one sample")
	}
	// Frozen: whoever changes the sample changes this on purpose.
	sum := sha256.Sum256(a)
	if got, want := hex.EncodeToString(sum[:8]), "b2545eed251dbeed"; got != want {
		t.Errorf("sample of seed 1 hashes to %s, want %s", got, want)
	}
}

func TestEverySpecialCaseIsInTheSmallestSampleAndIsCounted(t *testing.T) {
	t.Parallel()
	for _, people := range []int{MinPeople, 100, 5000} {
		raw, m := write(t, 7, people)
		r := csv.NewReader(bytes.NewReader(raw))
		r.FieldsPerRecord = -1
		head, err := r.Read()
		if err != nil || strings.Join(head, ",")+"\n" != header {
			t.Fatalf("header %q, %v", head, err)
		}
		var got Made
		seen := map[string]bool{}
		for {
			row, err := r.Read()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got.Rows++
			if len(row) != len(head) || row[0] == "" || strings.HasPrefix(row[0], "p-") {
				got.Broken++
				continue
			}
			if seen[row[0]] {
				got.Doubled++
				continue
			}
			seen[row[0]] = true
			got.People++
			local, domain, _ := strings.Cut(row[2], "@")
			switch {
			case row[2] == "":
				got.NoAddress++
			case domain != "example.test":
				t.Errorf("address %q", row[2])
			case row[3] == "unsubscribed":
				got.Unsubscribed++
			case row[1] == "":
				got.Nameless++
			case strings.HasSuffix(local, "+550"):
				got.RefusedForGood++
			case strings.HasSuffix(local, "+451"):
				got.RefusedOnce++
			case strings.HasSuffix(local, "+hang"):
				got.Unanswered++
			}
			if row[1] != "" && !utf8.ValidString(row[1]) {
				t.Errorf("name %q", row[1])
			}
		}
		if got != m {
			t.Errorf("%d people: the file holds %+v, but said %+v", people, got, m)
		}
		for what, n := range map[string]int{"no address": m.NoAddress, "unsubscribed": m.Unsubscribed, "nameless": m.Nameless, "550": m.RefusedForGood,
			"451": m.RefusedOnce, "hang": m.Unanswered, "doubled": m.Doubled, "broken": m.Broken} {
			if n < 1 {
				t.Errorf("%d people: nobody with %s", people, what)
			}
		}
	}
}

func TestNamesAreInSeveralScripts(t *testing.T) {
	t.Parallel()
	raw, _ := write(t, 1, 1000)
	for script, table := range map[string]*unicode.RangeTable{"Han": unicode.Han, "Arabic": unicode.Arabic, "Cyrillic": unicode.Cyrillic,
		"Greek": unicode.Greek, "Devanagari": unicode.Devanagari, "Hangul": unicode.Hangul, "Hebrew": unicode.Hebrew, "Thai": unicode.Thai} {
		if bytes.IndexFunc(raw, func(r rune) bool { return unicode.Is(table, r) }) < 0 {
			t.Errorf("no name in %s", script)
		}
	}
}

func TestTooFewPeopleAreRefused(t *testing.T) {
	t.Parallel()
	if _, err := Write(io.Discard, 1, MinPeople-1); err == nil {
		t.Error("accepted")
	}
}
