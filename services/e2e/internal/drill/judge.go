package drill

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// uncertainPerKill is how many people one kill of a sender may leave uncertain:
// two windows of 64 connections.
const uncertainPerKill = 128

// backWithin is how soon a service is back at work after its restart, if not told
// otherwise.
const backWithin = 5 * time.Second

// settlesWithin is how long after a sender is back what it left behind may still be
// recorded as uncertain, where the broker could not be asked what that was.
const settlesWithin = 20 * time.Second

// facts are what the drill found out; judge looks at nothing else.
type facts struct {
	Policy string
	Within time.Duration // in which who was killed is to be back at work
	State  string        // of the run
	// Balanced is what the balance sheet says; Differences are its lines that differ.
	Balanced    bool
	Differences map[string]int64

	// Audience are the people who must be accounted for: those of the list, whoever else the run knows.
	Audience map[string]bool
	// Class is what became of each, as ClickHouse has it; who is not in it has no row.
	Class map[string]string

	Witnessed bool // the mail server's index was seen
	// Mails is the number of mails per person, counted by the program that shares no code.
	Mails map[string]int

	// Uncertain are the outcomes uncertain, also those that a later answer overruled.
	Uncertain []uncertain
	// Unresolved is, per person, how often a call was asked without an answer being known.
	Unresolved map[string]int
	// LeftAt are those for whom a call stays without an answer because no other was to
	// be made: they had unsubscribed, say.
	LeftAt    map[string]bool
	Incidents []*incident
	Instances int // of the sender

	Joined, JoinedKnown     int      // acknowledged over HTTP or imported while services died; found in ClickHouse
	Lost                    []string // of them, who is not there
	Unsubscribed, Forgotten int      // acknowledged; of these not recorded in the profile
	Files, FilesDone        int
	Crowd                   []string // requests that were never acknowledged
}

type uncertain struct {
	Person string
	At     time.Duration // when it was recorded, since the drill began
	Source place
}

// place is where a message lay.
type place struct {
	Topic     string // without the namespace
	Partition int32
	Offset    int64
}

// incident is what was done to one process.
type incident struct {
	Kind     kind
	Service  string
	Instance int
	Point    string // crashed: where
	At       time.Duration
	Share    float64       // of the audience that was settled then
	Restart  time.Duration // when it was started or resumed
	Back     time.Duration // when it was at work again; 0: never, as far as was seen
	Ready    time.Duration // when it had joined its groups
	Awaited  string        // what it was last seen waiting for
	Again    bool          // it died again before it was back: nothing is known of its return
	Claimed  int           // of a sender: messages claimed and without an outcome at that moment, of those it held
	Seen     bool          // the broker told what it had claimed
	claims   map[place]bool
	Left     int    // people whom it left uncertain, overruled ones included
	Why      string // ended: its last words
}

func (i *incident) name() string {
	if i.Kind == stackDown {
		return stackName
	}
	return fmt.Sprintf("%s-%d", i.Service, i.Instance)
}

// away is how long it took from its restart to its return. While another instance of
// the service hangs (is paused) the group may have to wait for that one's session to
// end before it can share out the work, whoever comes back: that time does not count,
// nor does what the stack was away.
func (i *incident) away(all []*incident) time.Duration {
	if i.Back == 0 {
		return 0
	}
	away := i.Back - i.Restart
	free := i.Restart // counted up to here
	for _, o := range all {
		if o == i || o.Restart == 0 || (o.Kind != paused || o.Service != i.Service) && o.Kind != stackDown {
			continue
		}
		from, to := max(o.At, free), min(max(o.Restart, o.Back), i.Back)
		if to > from {
			away -= to - from
			free = to
		}
	}
	return away
}

// waited says what it was last seen waiting for.
func (i *incident) waited() string {
	if i.Awaited == "" {
		return ""
	}
	return "; last seen waiting: " + i.Awaited
}

