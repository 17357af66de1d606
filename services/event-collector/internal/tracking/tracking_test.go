package tracking

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

func testKeys(t testing.TB) *token.Keys {
	t.Helper()
	keys, err := token.NewKeys("1", map[string][]byte{"1": []byte("a secret for these tests")})
	require.NoError(t, err)
	return keys
}

func TestAddressesAreKeptAsFarAsTheSettingSays(t *testing.T) {
	t.Parallel()
	keys, day := testKeys(t), time.Date(2026, 11, 22, 23, 59, 0, 0, time.UTC)
	for addr, want := range map[string]string{
		"203.0.113.77": "203.0.113.0/24", "2001:db8:1:2:3:4:5:6": "2001:db8:1::/48", "fe80::1%eth0": "fe80::/48",
	} {
		a := netip.MustParseAddr(addr)
		require.Equal(t, want, keep(Truncated, keys, a, day))
		require.Empty(t, keep(None, keys, a, day))
		hashed := keep(Hashed, keys, a, day)
		require.Regexp(t, `^hashed:[0-9a-f]{16}$`, hashed)
		require.Equal(t, hashed, keep(Hashed, keys, a, day.Add(-23*time.Hour)), "the same on one day")
		require.NotEqual(t, hashed, keep(Hashed, keys, a, day.Add(time.Minute)), "another one the next day")
	}
	require.NotEqual(t, keep(Hashed, keys, netip.MustParseAddr("203.0.113.77"), day), keep(Hashed, keys, netip.MustParseAddr("203.0.113.78"), day))
	other, err := token.NewKeys("1", map[string][]byte{"1": []byte("another secret of theirs")})
	require.NoError(t, err)
	require.NotEqual(t, keep(Hashed, keys, netip.MustParseAddr("203.0.113.77"), day), keep(Hashed, other, netip.MustParseAddr("203.0.113.77"), day))
	require.Empty(t, keep(Truncated, keys, netip.Addr{}, day))
}

func TestOnlyTrustedProxiesAreBelieved(t *testing.T) {
	t.Parallel()
	proxies, err := ParseProxies([]string{"10.0.0.0/8", " 192.0.2.1", "2001:db8:f::/48", ""})
	require.NoError(t, err)
	for _, bad := range []string{"x", "10.0.0.0/33", "10.0.0"} {
		_, err := ParseProxies([]string{bad})
		require.Error(t, err, bad)
	}
	for name, c := range map[string]struct {
		remote  string
		headers [][2]string
		want    string
	}{
		"nobody in between":                   {"203.0.113.77:4711", nil, "203.0.113.77"},
		"a client that says it is a proxy":    {"203.0.113.77:4711", [][2]string{{"X-Forwarded-For", "198.51.100.1"}}, "203.0.113.77"},
		"a proxy":                             {"10.1.2.3:1", [][2]string{{"X-Forwarded-For", "198.51.100.1"}}, "198.51.100.1"},
		"a proxy of a client that made it up": {"10.1.2.3:1", [][2]string{{"X-Forwarded-For", "1.1.1.1, 198.51.100.1"}}, "198.51.100.1"},
		"two proxies":                         {"10.1.2.3:1", [][2]string{{"X-Forwarded-For", "1.1.1.1, 198.51.100.1, 192.0.2.1"}}, "198.51.100.1"},
		"two proxies, two headers":            {"10.1.2.3:1", [][2]string{{"X-Forwarded-For", "198.51.100.1"}, {"X-Forwarded-For", "192.0.2.1"}}, "198.51.100.1"},
		"two headers, one made up":            {"10.1.2.3:1", [][2]string{{"X-Forwarded-For", "1.1.1.1"}, {"X-Forwarded-For", "198.51.100.1, 192.0.2.1"}}, "198.51.100.1"},
		"only proxies":                        {"10.1.2.3:1", [][2]string{{"X-Forwarded-For", "10.9.9.9, 10.8.8.8"}}, "10.9.9.9"},
		"a proxy that does not say":           {"10.1.2.3:1", nil, "10.1.2.3"},
		"what is no address":                  {"10.1.2.3:1", [][2]string{{"X-Forwarded-For", "198.51.100.1, unknown"}}, ""},
		"with a port":                         {"10.1.2.3:1", [][2]string{{"X-Forwarded-For", "198.51.100.1:5555"}}, "198.51.100.1"},
		"RFC 7239":                            {"10.1.2.3:1", [][2]string{{"Forwarded", `for=1.1.1.1;proto=https, by=10.0.0.1; For="[2001:db8:cafe::17]:4711";host=x`}}, "2001:db8:cafe::17"},
		"IPv6 behind IPv6":                    {"[2001:db8:f::9]:1", [][2]string{{"X-Forwarded-For", "2001:db8:1::1"}}, "2001:db8:1::1"},
		"mapped":                              {"[::ffff:203.0.113.77]:1", nil, "203.0.113.77"},
		"a socket":                            {"@", nil, ""},
	} {
		r := &http.Request{RemoteAddr: c.remote, Header: http.Header{}}
		for _, h := range c.headers {
			r.Header.Add(h[0], h[1])
		}
		h := &Handler{Options: Options{Proxies: proxies}}
		got := ""
		if addr := h.client(r); addr.IsValid() {
			got = addr.String()
		}
		require.Equal(t, c.want, got, name)
	}
	r := &http.Request{RemoteAddr: "10.1.2.3:1", Header: http.Header{"X-Forwarded-For": {"198.51.100.1"}}}
	require.Equal(t, "10.1.2.3", (&Handler{}).client(r).String(), "nobody is trusted who was not named")
}

