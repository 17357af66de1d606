package outbox_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/deploy/embedded/outbox"
)

// With childDir set the test binary is an outbox that waits to be killed.
const childDir = "EMBEDDED_OUTBOX_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		box, err := outbox.Open(outbox.Options{Dir: dir})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(l.Addr())
		_ = box.ServeSMTP(l)
	}
	os.Exit(m.Run())
}

func serve(t testing.TB, o outbox.Options) (addr string, box *outbox.Outbox) {
	t.Helper()
	box, err := outbox.Open(o)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- box.ServeSMTP(l) }()
	t.Cleanup(func() {
		assert.NoError(t, box.Close())
		assert.NoError(t, <-served)
	})
	return l.Addr().String(), box
}

func dial(t testing.TB, addr string) *smtp.Client {
	t.Helper()
	c, err := smtp.Dial(addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func send(c *smtp.Client, message string, to ...string) error {
	return c.SendMail("news@example.test", to, strings.NewReader(message))
}

func message(id, to string) string {
	return "From: News <news@example.test>\r\nTo: " + to + "\r\nMessage-ID: <" + id + "@example.test>\r\nSubject: Hello " + id + "\r\n\r\nHello.\r\n"
}

func entries(t testing.TB, dir string) []outbox.Entry {
	t.Helper()
	var out []outbox.Entry
	require.NoError(t, outbox.ReadIndex(dir, func(e outbox.Entry) error {
		out = append(out, e)
		return nil
	}))
	return out
}

func TestEveryAcceptedMessageIsKeptAndListed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, box := serve(t, outbox.Options{Dir: dir})
	c := dial(t, addr)
	for _, extension := range []string{"PIPELINING", "8BITMIME", "SIZE", "ENHANCEDSTATUSCODES"} {
		ok, _ := c.Extension(extension)
		assert.True(t, ok, extension)
	}
	before := time.Now()
	first := "Subject: one\r\nmessage-id:\r\n <1@example.test>\r\n\r\nFrom here on\r\n>From there\r\nnot From here\r\nFrom From me\r\n\r\n"
	require.NoError(t, send(c, first, "ada@example.test", "bob@example.test"))
	second := message("2", "eve@example.test")
	require.NoError(t, send(c, second, "eve@example.test"))

	got := entries(t, dir)
	require.Len(t, got, 3)
	assert.Equal(t, []string{"ada@example.test", "bob@example.test", "eve@example.test"}, []string{got[0].To, got[1].To, got[2].To})
	assert.Equal(t, "news@example.test", got[0].From)
	assert.Equal(t, "<1@example.test>", got[0].MessageID)
	assert.Equal(t, "<2@example.test>", got[2].MessageID)
	assert.False(t, got[0].Time.Before(before.Add(-time.Second)) || got[2].Time.Before(got[0].Time))
	for i, want := range []string{first, first, second} {
		raw, err := outbox.ReadMail(dir, got[i])
		require.NoError(t, err)
		assert.Equal(t, want, string(raw))
	}
	assert.EqualValues(t, 3, box.Accepted())

	mbox, err := os.ReadFile(filepath.Join(dir, got[0].File))
	require.NoError(t, err)
	assert.Len(t, regexp.MustCompile(`(?m)^From `).FindAll(mbox, -1), 2, "one mbox separator per message")
	assert.Contains(t, string(mbox), "\n>From here on\r\n>>From there\r\nnot From here\r\n>From From me\r\n")
}

func TestAddressesAskForFailures(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, _ := serve(t, outbox.Options{Dir: dir})
	c := dial(t, addr)
	code := func(err error) (int, smtp.EnhancedCode) {
		var s *smtp.SMTPError
		require.ErrorAs(t, err, &s)
		return s.Code, s.EnhancedCode
	}
	try := func(to string) error {
		require.NoError(t, c.Reset())
		require.NoError(t, c.Mail("news@example.test", nil))
		return c.Rcpt(to, nil)
	}
	for range 2 {
		status, enhanced := code(try("ada+550@example.test"))
		assert.Equal(t, 550, status)
		assert.Equal(t, smtp.EnhancedCode{5, 1, 1}, enhanced)
	}
	status, enhanced := code(try("bob+451@example.test"))
	assert.Equal(t, 451, status)
	assert.Equal(t, smtp.EnhancedCode{4, 3, 0}, enhanced)
	status, _ = code(try("eve+451@example.test"))
	assert.Equal(t, 451, status, "once for each address")
	require.NoError(t, c.Reset())
	require.NoError(t, send(c, message("1", "bob"), "bob+451@example.test"))
	require.NoError(t, send(c, message("2", "bob"), "bob+451@example.test"))
	require.NoError(t, send(c, message("3", "550"), "ada+550+x@example.test"), "only the end counts")

	err := send(dial(t, addr), message("4", "hang"), "zoe+hang@example.test")
	require.Error(t, err)
	var answered *smtp.SMTPError
	assert.NotErrorAs(t, err, &answered)
	got := entries(t, dir)
	require.Len(t, got, 4)
	assert.Equal(t, "zoe+hang@example.test", got[3].To, "accepted, though nobody was told")
}

func TestKilledOutboxHasWhatItAnswered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start := func() (string, func()) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		kill := sync.OnceFunc(func() {
			_ = cmd.Process.Signal(syscall.SIGKILL)
			_ = cmd.Wait()
		})
		t.Cleanup(kill)
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		return strings.TrimSpace(line), kill
	}
	answered := map[string]bool{}
	for round := range 2 {
		addr, kill := start()
		var mu sync.Mutex
		var wg sync.WaitGroup
		n, enough := 0, make(chan struct{})
		for w := range 8 {
			wg.Go(func() {
				c, err := smtp.Dial(addr)
				if err != nil {
					return
				}
				defer c.Close()
				for i := 0; ; i++ {
					to := fmt.Sprintf("r%d-w%d-%d@example.test", round, w, i)
					if send(c, message(to, to), to) != nil {
						return
					}
					mu.Lock()
					answered[to] = true
					if n++; n == 100 { // in this round: the one before may have had more
						close(enough)
					}
					mu.Unlock()
				}
			})
		}
		<-enough
		kill()
		wg.Wait()
	}

	// What a torn write would leave.
	index := filepath.Join(dir, "index.tsv")
	f, err := os.OpenFile(index, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("2026-01-02T03:04:05Z\tnews@exa")
	require.NoError(t, err)
	require.NoError(t, f.Close())

	addr, _ := serve(t, outbox.Options{Dir: dir})
	require.NoError(t, send(dial(t, addr), message("last", "last"), "last@example.test"))
	answered["last@example.test"] = true
	seen := map[string]bool{}
	for _, e := range entries(t, dir) {
		assert.False(t, seen[e.To], "%s twice", e.To)
		seen[e.To] = true
		raw, err := outbox.ReadMail(dir, e)
		require.NoError(t, err)
		_, err = mail.ReadMessage(bytes.NewReader(raw))
		require.NoError(t, err, "%s at %d", e.File, e.Offset)
	}
	for to := range answered {
		assert.True(t, seen[to], "%s was answered with 250", to)
	}
}

func TestUnlistedMailAfterAKillIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stop := func(o outbox.Options, id string) {
		box, err := outbox.Open(o)
		require.NoError(t, err)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() { _ = box.ServeSMTP(l) }()
		require.NoError(t, send(dial(t, l.Addr().String()), message(id, id), id+"@example.test"))
		require.NoError(t, box.Close())
	}
	stop(outbox.Options{Dir: dir}, "1")
	stop(outbox.Options{Dir: dir}, "2")
	f, err := os.OpenFile(filepath.Join(dir, "mail-0001.mbox"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("From news@example.test Mon Jan  2 03:04:05 2026\nSubject: not listed")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	stop(outbox.Options{Dir: dir}, "3")
	stop(outbox.Options{Dir: dir, RollBytes: 10}, "4")

	got := entries(t, dir)
	require.Len(t, got, 4)
	files := []string{got[0].File, got[1].File, got[2].File, got[3].File}
	assert.Equal(t, []string{"mail-0001.mbox", "mail-0001.mbox", "mail-0002.mbox", "mail-0003.mbox"}, files)
	for i, e := range got {
		raw, err := outbox.ReadMail(dir, e)
		require.NoError(t, err)
		assert.Equal(t, message(fmt.Sprint(i+1), fmt.Sprint(i+1)), string(raw))
	}
}

func TestCountingKeepsTheIndexOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, _ := serve(t, outbox.Options{Dir: dir, CountOnly: true})
	long := message("1", "ada") + strings.Repeat("0123456789\r\n", 10_000)
	require.NoError(t, send(dial(t, addr), long, "ada@example.test"))
	got := entries(t, dir)
	require.Len(t, got, 1)
	assert.Equal(t, "<1@example.test>", got[0].MessageID)
	assert.EqualValues(t, len(long), got[0].Length)
	assert.Equal(t, outbox.NotKept, got[0].File)
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(dir, "index.tsv")}, names)
}

