package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	dto "github.com/prometheus/client_model/go"
	"github.com/rs/zerolog"
	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/services/console"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// outage is how long a test keeps something away; CHAOS_OUTAGE makes it longer,
// such as the whole minute.
func outage(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	if text := os.Getenv("CHAOS_OUTAGE"); text != "" {
		d, err := time.ParseDuration(text)
		require.NoError(t, err)
		return max(short, d)
	}
	return short
}

// whileAway looks again and again for as long as an outage lasts.
func (s *stack) whileAway(d time.Duration, look func()) {
	s.t.Helper()
	over := time.NewTimer(d)
	defer over.Stop()
	again := time.NewTicker(250 * time.Millisecond)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			look()
		case <-over.C:
			return
		}
	}
}

// member is one instance of a service in this process, which is started again
// when it ends by itself, as a supervisor does.
type member struct {
	s         *stack
	name      string // <service>-<instance>
	telemetry string // address

	mu       sync.Mutex
	log      bytes.Buffer
	now      *telemetry.Telemetry
	restarts []error // why it ended
}

// Write keeps the member's log.
func (m *member) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.Write(p)
}

func (m *member) logged() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.log.String()
}

// lines counts the lines of the log that have all these words.
func (m *member) lines(words ...string) (n int) {
lines:
	for line := range strings.Lines(m.logged()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		n++
	}
	return n
}

// requireOutages checks that each outage of a component was logged and counted once, when it
// began, and logged once when it was over. A machine that stands still for seconds may make
// an outage more of them, or two; not the dozens that a component would whose looks at
// what is away were each taken for one.
func (m *member) requireOutages(component string, least int) {
	m.s.t.Helper()
	name := fmt.Sprintf("component=%q", component)
	if !strings.ContainsAny(component, " .") {
		name = "component=" + component
	}
	began := m.lines("component is not ready", name+" ")
	require.GreaterOrEqual(m.s.t, began, least, "%s: %s", m.name, m.logged())
	require.LessOrEqual(m.s.t, began, least+2, "%s: %s", m.name, m.logged())
	require.EqualValues(m.s.t, began, m.metric("component_outages_total", "component="+component), m.name)
	require.Equal(m.s.t, began, m.lines("component is ready again", name+" "), "%s: %s", m.name, m.logged())
}

// metric is the sum of a metric's values with these labels, "name=value".
func (m *member) metric(name string, labels ...string) (sum float64) {
	m.s.t.Helper()
	m.mu.Lock()
	families, err := m.now.Registry.Gather()
	m.mu.Unlock()
	require.NoError(m.s.t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		require.NotEmpty(m.s.t, f.GetHelp())
		for _, one := range f.GetMetric() {
			if hasLabels(one, labels) {
				sum += one.GetGauge().GetValue() + one.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func hasLabels(m *dto.Metric, labels []string) bool {
	have := map[string]bool{}
	for _, l := range m.GetLabel() {
		have[l.GetName()+"="+l.GetValue()] = true
	}
	for _, l := range labels {
		if !have[l] {
			return false
		}
	}
	return true
}

func (m *member) ended() []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]error(nil), m.restarts...)
}

// member runs an instance of a service until the test ends. Changes are "NAME=value".
func (s *stack) member(service string, instance int, changes ...string) *member {
	t := s.t
	t.Helper()
	m := &member{s: s, name: fmt.Sprintf("%s-%d", service, instance), telemetry: freeAddr(t)}
	env := maps.Clone(s.env)
	env["INSTANCE"] = strconv.Itoa(instance)
	if instance > 0 { // links lead to the first
		env["COLLECTOR_ADDR"] = free
	}
	for _, change := range changes {
		name, value, _ := strings.Cut(change, "=")
		env[name] = value
	}
	m.supervise(5*time.Second, func(ctx context.Context) error { return m.live(ctx, service, env) })
	s.eventually(m.name+" begins", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.now != nil
	})
	return m
}

