package telemetry

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Status is what a process says of itself on /statusz.
type Status struct {
	Service    string            `json:"service"`
	Member     string            `json:"member"` // <service>-<INSTANCE>; empty until it is known
	StartedAt  time.Time         `json:"started_at"`
	Ready      bool              `json:"ready"` // as /readyz has it
	Stopping   bool              `json:"stopping"`
	Components []ComponentStatus `json:"components"` // sorted by name
	Stuck      []string          `json:"stuck"`      // loops that stand still, as /healthz has them
}

// ComponentStatus is how one part of it fares.
type ComponentStatus struct {
	Name   string    `json:"name"`
	Ready  bool      `json:"ready"`
	Reason string    `json:"reason"` // why it is not
	Since  time.Time `json:"since"`  // of the last change between ready and not
}

// Status returns how the process fares now.
func (t *Telemetry) Status() Status {
	s := Status{Service: t.service, StartedAt: t.startedAt, Stuck: t.Health.Stuck()}
	if s.Stuck == nil {
		s.Stuck = []string{}
	}
	if member := t.member.Load(); member != nil {
		s.Member = *member
	}
	s.Components, s.Stopping = t.Health.list()
	s.Ready = len(t.Health.NotReady()) == 0
	return s
}

func (h *Health) list() (components []ComponentStatus, stopping bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	components = []ComponentStatus{}
	for name, c := range h.components {
		s := ComponentStatus{Name: name, Ready: c.err == nil, Since: c.since.UTC()}
		if c.err != nil {
			s.Reason = c.err.Error()
		}
		components = append(components, s)
	}
	slices.SortFunc(components, func(a, b ComponentStatus) int { return strings.Compare(a.Name, b.Name) })
	return components, h.stopping
}

// SetMember says which instance of its service this is.
func (t *Telemetry) SetMember(member string) { t.member.Store(&member) }

func (t *Telemetry) serveStatus(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(t.Status())
}
