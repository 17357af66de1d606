package telemetry_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestChangesOfHealthAreLoggedOnce(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	tel := telemetry.New("sink", telemetry.Config{}, &log)
	tel.Health.Set("clickhouse", nil)
	if log.Len() != 0 {
		t.Errorf("being fine from the start is no news: %s", &log)
	}
	for _, reason := range []string{"refused", "refused", "timed out"} {
		tel.Health.Set("clickhouse", errors.New(reason))
	}
	if n := strings.Count(log.String(), "component is not ready"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
	if code, body := get(t, tel.Handler(), "/readyz"); code != 503 || body != "clickhouse: timed out\n" {
		t.Errorf("got %d %q", code, body)
	}
	tel.Health.Set("clickhouse", nil)
	tel.Health.Set("clickhouse", nil)
	if n := strings.Count(log.String(), "component is ready again"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
	tel.Health.Set("clickhouse", errors.New("refused"))
	if n := strings.Count(log.String(), "component is not ready"); n != 2 {
		t.Errorf("the second outage was logged %d times:\n%s", n-1, &log)
	}
	if !strings.Contains(log.String(), "service=sink") || !strings.Contains(log.String(), "component=clickhouse") {
		t.Errorf("attributes are missing:\n%s", &log)
	}
}

func TestReadinessNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	tel := telemetry.New("sink", telemetry.Config{}, io.Discard)
	h := tel.Handler()
	if code, _ := get(t, h, "/readyz"); code != 200 {
		t.Errorf("nothing is missing: %d", code)
	}
	tel.Health.Set("registry", errors.New("refused"))
	tel.Health.Set("kafka", errors.New("no broker"))
	if code, body := get(t, h, "/readyz"); code != 503 || body != "kafka: no broker\nregistry: refused\n" {
		t.Errorf("got %d %q", code, body)
	}
	if _, body := get(t, h, "/metrics"); !strings.Contains(body, `component_ready{component="kafka"} 0`) || !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics lack health or runtime:\n%s", body)
	}
	if code, _ := get(t, h, "/healthz"); code != 200 {
		t.Error("waiting for something is not being dead")
	}
	tel.Health.Set("registry", nil)
	tel.Health.Set("kafka", nil)
	tel.Health.Stop()
	if code, body := get(t, h, "/readyz"); code != 503 || body != "stopping\n" {
		t.Errorf("got %d %q", code, body)
	}
}

// Whoever routes work by readiness must not be told "ready" by a process that
// has not looked yet; and every start would otherwise be a warning.
func TestWhatIsOnItsWayIsNotReadyAndNoNews(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	tel := telemetry.New("sender", telemetry.Config{}, &log)
	h := tel.Handler()
	tel.Health.Expect("group sender", errors.New("not yet a member"))
	tel.Health.Expect("group sender", errors.New("not yet a member"))
	if code, body := get(t, h, "/readyz"); code != 503 || body != "group sender: not yet a member\n" {
		t.Errorf("got %d %q", code, body)
	}
	tel.Health.Set("group sender", nil)
	if code, _ := get(t, h, "/readyz"); code != 200 || log.Len() != 0 {
		t.Errorf("got %d, logged %s", code, &log)
	}
	tel.Health.Expect("group sender", errors.New("not yet a member again"))
	if n := strings.Count(log.String(), "component is not ready"); n != 1 {
		t.Errorf("a second way is news, once: %s", &log)
	}
}

func TestStatusSaysWhatIsWrongAndSinceWhen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tel := telemetry.New("sink", telemetry.Config{}, io.Discard)
		tel.SetMember("sink-0")
		status := func() (s telemetry.Status) {
			if _, body := get(t, tel.Handler(), "/statusz"); json.Unmarshal([]byte(body), &s) != nil {
				t.Fatal(body)
			}
			return s
		}
		tel.Health.Set("clickhouse", nil)
		tel.Health.Set("kafka", nil)
		time.Sleep(time.Minute)
		began := time.Now()
		tel.Health.Set("clickhouse", errors.New("refused"))
		time.Sleep(time.Minute)
		tel.Health.Set("clickhouse", errors.New("timed out"))
		s := status()
		if s.Service != "sink" || s.Member != "sink-0" || s.Ready || len(s.Components) != 2 {
			t.Fatalf("%+v", s)
		}
		if c := s.Components[0]; c.Name != "clickhouse" || c.Ready || c.Reason != "timed out" || !c.Since.Equal(began) {
			t.Errorf("%+v", c)
		}
		time.Sleep(time.Minute)
		tel.Health.Set("clickhouse", nil)
		if s := status(); !s.Ready || s.Components[0].Reason != "" || !s.Components[0].Since.Equal(time.Now()) {
			t.Errorf("%+v", s)
		}
		if _, body := get(t, tel.Handler(), "/metrics"); !strings.Contains(body, `component_outages_total{component="clickhouse"} 1`) || !strings.Contains(body, `component_outages_total{component="kafka"} 0`) {
			t.Error(body)
		}
		tel.Health.Stop()
		if s := status(); s.Ready || !s.Stopping {
			t.Errorf("%+v", s)
		}
	})
}

func TestALoopThatStandsStillIsNotAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tel := telemetry.New("sink", telemetry.Config{}, io.Discard)
		h := tel.Handler()
		tel.Health.Beat("person loop", time.Minute)
		time.Sleep(time.Minute)
		if code, _ := get(t, h, "/healthz"); code != 200 {
			t.Errorf("within its time: %d", code)
		}
		time.Sleep(time.Second)
		if code, body := get(t, h, "/healthz"); code != 503 || !strings.HasPrefix(body, "person loop: no turn for 1m1s") {
			t.Errorf("got %d %q", code, body)
		}
		tel.Health.Rest("person loop")
		if code, _ := get(t, h, "/healthz"); code != 200 {
			t.Errorf("a loop that ended on purpose counts as stuck: %d", code)
		}
	})
}

func TestServeAnswersUntilItIsToldToStop(t *testing.T) {
	t.Parallel()
	tel := telemetry.New("sink", telemetry.Config{Addr: "127.0.0.1:0"}, io.Discard)
	if err := tel.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tel.Serve(ctx) }()
	r, err := http.Get("http://" + tel.Addr() + "/readyz")
	if err != nil || r.StatusCode != 200 {
		t.Fatalf("got %v, %v", r, err)
	}
	r.Body.Close()
	stop()
	if err := <-done; err != nil {
		t.Errorf("stopping is no failure: %v", err)
	}
}

func TestATakenPortIsNamedWithItsVariable(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = telemetry.New("sink", telemetry.Config{Addr: l.Addr().String()}, io.Discard).Serve(t.Context())
	if err == nil || !strings.Contains(err.Error(), "TELEMETRY_ADDR") || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("got %v", err)
	}
}

func TestWithoutAnAddressNothingIsServed(t *testing.T) {
	t.Parallel()
	tel := telemetry.New("sink", telemetry.Config{}, io.Discard)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if err := tel.Serve(ctx); err != nil || tel.Addr() != "" {
		t.Errorf("got %v, %q", err, tel.Addr())
	}
}

func TestTheLogFormatIsChecked(t *testing.T) {
	t.Parallel()
	if err := (telemetry.Config{LogFormat: "xml"}).Validate(); err == nil || !strings.Contains(err.Error(), "LOG_FORMAT") {
		t.Errorf("got %v", err)
	}
	var log strings.Builder
	telemetry.New("sink", telemetry.Config{LogFormat: "json"}, &log).Log.Info("hello")
	if !strings.HasPrefix(log.String(), "{") {
		t.Errorf("got %s", &log)
	}
}
