package smtp_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/sender/internal/smtp"
	"github.com/hikyaku/hikyaku/services/sender/internal/smtp/fake"
)

func config(addr string) smtp.Config {
	return smtp.Config{Addr: addr, Hello: "test", TLS: smtp.TLSOpportunistic,
		ConnectTimeout: 5 * time.Second, ReplyTimeout: 5 * time.Second, DataTimeout: 5 * time.Second}
}

func pool(t *testing.T, cfg smtp.Config, connections int) *smtp.Pool {
	p := smtp.NewPool(cfg, smtp.PoolConfig{Connections: connections, MessagesPerConnection: 1000, IdleLimit: time.Minute})
	t.Cleanup(p.Close)
	return p
}

const letter = "Subject: x\r\n\r\nhello\r\n"

func say(s string) func(string, int) string { return func(string, int) string { return s } }

func hangs(script func(string, int) string) bool { return script != nil && script("", 1) == fake.Hang }

// The table of channels: what each answer at each point of the dialogue means.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		script  fake.Script
		verdict smtp.Verdict
		stage   smtp.Stage
		status  string
		usable  bool
	}{
		{"no such user", fake.Script{Rcpt: say("550 5.1.1 <b@example.test> no such user")}, smtp.Final, smtp.StageRcpt, "5.1.1", true},
		{"refused without enhanced code", fake.Script{Rcpt: say("550 no")}, smtp.Final, smtp.StageRcpt, "550", true},
		{"class and code disagree: the code is right", fake.Script{Rcpt: say("450 5.1.1 later")}, smtp.Temporary, smtp.StageRcpt, "450", true},
		{"greylisted", fake.Script{Rcpt: say("451 4.7.1 later")}, smtp.Temporary, smtp.StageRcpt, "4.7.1", true},
		{"content refused", fake.Script{End: say("554 5.7.1 spam")}, smtp.Final, smtp.StageEnd, "5.7.1", true},
		{"disk full at the end", fake.Script{End: say("452 4.3.1 full")}, smtp.Temporary, smtp.StageEnd, "4.3.1", true},
		{"throttled is back-pressure", fake.Script{End: say("454 4.7.0 Throttling failure: Maximum sending rate exceeded")}, smtp.Away, smtp.StageEnd, "4.7.0", true},
		{"421 at the end", fake.Script{End: say("421 4.3.2 bye")}, smtp.Temporary, smtp.StageEnd, "4.3.2", false},
		{"421 to the recipient", fake.Script{Rcpt: say("421 4.7.0 bye")}, smtp.Temporary, smtp.StageRcpt, "4.7.0", false},
		{"421 to the sender", fake.Script{Mail: func(int) string { return "421 4.3.2 bye" }}, smtp.Away, smtp.StageMail, "4.3.2", false},
		{"credentials wanted", fake.Script{Mail: func(int) string { return "530 5.7.0 authenticate" }}, smtp.Away, smtp.StageMail, "5.7.0", true},
		{"sender refused", fake.Script{Mail: func(int) string { return "550 5.7.1 not you" }}, smtp.Final, smtp.StageMail, "5.7.1", true},
		{"DATA refused", fake.Script{Data: say("451 4.3.0 later")}, smtp.Temporary, smtp.StageData, "4.3.0", true},
		{"closed before the message", fake.Script{Rcpt: say(fake.Drop)}, smtp.Temporary, smtp.StageRcpt, "", false},
		{"closed at DATA", fake.Script{Data: say(fake.Drop)}, smtp.Temporary, smtp.StageData, "", false},
		{"closed after the last line", fake.Script{End: say(fake.Drop)}, smtp.Unknown, smtp.StageEnd, "", false},
		{"silent after the last line", fake.Script{End: say(fake.Hang)}, smtp.Unknown, smtp.StageEnd, "", false},
		{"silent before it", fake.Script{Data: say(fake.Hang)}, smtp.Temporary, smtp.StageData, "", false},
		{"busy at the greeting", fake.Script{Greeting: func(int) string { return "421 4.3.2 too many" }}, smtp.Away, smtp.StageGreeting, "4.3.2", true},
		{"no service at the greeting", fake.Script{Greeting: func(int) string { return "554 5.3.2 no" }}, smtp.Away, smtp.StageGreeting, "5.3.2", true},
		{"not SMTP", fake.Script{Greeting: func(int) string { return "HTTP/1.1 400 Bad Request" }}, smtp.Away, smtp.StageGreeting, "", false},
	} {
		for _, extensions := range [][]string{nil, {"8BITMIME"}, {"PIPELINING", "CHUNKING"}} {
			if slices.Contains(extensions, "CHUNKING") && c.script.Data != nil {
				continue // a chunk waits for no invitation
			}
			t.Run(fmt.Sprint(c.name, extensions), func(t *testing.T) {
				t.Parallel()
				script := c.script
				script.Extensions = extensions
				server := fake.Start(t, "", script)
				cfg := config(server.Addr)
				// Only the wait that is to end in vain is a short one.
				switch {
				case hangs(c.script.Data):
					cfg.ReplyTimeout = 2 * time.Second // the envelope's answers come within it
				case hangs(c.script.End):
					cfg.DataTimeout = 500 * time.Millisecond
				}
				_, err := pool(t, cfg, 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
				var e *smtp.Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, c.verdict, smtp.Judge(err), err)
				require.Equal(t, c.stage, e.Stage)
				require.Equal(t, c.usable, e.Usable())
				if c.status != "" {
					require.Equal(t, c.status, e.Reply.Status())
				}
				require.NotContains(t, err.Error(), "example.test", "no address in an error")
			})
		}
	}
}