// ofSender tells whether it can leave people uncertain.
func (i *incident) ofSender() bool { return i.Service == "sender" }

// verdict is what came of the facts.
type verdict struct {
	CopiesMax      int
	Repeats        int // mails beyond the first, all people together
	RepeatsAllowed int // messages claimed and without an outcome at the kills
	Twice          []string
	Missing        []string // people nobody can say anything about, or accepted without a mail
	Strangers      []string // people with a mail that the books do not know of
	Uncertain      int      // people whose class that is
	Unasked        []string // those of them who should have been asked for again
	Stray          int      // uncertain outcomes that no kill of a sender explains
	Broken         []string // the bars that broke, in words
}

func (v *verdict) broke(format string, a ...any) {
	v.Broken = append(v.Broken, fmt.Sprintf(format, a...))
}

// judge holds the facts against the bars.
func judge(f *facts, limit int) *verdict {
	v := &verdict{}
	atMostOnce := f.Policy == atMostOnce
	if f.State != "finished" {
		v.broke("the run did not finish: it is %s", f.State)
	}
	if !f.Balanced {
		v.broke("the balance is not exact: %s", differences(f.Differences))
	}
	v.copies(f, atMostOnce)
	v.people(f)
	if n := len(v.Missing); n > 0 {
		v.broke("%d people are missing: %s", n, few(v.Missing))
	}
	if n := len(v.Strangers); n > 0 {
		v.broke("%d people got a mail that the books do not show: %s", n, few(v.Strangers))
	}
	v.attribute(f, limit)
	if n := len(v.Unasked); n > 0 {
		v.broke("%d people are uncertain under at_least_once, which asks again: %s", n, few(v.Unasked))
	}
	if n := count(f.Class, "parked"); n > 0 {
		v.broke("%d messages are parked though nothing was poisoned", n)
	}
	for _, i := range f.Incidents {
		if i.Kind != killed && i.Kind != crashed || i.Again {
			continue
		}
		switch away := i.away(f.Incidents); {
		case i.Back == 0:
			v.broke("%s was not back at work after it was %s at %s%s", i.name(), i.Kind, clock(i.At), i.waited())
		case away > f.Within:
			v.broke("%s was back at work only %.1f s after its restart at %s%s", i.name(), away.Seconds(), clock(i.Restart), i.waited())
		}
	}
	if len(f.Lost) > 0 {
		v.broke("%d of %d people who joined meanwhile and were acknowledged are lost: %s", len(f.Lost), f.Joined, few(f.Lost))
	}
	if f.Forgotten > 0 {
		v.broke("%d of %d unsubscriptions that were acknowledged are lost", f.Forgotten, f.Unsubscribed)
	}
	if f.FilesDone < f.Files {
		v.broke("%d of %d files were not imported to the end", f.Files-f.FilesDone, f.Files)
	}
	if len(f.Crowd) > 0 {
		v.broke("%d requests were never answered well: %s", len(f.Crowd), few(f.Crowd))
	}
	return v
}

// copies judges how often each person got the mail.
func (v *verdict) copies(f *facts, atMostOnce bool) {
	claimed := map[place]bool{} // one message counts once, though two kills in a row found it so
	for _, i := range f.Incidents {
		for at := range i.claims {
			claimed[at] = true
		}
	}
	v.RepeatsAllowed = len(claimed)
	var beyond []string
	for person, n := range f.Mails {
		v.CopiesMax = max(v.CopiesMax, n)
		v.Repeats += n - 1
		if n > 1 {
			v.Twice = append(v.Twice, person)
		}
		if n > 1+f.Unresolved[person] {
			beyond = append(beyond, person)
		}
	}
	sort.Strings(v.Twice)
	sort.Strings(beyond)
	switch {
	case atMostOnce && len(v.Twice) > 0:
		v.broke("%d people got more than one copy: %s", len(v.Twice), few(v.Twice))
	case !atMostOnce && len(beyond) > 0:
		v.broke("%d people got a copy more than calls without a known answer explain: %s", len(beyond), few(beyond))
	case !atMostOnce && v.Repeats > v.RepeatsAllowed:
		v.broke("%d copies were repeated, but only %d messages were claimed and without an outcome at the kills", v.Repeats, v.RepeatsAllowed)
	}
}