func TestAHitSaysWhyItWasMadeAndHowLongAfterTheMessage(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"": "", "Sec-Purpose: prefetch": "prefetch", "Sec-Purpose: prefetch;prerender": "prerender", "Sec-Purpose: prefetch;anonymous-client-ip": "prefetch",
		"Purpose: Prefetch": "prefetch", "X-Moz: prefetch": "prefetch", "X-Purpose: preview": "preview", "Purpose: buying tea": "",
	} {
		header := http.Header{}
		if name, value, ok := strings.Cut(value, ": "); ok {
			header.Set(name, value)
		}
		require.Equal(t, want, purpose(header), value)
	}
	now := time.Now()
	require.EqualValues(t, 1500, latency(now.Add(-1500*time.Millisecond), now))
	require.EqualValues(t, 0, latency(now.Add(time.Second), now), "clocks differ")
	require.EqualValues(t, -1, latency(time.Time{}, now), "a link of before")
}

func TestATargetIsWrittenAsAHeaderCanCarryIt(t *testing.T) {
	t.Parallel()
	for target, want := range map[string]string{
		"https://shop.example/?a=1&b=%20#c": "https://shop.example/?a=1&b=%20#c", "https://shop.example/飛?a b": "https://shop.example/%E9%A3%9B?a%20b",
		"https://shop.example/\r\nSet-Cookie: x": "https://shop.example/%0D%0ASet-Cookie:%20x", "": "",
	} {
		require.Equal(t, want, location(target))
	}
}

func TestWhatAnybodyMaySendIsCut(t *testing.T) {
	t.Parallel()
	require.Equal(t, strings.Repeat("x", maxHeaderBytes), cut(strings.Repeat("x", maxHeaderBytes+1)))
	require.Equal(t, strings.Repeat("x", maxHeaderBytes-1), cut(strings.Repeat("x", maxHeaderBytes-1)+"飛"), "not inside a character")
	require.Equal(t, "ab", cut("a\xffb"))
}

var methods = [...]string{http.MethodGet, http.MethodHead, http.MethodPost}

// FuzzLinks: only what was signed, for what it was signed for, is recorded or
// leads anywhere.
func FuzzLinks(f *testing.F) {
	keys := testKeys(f)
	const target = "https://shop.example/"
	signed := map[string]bool{}
	for _, p := range []token.Purpose{token.Click, token.Open, token.Unsubscribe} {
		tok := &token.Token{Purpose: p, MessageID: identity.Hash("m"), Channel: "email", UserID: "u"}
		if p == token.Click {
			tok.Target = target
		}
		text, err := keys.Append(nil, "1", tok)
		require.NoError(f, err)
		path := "/" + string(rune(p)) + "/" + string(text)
		signed[path] = true
		for method := range uint8(len(methods)) {
			f.Add(path, method)
			f.Add(path[:len(path)-1], method)
			f.Add("/o/"+string(text), method)
		}
	}
	f.Add("/c/https:%2f%2fevil.example", uint8(0))
	recorded := 0
	h := New(Options{Keys: keys, HitTimeout: time.Second, AckTimeout: time.Second, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Registry: prometheus.NewRegistry(),
		Write: func(context.Context, ...output.Entry) error { recorded++; return nil }})
	mux := http.NewServeMux()
	h.Register(mux)
	f.Fuzz(func(t *testing.T, path string, how uint8) {
		method := methods[int(how)%len(methods)]
		r, err := http.NewRequestWithContext(t.Context(), method, "http://collector"+path, strings.NewReader("x"))
		if err != nil || !strings.HasPrefix(r.URL.Path, "/") {
			return
		}
		r.RemoteAddr = "203.0.113.77:1"
		recorded = 0
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		known := signed[strings.TrimSuffix(r.URL.Path, ".gif")]
		if to := w.Header().Get("Location"); w.Code == http.StatusFound && to != target {
			t.Fatalf("%s leads to %q", path, to)
		}
		if !known && (recorded > 0 || w.Code == http.StatusFound || w.Code == http.StatusOK) {
			t.Fatalf("%s %s was not signed: %d, %d recorded", method, path, w.Code, recorded)
		}
		if known && strings.HasPrefix(r.URL.Path, "/u/") && method != http.MethodPost && recorded > 0 {
			t.Fatalf("a %s has unsubscribed", method)
		}
	})
}

func BenchmarkClick(b *testing.B) {
	keys := testKeys(b)
	text, err := keys.Append(nil, "1", &token.Token{Purpose: token.Click, MessageID: identity.Hash("m"), RunID: identity.Hash("r"), Channel: "email", CampaignID: "autumn",
		UserID: "user-1", Target: "https://shop.example/tea?size=100g", RequestedAt: time.Now()})
	require.NoError(b, err)
	h := New(Options{Keys: keys, HitTimeout: time.Second, AckTimeout: time.Second, Address: Truncated, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry(),
		Write: func(context.Context, ...output.Entry) error { return nil }})
	mux := http.NewServeMux()
	h.Register(mux)
	r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/c/"+string(text), nil)
	r.RemoteAddr = "203.0.113.77:4711"
	r.Header.Set("User-Agent", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36")
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != http.StatusFound {
			b.Fatal(w.Code)
		}
	}
}
