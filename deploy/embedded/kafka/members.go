package kafka

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A killed broker would forget who is a member of its groups. Each would lose its
// place, and what a sender had claimed and not called would be taken for called.
// So who holds what is written down when a group has settled, and the start after a
// kill tells the broker, in the form in which it remembers a clean stop. Members
// without an instance id join again, as at any restart of theirs.

// membersFile holds the groups that have settled, as JSON, by name.
const membersFile = "members.json"

type groupMembers struct {
	Generation int32             `json:"generation"`
	Protocol   string            `json:"protocol"`
	Leader     string            `json:"leader"`  // its instance id
	Members    map[string]member `json:"members"` // by instance id
}

type member struct {
	ID         string `json:"id"`
	Assignment []byte `json:"assignment"`
	Session    int32  `json:"session_ms"`
	Rebalance  int32  `json:"rebalance_ms"`
}

// memberships watches the requests by which groups settle.
type memberships struct {
	path    string
	log     *slog.Logger
	joined  map[[2]string]member    // by group and instance id, of which the timeouts
	settled map[string]groupMembers // by group
	assigns map[string]assignments  // by group: what its leader has said last
}

type assignments struct {
	generation int32
	leader     string
	of         map[string][]byte // by member id
}

// watchMembers begins to write down who is a member of what, beside those who are.
func watchMembers(cluster *kfake.Cluster, dir string, log *slog.Logger) error {
	settled, err := readMembers(dir)
	if err != nil {
		return err
	}
	m := &memberships{
		path: filepath.Join(dir, membersFile), log: log,
		joined: map[[2]string]member{}, settled: settled, assigns: map[string]assignments{},
	}
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup} {
		cluster.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			if m.see(req) {
				if err := replaceJSON(m.path, m.settled); err != nil {
					m.log.Warn("a kill would make the members of groups join again", "error", err)
				}
			}
			return nil, nil, false
		})
	}
	return nil
}

// readMembers reads what was written down; nothing, if that was by no such broker.
func readMembers(dir string) (map[string]groupMembers, error) {
	text, err := os.ReadFile(filepath.Join(dir, membersFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	settled := map[string]groupMembers{}
	if json.Unmarshal(text, &settled) != nil {
		return map[string]groupMembers{}, nil
	}
	return settled, nil
}

// see is called before the broker does what is asked, and says whether who is settled
// has changed. What the broker refuses does no harm: the start compares what it
// finds with the broker's own log.
func (m *memberships) see(req kmsg.Request) bool {
	switch req := req.(type) {
	case *kmsg.JoinGroupRequest:
		if req.InstanceID != nil {
			m.joined[[2]string{req.Group, *req.InstanceID}] = member{Session: req.SessionTimeoutMillis, Rebalance: req.RebalanceTimeoutMillis}
		}
	case *kmsg.SyncGroupRequest:
		if req.InstanceID == nil {
			delete(m.settled, req.Group)
			return true
		}
		if len(req.GroupAssignment) > 0 {
			a := assignments{req.Generation, *req.InstanceID, map[string][]byte{}}
			for _, one := range req.GroupAssignment {
				a.of[one.MemberID] = one.MemberAssignment
			}
			m.assigns[req.Group] = a
		}
		return m.settle(req)
	}
	return false
}

func (m *memberships) settle(req *kmsg.SyncGroupRequest) bool {
	g := m.settled[req.Group]
	if g.Generation != req.Generation || g.Members == nil {
		g = groupMembers{Generation: req.Generation, Members: map[string]member{}}
	}
	if req.Protocol != nil {
		g.Protocol = *req.Protocol
	}
	one := m.joined[[2]string{req.Group, *req.InstanceID}]
	one.ID = req.MemberID
	one.Assignment = g.Members[*req.InstanceID].Assignment // who comes back under its name keeps it
	g.Members[*req.InstanceID] = one
	if a := m.assigns[req.Group]; a.generation == req.Generation {
		g.Leader = a.leader
		for name, one := range g.Members {
			if assignment, ok := a.of[one.ID]; ok {
				one.Assignment = assignment
				g.Members[name] = one
			}
		}
	}
	m.settled[req.Group] = g
	return true
}

// restoreMembers tells the broker, before it starts after a kill, who was a member of
// its groups: of those whose generation and members its own log knows as well.
func restoreMembers(dir string) error {
	settled, err := readMembers(dir)
	if err != nil {
		return err
	}
	generations, ids, err := knownMembers(dir)
	if err != nil {
		return err
	}
	// kfake's forms.
	type sessionMember struct {
		ID         string    `json:"id"`
		Instance   string    `json:"instance"`
		Protocols  []string  `json:"protocols"`
		Assignment []byte    `json:"assignment"`
		Session    int32     `json:"sessionTimeoutMs"`
		Rebalance  int32     `json:"rebalanceTimeoutMs"`
		Heartbeat  time.Time `json:"lastHeartbeat"`
	}
	type sessionGroup struct {
		Leader  string          `json:"leader"`
		Members []sessionMember `json:"members"`
		State   int             `json:"state"`
	}
	const stable = 1
	now := time.Now()
	groups := map[string]sessionGroup{}
	for name, g := range settled {
		s := sessionGroup{Leader: g.Members[g.Leader].ID, State: stable}
		whole := g.Generation == generations[name] && len(g.Members) == len(ids[name])
		for instance, m := range g.Members {
			whole = whole && m.ID == ids[name][instance] && m.Assignment != nil && m.Session > 0
			s.Members = append(s.Members, sessionMember{m.ID, instance, []string{g.Protocol}, m.Assignment, m.Session, m.Rebalance, now})
		}
		if whole && s.Leader != "" {
			groups[name] = s
		}
	}
	return replaceJSON(filepath.Join(dir, "session_state.json"), map[string]any{"shutdownAt": now, "classicGroups": groups})
}

// knownMembers reads, from the broker's log, each group's generation and the ids of
// its members, by instance id.
func knownMembers(dir string) (map[string]int32, map[string]map[string]string, error) {
	generations, ids := map[string]int32{}, map[string]map[string]string{}
	err := eachEntry(filepath.Join(dir, "groups.log"), func(raw []byte) {
		var e struct {
			Type       string `json:"type"`
			Group      string `json:"g"`
			Generation int32  `json:"gen"`
			Instance   string `json:"instance"`
			Member     string `json:"member"` // none: it has left
		}
		if json.Unmarshal(raw, &e) != nil {
			return
		}
		switch {
		case e.Type == "meta":
			generations[e.Group] = e.Generation
		case e.Type == "static" && e.Member == "":
			delete(ids[e.Group], e.Instance)
		case e.Type == "static":
			if ids[e.Group] == nil {
				ids[e.Group] = map[string]string{}
			}
			ids[e.Group][e.Instance] = e.Member
		}
	})
	return generations, ids, err
}
