package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the results on docs/analytics.md again with RETAIL_SAMPLE, else those in testdata")

// Every statement on the page is run, those for clients included. With the retail
// sample, whose file RETAIL_SAMPLE names since it is no part of the project, the
// results are those on the page; without it a file of the same shape is imported,
// whose results lie in testdata and whose columns are those on the page.
func TestEveryStatementOnTheAnalyticsPage(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	analyticsPage, examples := filepath.Join(root, "docs/analytics.md"), filepath.Join(root, "examples/online-retail")
	page, err := os.ReadFile(analyticsPage)
	require.NoError(t, err)
	sample := os.Getenv("RETAIL_SAMPLE")
	s := startStack(t)
	s.provision()
	s.services()
	s.hikyaku(nil, "apply", "-f", filepath.Join(examples, "import.yaml"))
	s.upload("retail-orders", "orders.csv", retail(t, sample))
	s.hikyaku(nil, "apply", "-f", examples)
	require.True(t, s.run("thanks-2011").Balanced)
	if strings.TrimSpace(s.query("SELECT count() FROM classifiers")) == "0" {
		s.query("INSERT INTO classifier_rows (version, put_at) SELECT 1, '2026-01-01 00:00:00'")
	}

	statements := regexp.MustCompile("(?s)```sql\n(.*?)```\n(?:\n```text\n(.*?)```\n)?").FindAllSubmatchIndex(page, -1)
	const madeUp = "testdata/analytics.txt"
	var written, answers bytes.Buffer
	end, questions := 0, 0
	for _, at := range statements {
		answer := s.query(string(page[at[2]:at[3]]))
		if at[4] < 0 {
			continue
		}
		questions++
		got, want := aligned(answer), string(page[at[4]:at[5]])
		written.Write(page[end:at[4]])
		written.WriteString(got)
		end = at[5]
		fmt.Fprintf(&answers, "%d\n%s\n", questions, got)
		if sample != "" && !*update {
			require.Equal(t, want, got, "%s", page[at[2]:at[3]])
			continue
		}
		columns := func(text string) []string {
			line, _, _ := strings.Cut(text, "\n")
			return strings.Fields(line)
		}
		if !*update {
			require.Equal(t, columns(want), columns(got), "%s", page[at[2]:at[3]])
		}
	}
	require.Equal(t, 20, questions)
	written.Write(page[end:])
	switch {
	case *update && sample != "":
		require.NoError(t, os.WriteFile(analyticsPage, written.Bytes(), 0o644))
	case *update:
		require.NoError(t, os.WriteFile(filepath.Join(root, "services/e2e", madeUp), answers.Bytes(), 0o644))
	case sample == "":
		want, err := os.ReadFile(filepath.Join(root, "services/e2e", madeUp))
		require.NoError(t, err)
		require.Equal(t, string(want), answers.String())
	}

	// As it stands in the section for clients, but for the address.
	here := strings.NewReplacer("http://127.0.0.1:8123", s.env["CLICKHOUSE_URL"], "database=hikyaku", "database="+s.database())
	events := s.query("SELECT count() FROM events WHERE name = 'purchase'")
	for language, command := range map[string][]string{"sh": {"sh", "-c"}, "python": {"python3", "-c"}} {
		block := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindSubmatch(page)
		require.NotNil(t, block, language)
		need := map[string]string{"sh": "curl", "python": "python3"}[language]
		if _, err := exec.LookPath(need); err != nil {
			t.Logf("%s is not installed: its lines were not tried", need)
			continue
		}
		out, err := exec.CommandContext(t.Context(), command[0], command[1], here.Replace(string(block[1]))).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Regexp(t, `purchase[^0-9]+`+strings.TrimSpace(events), string(out))
	}
}

// retail is the sample, or a file of its shape.
func retail(t *testing.T, sample string) string {
	t.Helper()
	if sample != "" {
		text, err := os.ReadFile(sample)
		require.NoError(t, err)
		return string(text)
	}
	var b strings.Builder
	b.WriteString("InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n")
	countries := []string{"United Kingdom", "Germany", "France", "Spain"}
	for i := range 1200 {
		customer := 12300 + i%100
		fmt.Fprintf(&b, "5%05d,%d,THING %d,%d,2011-%02d-%02d 1%d:20:00,%d.25,%d.0,%s\n", i/2, i%7, i%7, 1+i%5, 1+i%12, 1+i%27, i%9, i%8, customer, countries[customer%10/3])
	}
	for i := range 9 { // taken back
		fmt.Fprintf(&b, "C9%04d,%d,THING %d,-1,2011-%02d-28 10:00:00,1.25,%d.0,%s\n", i, i%7, i%7, 1+i, 12300+i, countries[i%10/3])
	}
	b.WriteString("599999,1,THING,1,2011-04-01 10:00:00,1.25,,Spain\n") // nobody's
	return b.String()
}

func (s *stack) database() string { return strings.ReplaceAll(s.namespace, "-", "_") }

// query is ClickHouse's answer, tab-separated with names.
func (s *stack) query(text string) string {
	s.t.Helper()
	if !strings.HasPrefix(text, "INSERT") {
		text += " FORMAT TabSeparatedWithNames"
	}
	resp, err := http.Post(s.env["CLICKHOUSE_URL"]+"/?database="+s.database(), "text/plain", strings.NewReader(text))
	require.NoError(s.t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	require.Equal(s.t, http.StatusOK, resp.StatusCode, "%s\n%s", text, answer)
	_, rows, _ := strings.Cut(string(answer), "\n")
	if strings.HasPrefix(text, "SELECT count") && !strings.Contains(text, "\n") {
		return rows
	}
	return string(answer)
}

// aligned is a table for people.
func aligned(tsv string) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = io.WriteString(w, tsv)
	_ = w.Flush()
	return regexp.MustCompile(`(?m) +$`).ReplaceAllString(b.String(), "")
}