// people judges that everybody is accounted for, by the books and by the mail server.
func (v *verdict) people(f *facts) {
	for person := range f.Audience {
		switch class := f.Class[person]; class {
		case "", "waiting", "unknown":
			v.Missing = append(v.Missing, person)
		case "uncertain":
			v.Uncertain++
			if f.Policy != atMostOnce && !(f.LeftAt[person] && f.Unresolved[person] > 0) {
				v.Unasked = append(v.Unasked, person)
			}
		case "accepted":
			if f.Witnessed && f.Mails[person] == 0 {
				v.Missing = append(v.Missing, person)
			}
		}
	}
	for person := range f.Mails {
		switch f.Class[person] {
		case "accepted", "uncertain":
		default:
			v.Strangers = append(v.Strangers, person)
		}
	}
	sort.Strings(v.Missing)
	sort.Strings(v.Strangers)
	sort.Strings(v.Unasked)
}

// attribute puts every outcome uncertain to the death or pause of a sender that
// explains it: the first one at which the broker listed the message as claimed.
// Where the broker could not be asked, the time must do.
func (v *verdict) attribute(f *facts, limit int) {
	var senders, stacks []*incident
	for _, i := range f.Incidents {
		i.Left = 0
		switch {
		case i.ofSender():
			senders = append(senders, i)
		case i.Kind == stackDown:
			stacks = append(stacks, i)
		}
	}
	slices.SortFunc(senders, func(a, b *incident) int { return int(a.At - b.At) })
	meanwhile := func(i *incident, u uncertain) bool {
		return u.At >= i.At && (i.Back == 0 || u.At <= i.Back+settlesWithin)
	}
	for _, u := range f.Uncertain {
		if n := slices.IndexFunc(senders, func(i *incident) bool {
			return i.Seen && i.claims[u.Source] || !i.Seen && meanwhile(i, u) && i.Left < limit
		}); n >= 0 {
			senders[n].Left++
		} else if n := slices.IndexFunc(stacks, func(i *incident) bool { return meanwhile(i, u) }); n >= 0 {
			// The embedded broker, killed in a rebalance, forgets who was a member: each sender
			// loses its claims as if it had died, those included that it knows it has not called.
			stacks[n].Left++
		} else {
			v.Stray++
		}
	}
	for _, i := range stacks {
		if i.Left > limit*f.Instances {
			v.broke("the stack's kill left %d people uncertain at %s, more than %d for each of %d senders", i.Left, clock(i.At), limit, f.Instances)
		}
	}
	if v.Stray > 0 {
		v.broke("%d people were left uncertain though no sender that died had claimed them: by other kills, or by none", v.Stray)
	}
	for _, i := range senders {
		if i.Left > limit {
			v.broke("%s left %d people uncertain at %s, more than %d", i.name(), i.Left, clock(i.At), limit)
		}
	}
}

func count(classes map[string]string, class string) (n int) {
	for _, c := range classes {
		if c == class {
			n++
		}
	}
	return n
}

// few names the first few of a list.
func few(list []string) string {
	const shown = 8
	if len(list) <= shown {
		return strings.Join(list, ", ")
	}
	return strings.Join(list[:shown], ", ") + ", …"
}

func differences(d map[string]int64) string {
	var all []string
	for name, n := range d {
		all = append(all, fmt.Sprintf("%s %+d", name, n))
	}
	sort.Strings(all)
	if len(all) == 0 {
		return "the run is not balanced"
	}
	return "ClickHouse counts " + strings.Join(all, ", ")
}

// clock writes a moment of the drill.
func clock(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