func TestServerAwayIsNoRecipientsFault(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ln.Close()
	_, err = pool(t, config(ln.Addr().String()), 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.Equal(t, smtp.Away, smtp.Judge(err), err)
}

// A refusal must leave nothing behind that the next message on the connection
// could join.
func TestConnectionServesOnAfterARefusal(t *testing.T) {
	t.Parallel()
	for _, ext := range [][]string{nil, {"8BITMIME"}, {"PIPELINING", "CHUNKING"}, {"CHUNKING"}} {
		server := fake.Start(t, "", fake.Script{Extensions: ext, Rcpt: func(to string, _ int) string {
			if strings.HasPrefix(to, "no1") {
				return "550 5.1.1 no"
			}
			return fake.Accept
		}, End: func(to string, _ int) string {
			if strings.HasPrefix(to, "no") {
				return "554 5.7.1 spam"
			}
			return fake.Accept
		}})
		p := pool(t, config(server.Addr), 1)
		for i := range 6 {
			to := fmt.Sprintf("%s%d@example.test", []string{"yes", "no"}[i%2], i)
			reply, err := p.Send(t.Context(), "a@example.test", to, []byte(letter))
			if i%2 == 1 {
				require.Equal(t, smtp.Final, smtp.Judge(err))
				continue
			}
			require.NoError(t, err)
			require.Equal(t, "Q1", reply.ID())
		}
		require.Len(t, server.Mails(), 3)
		require.Equal(t, 1, server.Connections())
	}
}

// A server that invites a message without recipients gets an empty one, and the
// message itself to nobody.
func TestPipelinedDataAfterARefusedRecipient(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	got := make(chan string, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 4096)
		fmt.Fprint(c, "220 x\r\n")
		c.Read(buf)
		fmt.Fprint(c, "250-x\r\n250 PIPELINING\r\n")
		c.Read(buf)
		fmt.Fprint(c, "250 ok\r\n550 5.1.1 no\r\n354 go on\r\n")
		n, _ := c.Read(buf)
		got <- string(buf[:n])
		fmt.Fprint(c, "554 5.5.1 no recipients\r\n")
		c.Read(buf)
	}()
	_, err = pool(t, config(ln.Addr().String()), 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.Equal(t, smtp.Final, smtp.Judge(err))
	require.Equal(t, ".\r\n", <-got)
}

func TestPipelinesMailRcptDataInOneWrite(t *testing.T) {
	t.Parallel()
	server := fake.Start(t, "", fake.Script{})
	_, err := pool(t, config(server.Addr), 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.NoError(t, err)
	require.Contains(t, server.Chunks(), "MAIL FROM:<a@example.test> SIZE=21\r\nRCPT TO:<b@example.test>\r\nDATA\r\n")
}

func TestAMessageGoesAsOneChunkWhereTheServerTakesChunks(t *testing.T) {
	t.Parallel()
	server := fake.Start(t, "", fake.Script{Extensions: []string{"PIPELINING", "CHUNKING"}})
	_, err := pool(t, config(server.Addr), 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.NoError(t, err)
	// Not with the envelope: see the package.
	require.Contains(t, server.Chunks(), "MAIL FROM:<a@example.test>\r\nRCPT TO:<b@example.test>\r\n")
	require.Len(t, server.Mails(), 1)
}

// A server, or whatever stands before it, that does not know BDAT after all gets
// its mail by DATA, and none of it twice.
func TestAnnouncedChunksThatAreNotTakenAreDoneWithout(t *testing.T) {
	t.Parallel()
	server := fake.Start(t, "", fake.Script{Extensions: []string{"PIPELINING", "chunking"}}) // which the fake does not know
	p := pool(t, config(server.Addr), 1)
	for i := range 3 {
		_, err := p.Send(t.Context(), "a@example.test", fmt.Sprintf("b%d@example.test", i), []byte(letter))
		require.NoError(t, err)
	}
	require.Len(t, server.Mails(), 3)
	require.Equal(t, 2, server.Connections())
}

func TestBytesArriveAsTheyWere(t *testing.T) {
	t.Parallel()
	for _, extensions := range [][]string{nil, {"PIPELINING", "CHUNKING"}} {
		server := fake.Start(t, "", fake.Script{Extensions: extensions})
		p := pool(t, config(server.Addr), 1)
		for _, c := range []struct{ sent, got string }{
			{letter, letter},
			{"", ""},
			{"no end of line", "no end of line\r\n"},
			{".\r\n", ".\r\n"},
			{"a\r\n.\r\nQUIT\r\n", "a\r\n.\r\nQUIT\r\n"},
			{"a\r\n..b\r\n.c", "a\r\n..b\r\n.c\r\n"},
			{"bare\n.\nends\r", "bare\r\n.\r\nends\r\n"},
			{"a\r\n.\nMAIL FROM:<x>\r\n", "a\r\n.\r\nMAIL FROM:<x>\r\n"},
			{"a\r.\r\nb", "a\r\n.\r\nb\r\n"},
		} {
			_, err := p.Send(t.Context(), "a@example.test", "b@example.test", []byte(c.sent))
			require.NoError(t, err, "%q", c.sent)
			mails := server.Mails()
			require.Equal(t, c.got, string(mails[len(mails)-1].Bytes), "%q", c.sent)
		}
	}
}

func TestAnnouncedLimitsAreHonoured(t *testing.T) {
	t.Parallel()
	all := fake.Start(t, "", fake.Script{})
	_, err := pool(t, config(all.Addr), 1).Send(t.Context(), "a@example.test", "ü@example.test", []byte("ü"))
	require.NoError(t, err)
	require.Equal(t, "SIZE=2 BODY=8BITMIME SMTPUTF8", all.Mails()[0].Params)

	none := fake.Start(t, "", fake.Script{Extensions: []string{"SIZE 10"}})
	p := pool(t, config(none.Addr), 1)
	for _, c := range []struct{ to, mime, status string }{
		{"b@example.test", "01234567890", "5.3.4"},
		{"b@example.test", "ü", "5.6.3"},
		{"ü@example.test", "u", "5.6.7"},
		{"b@example.test> SIZE=1", "u", "5.1.3"},
		{"b@example.test\r\nRCPT TO:<c@example.test", "u", "5.1.3"},
		{"", "u", "5.1.3"},
		{"nobody", "u", "5.1.3"},
	} {
		_, err := p.Send(t.Context(), "a@example.test", c.to, []byte(c.mime))
		var e *smtp.Error
		require.ErrorAs(t, err, &e, c.status)
		require.Equal(t, smtp.Final, smtp.Judge(err))
		require.Equal(t, c.status, e.Reply.Status())
		require.True(t, e.Local)
	}
	require.Empty(t, none.Mails())
}

// An old connection may end at any time; the message goes over a new one, once
// and without anybody noticing.
func TestOldConnectionsEndUnnoticed(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]string{"421": "421 4.7.0 enough", "hangs up": fake.Drop} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := fake.Start(t, "", fake.Script{Mail: func(try int) string {
				if try%3 == 0 {
					return end
				}
				return fake.Accept
			}})
			p := pool(t, config(server.Addr), 1)
			for i := range 10 {
				_, err := p.Send(t.Context(), "a@example.test", fmt.Sprintf("b%d@example.test", i), []byte(letter))
				require.NoError(t, err)
			}
			require.Len(t, server.Mails(), 10)
			require.Equal(t, 5, server.Connections())
		})
	}
}