// supervise lives one life after another until the test ends, which leaves the last
// so long to drain.
func (m *member) supervise(drain time.Duration, life func(context.Context) error) {
	t := m.s.t
	t.Helper()
	cancellable, stop := context.WithCancel(context.Background())
	ctx := lifecycle.WithDrain(cancellable, drain)
	over := make(chan struct{})
	go func() {
		defer close(over)
		for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
			err := life(ctx)
			if ctx.Err() != nil {
				return
			}
			m.mu.Lock()
			m.restarts = append(m.restarts, err)
			m.mu.Unlock()
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		<-over
		if t.Failed() {
			t.Logf("%s ended by itself %d times: %v\n%s", m.name, len(m.ended()), m.ended(), tail(m.logged()))
		}
	})
}

// live is one life of a member.
func (m *member) live(ctx context.Context, service string, env map[string]string) error {
	tel := telemetry.New(service, telemetry.Config{Addr: m.telemetry, LogFormat: "text"}, m)
	svc, err := construct(service, env, tel)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	serving, stop := context.WithCancel(context.Background())
	defer func() { stop(); <-served }()
	go func() { served <- tel.Serve(serving) }()
	m.mu.Lock()
	m.now = tel
	m.mu.Unlock()
	return svc.Run(ctx)
}

// one instance of every service.
func (s *stack) members(changes ...string) map[string]*member {
	s.t.Helper()
	all := map[string]*member{}
	for _, service := range serviceNames {
		all[service] = s.member(service, 0, changes...)
	}
	return all
}

// health is what hikyaku status says.
type health struct {
	Well     bool
	Wrong    []string
	Services []struct {
		Member     string
		Answers    bool
		Components []struct {
			Name, Reason string
			Ready        bool
			Since        time.Time
		}
	}
	Groups []struct {
		Group       string
		Members     []string
		Lag_records int64
	}
	Runs []struct {
		State    string
		WaitsFor string `json:"waits_for"`
	}
	DeadLetters map[string]int64 `json:"dead_letters"`
}

func (h *health) said() string { return strings.Join(h.Wrong, "\n") }

// status asks hikyaku status about these members; it exits 3 if anything is wrong.
func (s *stack) status(members ...*member) health {
	s.t.Helper()
	var addrs []string
	for _, m := range members {
		addrs = append(addrs, m.telemetry)
	}
	env := maps.Clone(s.env)
	env["STATUS_ADDRS"] = strings.Join(addrs, ",")
	var out, errs bytes.Buffer
	code := console.Main([]string{"status", "--json", "--timeout", "3s"}, envconfig.MapLookuper(env), strings.NewReader(""), &out, &errs)
	var h health
	require.NoError(s.t, json.Unmarshal(out.Bytes(), &h), "%s%s", out.String(), errs.String())
	require.Equal(s.t, map[bool]int{true: 0, false: 3}[h.Well], code, errs.String())
	return h
}

// saysSoon waits until status says all of the words, and saysWell until it finds nothing wrong.
func (s *stack) saysSoon(words []string, members ...*member) {
	s.t.Helper()
	var h health
	s.eventually(fmt.Sprintf("status says %q", words), func() bool {
		h = s.status(members...)
		for _, w := range words {
			if !strings.Contains(h.said(), w) {
				return false
			}
		}
		return true
	})
}

func (s *stack) saysWell(members ...*member) {
	s.t.Helper()
	var h health
	s.eventually("status finds nothing wrong", func() bool {
		h = s.status(members...)
		return h.Well
	})
}

func everybody(all ...map[string]*member) (out []*member) {
	for _, members := range all {
		for _, service := range serviceNames {
			out = append(out, members[service])
		}
	}
	return out
}

// link is a network that can be cut or made slow: toxiproxy in this process.
type link struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
}

func newLink(t *testing.T, upstream string) *link {
	t.Helper()
	quiet := zerolog.Nop()
	l := &link{t: t, proxy: toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), quiet), "link", freeAddr(t), upstream)}
	require.NoError(t, l.proxy.Start())
	t.Cleanup(l.proxy.Stop)
	return l
}

func (l *link) addr() string { return l.proxy.Listen }

// refuse ends the connections and takes no more, until accept.
func (l *link) refuse() { l.proxy.Stop() }

func (l *link) accept() {
	l.t.Helper()
	require.NoError(l.t, l.proxy.Start())
}

