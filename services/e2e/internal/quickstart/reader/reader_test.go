package reader

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hikyaku/hikyaku/services/internal/classify"
)

// letter is a mail as the renderer makes them, with the pixel and links under tracking.
func letter(tracking, id string) string {
	return strings.ReplaceAll(`From: Hikyaku <letters@example.test>
To: x@example.test
Subject: =?utf-8?q?=E4=BD=90=E8=97=A4_=E8=8A=B1=E5=AD=90?=, hello
Message-ID: <`+id+`@example.test>
List-Unsubscribe: <mailto:stop@example.test>, <`+tracking+`/u/`+id+`>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: base64

5L2Q6Jek6Iqx5a2Q
--b
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: quoted-printable

<p>=E4=BD=90</p><a class=3D"x" href=3D"https://elsewhere.test/c/1">no</a>
<a href=3D"`+tracking+`/c/`+id+`?a=3D1&amp;b=3D2">yes</a>
<img src=3D"https://elsewhere.test/o/1"><img width=3D"1" src=3D"`+tracking+`/o/`+id+`">
>From the hills=
, a line that goes on
--b--
`, "\n", "\r\n")
}

// deliver writes mails as the outbox does.
func deliver(t *testing.T, dir string, mails map[string]string) {
	t.Helper()
	mbox, err := os.OpenFile(filepath.Join(dir, "mail-0001.mbox"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer mbox.Close()
	index, err := os.OpenFile(filepath.Join(dir, "index.tsv"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	for to, text := range mails {
		fmt.Fprint(mbox, "From letters@example.test Sat Nov 21 00:00:00 2026\n")
		info, err := mbox.Stat()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(mbox, text, "\n")
		fmt.Fprintf(index, "2026-11-21T00:00:00Z\tletters@example.test\t%s\t<%s>\tmail-0001.mbox\t%d\t%d\n", to, to, info.Size(), len(text))
	}
}

func TestAMailIsDecodedAndItsLinksFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const tracking = "http://127.0.0.1:8080"
	deliver(t, dir, map[string]string{"a@example.test": letter(tracking, "m1")})
	all, err := Deliveries(dir, 0)
	if err != nil || len(all) != 1 || all[0].Recipient != "a@example.test" || all[0].MessageID != "<a@example.test>" {
		t.Fatalf("got %+v, %v", all, err)
	}
	m, err := Open(dir, all[0])
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "佐藤 花子, hello" || m.Text != "佐藤花子" || m.Unsubscribe != tracking+"/u/m1" {
		t.Errorf("got %+v", m)
	}
	if !strings.Contains(m.HTML, "<p>佐</p>") || !strings.Contains(m.HTML, "\nFrom the hills, a line") {
		t.Errorf("HTML is %q", m.HTML)
	}
	if got := m.Links(tracking); len(got) != 1 || got[0] != tracking+"/c/m1?a=1&b=2" {
		t.Errorf("links %q", got)
	}
	if got := m.Pixels(tracking); len(got) != 1 || got[0] != tracking+"/o/m1" {
		t.Errorf("pixels %q", got)
	}
}

func TestLinksAreFoundInPlainMail(t *testing.T) {
	t.Parallel()
	m, err := parse([]byte("Subject: x\r\n\r\nsee http://t.test/c/1 and http://elsewhere.test/c/2\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Links("http://t.test"); len(got) != 1 || got[0] != "http://t.test/c/1" {
		t.Errorf("links %q", got)
	}
	if m.Unsubscribe != "" {
		t.Errorf("unsubscribes at %q though none is offered", m.Unsubscribe)
	}
}

func TestOnlyWholeLinesAfterTheBeginningAreRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if all, err := Deliveries(dir, 0); err != nil || len(all) != 0 {
		t.Fatalf("an outbox that does not exist yet: %v, %v", all, err)
	}
	deliver(t, dir, map[string]string{"before@example.test": "x"})
	from, err := IndexSize(dir)
	if err != nil || from == 0 {
		t.Fatal(from, err)
	}
	deliver(t, dir, map[string]string{"after@example.test": "x"})
	f, err := os.OpenFile(filepath.Join(dir, "index.tsv"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprint(f, "2026-11-21T00:00:00Z\tletters@exa")
	all, err := Deliveries(dir, from)
	if err != nil || len(all) != 1 || all[0].Recipient != "after@example.test" {
		t.Errorf("got %+v, %v", all, err)
	}
}

// collector answers as the event-collector does, and counts.
type collector struct {
	mu    sync.Mutex
	hits  map[string]int
	wrong string // kind that is answered 400
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := strings.Split(r.URL.Path, "/")[1]
	c.mu.Lock()
	c.hits[kind]++
	c.mu.Unlock()
	switch {
	case kind == c.wrong:
		w.WriteHeader(http.StatusBadRequest)
	case kind == "o":
		w.Header().Set("Content-Type", "image/gif")
	case kind == "c":
		http.Redirect(w, r, "https://elsewhere.test/", http.StatusFound)
	case kind == "u" && r.Method == http.MethodPost && r.FormValue("List-Unsubscribe") == "One-Click":
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func read(t *testing.T, wrong string, people int) (Did, map[string]int, error) {
	t.Helper()
	answers := &collector{hits: map[string]int{}, wrong: wrong}
	server := httptest.NewServer(answers)
	defer server.Close()
	dir := t.TempDir()
	mails := map[string]string{}
	for i := range people {
		mails[fmt.Sprintf("p%d@example.test", i)] = letter(server.URL, fmt.Sprint("m", i))
	}
	deliver(t, dir, mails)
	all, err := Deliveries(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	did, err := (&Crowd{Outbox: dir, Tracking: server.URL, Seed: 1, Client: NewClient()}).Read(context.Background(), all)
	return did, answers.hits, err
}

func TestReadersOpenClickAndUnsubscribeInTheirShares(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		people int
		want   Did
	}{{0, Did{}}, {1, Did{1, 1, 1}}, {100, Did{40, 10, 1}}, {250, Did{100, 25, 3}}} {
		did, hits, err := read(t, "", c.people)
		if err != nil {
			t.Fatal(err)
		}
		if did != c.want || hits["o"] != did.Opened || hits["c"] != did.Clicked || hits["u"] != did.Unsubscribed {
			t.Errorf("%d people: did %+v, the server saw %v, want %+v", c.people, did, hits, c.want)
		}
	}
}

// Whatever the rules of the classifier become, the funnel that people see first tells
// people from machines.
func TestOneReaderInFiveIsAMachine(t *testing.T) {
	t.Parallel()
	all, err := classify.All()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * machineEvery {
		by, want := programOf(i), classify.Human
		if i%machineEvery == machineEvery-1 {
			want = classify.Machine
		}
		for kind, agent := range map[string]string{"opened": by.opens, "clicked": by.clicks} {
			if label, rule := all[len(all)-1].Classify(classify.Hit{Kind: kind, Method: http.MethodGet, UserAgent: agent, LatencyMs: 60_000}); label != want {
				t.Errorf("reader %d, who %s by %q, is %s by %s, want %s", i, kind, agent, label, rule, want)
			}
		}
	}
}

func TestAMailThatDoesNotHoldWhatItPromisesIsAnError(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"o", "c", "u"} {
		if _, _, err := read(t, kind, 20); err == nil {
			t.Errorf("/%s/ answers 400 and nobody complains", kind)
		}
	}
}

func TestWhoReadsDependsOnTheSeedOnly(t *testing.T) {
	t.Parallel()
	people := func(order ...int) (all []Delivery) {
		for _, i := range order {
			all = append(all, Delivery{Recipient: fmt.Sprintf("p%d@example.test", i)})
		}
		return all
	}
	a, b, c := people(1, 2, 3, 4, 5, 6, 7, 8), people(8, 7, 6, 5, 4, 3, 2, 1), people(1, 2, 3, 4, 5, 6, 7, 8)
	Shuffle(a, 1)
	Shuffle(b, 1)
	Shuffle(c, 2)
	if fmt.Sprint(a) != fmt.Sprint(b) {
		t.Error("the order of delivery changes who reads")
	}
	if fmt.Sprint(a) == fmt.Sprint(c) {
		t.Error("two seeds choose alike")
	}
}