// What the server may have accepted is never sent again by the pool.
func TestUnansweredMessageIsNotRepeated(t *testing.T) {
	t.Parallel()
	server := fake.Start(t, "", fake.Script{End: func(to string, _ int) string {
		if strings.HasPrefix(to, "drop") {
			return fake.Drop
		}
		return fake.Accept
	}})
	p := pool(t, config(server.Addr), 1)
	_, err := p.Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.NoError(t, err)
	_, err = p.Send(t.Context(), "a@example.test", "drop@example.test", []byte(letter)) // on the used connection
	require.Equal(t, smtp.Unknown, smtp.Judge(err))
	require.Equal(t, 1, server.Tries("drop@example.test"))
}

func TestConnectionsAreRecycledAndBounded(t *testing.T) {
	t.Parallel()
	server := fake.Start(t, "", fake.Script{})
	p := smtp.NewPool(config(server.Addr), smtp.PoolConfig{Connections: 3, MessagesPerConnection: 5, IdleLimit: time.Minute})
	defer p.Close()
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			_, err := p.Send(t.Context(), "a@example.test", fmt.Sprintf("b%d@example.test", i), []byte(letter))
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.Len(t, server.Mails(), 60)
	require.GreaterOrEqual(t, server.Connections(), 12)
	require.LessOrEqual(t, p.Open(), 3)
	per := map[int]int{}
	for _, m := range server.Mails() {
		per[m.Connection]++
		require.LessOrEqual(t, per[m.Connection], 5)
	}
}