// swallow lets connections stand, and nothing through them, until heal.
func (l *link) swallow() {
	l.add("timeout", "upstream", `{"timeout": 0}`)
	l.add("timeout", "downstream", `{"timeout": 0}`)
}

// slow delays every answer.
func (l *link) slow(d time.Duration) {
	l.add("latency", "downstream", fmt.Sprintf(`{"latency": %d, "jitter": %d}`, d.Milliseconds(), d.Milliseconds()/2))
}

func (l *link) add(kind, stream, attributes string) {
	l.t.Helper()
	_, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(`{"type": %q, "stream": %q, "attributes": %s}`, kind, stream, attributes)))
	require.NoError(l.t, err)
}

func (l *link) heal() { l.proxy.Toxics.ResetToxics(context.Background()) }

// kafkaLink is a link to a broker. A broker tells its clients its own address,
// past any link; what it says is changed on the way.
func kafkaLink(t *testing.T, broker string) *link {
	t.Helper()
	ln, err := net.Listen("tcp", free)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	l := newLink(t, ln.Addr().String())
	host, portText, err := net.SplitHostPort(l.addr())
	require.NoError(t, err)
	port, err := strconv.Atoi(portText)
	require.NoError(t, err)
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				server, err := net.Dial("tcp", broker)
				if err != nil {
					return
				}
				defer server.Close()
				(&kafkaConn{asked: map[int32]askedFor{}, host: host, port: int32(port)}).pass(client, server)
			}()
		}
	}()
	return l
}

// kafkaConn passes frames on and notes what each answer will be one to.
type kafkaConn struct {
	host string
	port int32

	mu    sync.Mutex
	asked map[int32]askedFor
}

type askedFor struct{ key, version int16 }

func (k *kafkaConn) pass(client, server net.Conn) {
	go func() {
		defer server.Close()
		frames(client, server, func(f []byte) []byte {
			if len(f) >= 8 {
				k.mu.Lock()
				k.asked[int32(binary.BigEndian.Uint32(f[4:]))] = askedFor{int16(binary.BigEndian.Uint16(f)), int16(binary.BigEndian.Uint16(f[2:]))}
				k.mu.Unlock()
			}
			return f
		})
	}()
	defer client.Close()
	frames(server, client, k.answer)
}

// frames copies Kafka's frames, each through change, until either side is gone.
func frames(from io.Reader, to io.Writer, change func([]byte) []byte) {
	in := bufio.NewReaderSize(from, 64<<10)
	var size [4]byte
	for {
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(in, frame); err != nil {
			return
		}
		frame = change(frame)
		if _, err := to.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
			return
		}
	}
}

// answer puts the link's address in place of the broker's.
func (k *kafkaConn) answer(frame []byte) []byte {
	if len(frame) < 4 {
		return frame
	}
	correlation := int32(binary.BigEndian.Uint32(frame))
	k.mu.Lock()
	a, ok := k.asked[correlation]
	delete(k.asked, correlation)
	k.mu.Unlock()
	if !ok || a.key != int16(kmsg.Metadata) && a.key != int16(kmsg.FindCoordinator) && a.key != int16(kmsg.DescribeCluster) {
		return frame
	}
	resp := kmsg.ResponseForKey(a.key)
	resp.SetVersion(a.version)
	header := frame[:4]
	if resp.IsFlexible() {
		header = frame[:5] // no tags: one zero
	}
	if resp.ReadFrom(frame[len(header):]) != nil {
		return frame
	}
	switch r := resp.(type) {
	case *kmsg.MetadataResponse:
		for i := range r.Brokers {
			r.Brokers[i].Host, r.Brokers[i].Port = k.host, k.port
		}
	case *kmsg.FindCoordinatorResponse:
		r.Host, r.Port = k.host, k.port
		for i := range r.Coordinators {
			r.Coordinators[i].Host, r.Coordinators[i].Port = k.host, k.port
		}
	case *kmsg.DescribeClusterResponse:
		for i := range r.Brokers {
			r.Brokers[i].Host, r.Brokers[i].Port = k.host, k.port
		}
	}
	return resp.AppendTo(bytes.Clone(header))
}