func TestPage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr, box := serve(t, outbox.Options{Dir: dir})
	page := httptest.NewServer(box.Handler())
	t.Cleanup(page.Close)
	fetch := func(path string) (string, http.Header) {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, page.URL+path, nil)
		require.NoError(t, err)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s: %s", path, body)
		return string(body), resp.Header
	}
	_, _ = fetch("/healthz")
	empty, _ := fetch("/")
	assert.Contains(t, empty, "No mail yet.")

	c := dial(t, addr)
	for i := range 60 {
		id := fmt.Sprintf("c%02d", i)
		require.NoError(t, send(c, message(id, id), id+"@example.test"))
	}
	const pretty = "From: =?utf-8?q?Hikyaku_=E9=A3=9B=E8=84=9A?= <news@example.test>\r\nTo: Ada <ada@example.test>\r\nSubject: =?utf-8?b?8J+NgiBBdXR1bW4=?=\r\n" +
		"MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n" +
		"--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nGr=C3=BCezi <Ada>\r\n" +
		"--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><head><title>x</title></head><body><script>alert(1)</script><b>Leaves</b></body></html>\r\n--b--\r\n"
	require.NoError(t, send(c, pretty, "ada@example.test"))

	list, header := fetch("/")
	assert.Contains(t, list, "🍂 Autumn")
	assert.NotContains(t, header.Get("Content-Security-Policy"), "script-src", "default-src 'none' forbids scripts")
	assert.Less(t, strings.Index(list, "c59@example.test"), strings.Index(list, "c58@example.test"), "newest first")
	assert.NotContains(t, list, "c10@example.test")
	older := regexp.MustCompile(`href="(/\?before=\d+)"`).FindStringSubmatch(list)
	require.NotNil(t, older)
	second, _ := fetch(older[1])
	assert.Contains(t, second, "c10@example.test")
	assert.Contains(t, second, "c00@example.test")
	assert.NotContains(t, second, "c11@example.test")
	assert.NotContains(t, second, ">Older<")

	found, _ := fetch("/?to=" + url.QueryEscape("C07@"))
	assert.Contains(t, found, "c07@example.test")
	assert.NotContains(t, found, "c08@example.test")

	at := regexp.MustCompile(`href="(/mail/\d+)">ada@example.test`).FindStringSubmatch(list)
	require.NotNil(t, at)
	view, _ := fetch(at[1])
	assert.Contains(t, view, `<iframe title="The message" sandbox="allow-popups allow-popups-to-escape-sandbox" src="`+at[1]+`/html">`)
	assert.Contains(t, view, "Hikyaku 飛脚")
	document, header := fetch(at[1] + "/html")
	assert.Contains(t, document, `<head><base target="_blank"><title>`)
	policy := header.Get("Content-Security-Policy")
	assert.Contains(t, policy, "default-src 'none'")
	assert.Contains(t, policy, "sandbox allow-popups")
	assert.NotContains(t, policy, "script")
	assert.NotContains(t, policy, "http:", "pictures only when asked for")
	_, header = fetch(at[1] + "/html?pictures=yes")
	assert.Contains(t, header.Get("Content-Security-Policy"), "img-src data: http: https:;")
	text, _ := fetch(at[1] + "?view=text")
	assert.Contains(t, text, "Grüezi &lt;Ada&gt;")
	source, _ := fetch(at[1] + "?view=source")
	assert.Contains(t, source, "Content-Transfer-Encoding: quoted-printable")
	raw, _ := fetch(at[1] + "/raw")
	assert.Equal(t, pretty, raw)

	resp, err := http.Get(page.URL + "/mail/3")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusNotFound, resp.StatusCode, "not the begin of a line")
}

// BenchmarkSink is the ceiling of a Go client that waits for every answer; one
// iteration is one message of 10 KB.
func BenchmarkSink(b *testing.B) {
	for _, countOnly := range []bool{false, true} {
		b.Run(map[bool]string{false: "keep", true: "count"}[countOnly], func(b *testing.B) {
			addr, _ := serve(b, outbox.Options{Dir: b.TempDir(), CountOnly: countOnly})
			body := message("1", "ada") + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 140)
			b.SetBytes(int64(len(body)))
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				c, err := smtp.Dial(addr)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				for pb.Next() {
					if err := send(c, body, "ada@example.test"); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