// A server that counts connections is served over as many as it takes.
func TestTooManyConnectionsIsMetWithFewer(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	opened := 0
	server := fake.Start(t, "", fake.Script{Greeting: func(int) string {
		mu.Lock()
		defer mu.Unlock()
		if opened == 2 {
			return "421 4.7.0 too many connections"
		}
		opened++
		return fake.Accept
	}})
	p := pool(t, config(server.Addr), 8)
	_, err := p.Send(t.Context(), "a@example.test", "first@example.test", []byte(letter))
	require.NoError(t, err)
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			_, err := p.Send(t.Context(), "a@example.test", fmt.Sprintf("b%d@example.test", i), []byte(letter))
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.Len(t, server.Mails(), 41)
}

// The end of the context ends a call that waits for a silent server at once.
func TestContextEndsACall(t *testing.T) {
	t.Parallel()
	server := fake.Start(t, "", fake.Script{End: say(fake.Hang)})
	cfg := config(server.Addr)
	cfg.DataTimeout = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for len(server.Mails()) == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	_, err := pool(t, cfg, 1).Send(ctx, "a@example.test", "b@example.test", []byte(letter))
	require.Equal(t, smtp.Unknown, smtp.Judge(err))
}

func TestTLSAndAuth(t *testing.T) {
	t.Parallel()
	cert, roots := certificate(t)
	var auth string
	server := fake.Start(t, "", fake.Script{
		TLS:        &tls.Config{Certificates: []tls.Certificate{cert}},
		Extensions: []string{"PIPELINING", "AUTH LOGIN PLAIN"},
		Auth:       func(arg string) string { auth = arg; return fake.Accept },
	})
	required := config(server.Addr)
	required.TLS, required.Username, required.Password = smtp.TLSRequired, "me", "secret"

	_, err := pool(t, required, 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.Equal(t, smtp.Away, smtp.Judge(err), "an unknown certificate stops the lane")

	required.TLSConfig = &tls.Config{RootCAs: roots}
	big := []byte(letter + strings.Repeat("0123456789\r\n", 5000))
	_, err = pool(t, required, 1).Send(t.Context(), "a@example.test", "b@example.test", big)
	require.NoError(t, err)
	require.True(t, bytes.Equal(big, server.Mails()[0].Bytes))
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(auth, "PLAIN "))
	require.NoError(t, err)
	require.Equal(t, "\x00me\x00secret", string(secret))

	opportunistic := config(server.Addr)
	_, err = pool(t, opportunistic, 1).Send(t.Context(), "a@example.test", "c@example.test", []byte(letter))
	require.NoError(t, err)

	plain := fake.Start(t, "", fake.Script{})
	required.Addr = plain.Addr
	_, err = pool(t, required, 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.Equal(t, smtp.Away, smtp.Judge(err))
	require.Empty(t, plain.Mails(), "nothing goes out in the clear")

	wrong := fake.Start(t, "", fake.Script{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, Extensions: []string{"AUTH PLAIN"},
		Auth: func(string) string { return "535 5.7.8 wrong" }})
	required.Addr = wrong.Addr
	_, err = pool(t, required, 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.Equal(t, smtp.Away, smtp.Judge(err), "wrong credentials are no recipient's fault")

	broken := fake.Start(t, "", fake.Script{TLS: &tls.Config{}}) // offers STARTTLS and cannot
	opportunistic.Addr = broken.Addr
	_, err = pool(t, opportunistic, 1).Send(t.Context(), "a@example.test", "b@example.test", []byte(letter))
	require.NoError(t, err)
}

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func TestReplyID(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"2.0.0 Ok: queued as 4F1A2": "4F1A2",
		"OK id=1abcDE-0001-AB":      "1abcDE-0001-AB",
		"Ok 0100018c-0000":          "0100018c-0000",
		"2.0.0 accepted":            "",
		"":                          "",
	} {
		require.Equal(t, want, smtp.Reply{Code: 250, Text: text}.ID(), text)
	}
}

var errNotOurs = errors.New("x")

func TestUnknownErrorsAreNotARecipientsFault(t *testing.T) {
	t.Parallel()
	require.Equal(t, smtp.Away, smtp.Judge(errNotOurs))
}

func BenchmarkSend(b *testing.B) {
	server := fake.Start(b, "", fake.Script{})
	p := smtp.NewPool(config(server.Addr), smtp.PoolConfig{Connections: 8, MessagesPerConnection: 1000, IdleLimit: time.Minute})
	defer p.Close()
	mime := []byte("Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 140))
	b.SetParallelism(4)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := p.Send(b.Context(), "a@example.test", "b@example.test", mime); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A line too many must not be taken for the answer to the message.
func TestUnaskedLineIsNoAnswer(t *testing.T) {
	t.Parallel()
	server := fake.Start(t, "", fake.Script{
		Rcpt: func(to string, _ int) string {
			if strings.HasPrefix(to, "odd") {
				return "250 2.1.5 ok\r\n250 2.1.5 and another"
			}
			return fake.Accept
		},
		End: func(to string, _ int) string {
			if strings.HasPrefix(to, "chatty") {
				return "250 2.0.0 Ok\r\n250 2.0.0 and another"
			}
			return "554 5.7.1 spam"
		},
	})
	p := pool(t, config(server.Addr), 1)
	_, err := p.Send(t.Context(), "a@example.test", "odd@example.test", []byte(letter))
	var e *smtp.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, smtp.Temporary, smtp.Judge(err), err)
	_, err = p.Send(t.Context(), "a@example.test", "chatty@example.test", []byte(letter))
	require.NoError(t, err)
	_, err = p.Send(t.Context(), "a@example.test", "spam@example.test", []byte(letter))
	require.Equal(t, smtp.Final, smtp.Judge(err), err)
	require.Equal(t, 3, server.Connections())
}
