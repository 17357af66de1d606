package drill

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
)

// kind is what is done to a process.
type kind string

const (
	killed    kind = "killed"    // SIGKILL, and started again at once
	paused    kind = "paused"    // SIGSTOP beyond the session timeout, then SIGCONT
	crashed   kind = "crashed"   // died of itself at a named point
	stackDown kind = "stack"     // SIGKILL of the embedded stack
	ended     kind = "ended"     // ended of itself though nobody asked
	loading        = "loading"   // phase: while the list is imported
	sending        = "sending"   // phase: while the campaign runs
	stackName      = "the stack" // as the timeline calls it
)

// planned is what will be done, and when.
type planned struct {
	Kind     kind
	Service  string
	Instance int
	Phase    string
	// At is, while sending, the share of the audience that is settled; while
	// loading, seconds since the list was dropped.
	At    float64
	Delay time.Duration // on top of it, so that it is no round moment
}

// armed is a named point at which an instance will die of itself.
type armed struct {
	Service  string
	Instance int
	Point    string // as CRASH_AT takes it: point#n
}

// services are those of the pipeline, in its order.
func services() []string {
	return []string{topic.Importer, topic.Resolver, topic.Renderer, topic.Sender, topic.Collector}
}

// schedule is everything that will be done, made from the seed alone.
type schedule struct {
	Events []planned
	Armed  []armed
}

func plan(o options) schedule {
	random := rand.New(rand.NewPCG(o.seed, 0x6472_696c_6c00))
	var s schedule
	one := func(service, phase string, at float64, k kind) planned {
		return planned{Kind: k, Service: service, Instance: random.IntN(o.instances), Phase: phase, At: at, Delay: time.Duration(random.IntN(300)) * time.Millisecond}
	}
	if o.points {
		s.Armed = arm(random, o)
	} else {
		// A fifth while the list is loaded: only these work then.
		early := o.kills / 5
		for i := range early {
			service := []string{topic.Importer, topic.Collector, topic.Resolver}[i%3]
			s.Events = append(s.Events, one(service, loading, 0.2+4*random.Float64(), killed))
		}
		// Each of five is another service; the sender comes first, so that one kill is one of a sender.
		round := []string{topic.Sender}
		n := o.kills - early
		for i := range n {
			if i > 0 && len(round) == 0 {
				round = services()
				random.Shuffle(len(round), func(a, b int) { round[a], round[b] = round[b], round[a] })
			}
			at := (float64(i) + random.Float64()) / float64(n) * 0.95
			if n >= 5 && i == n-1 {
				at = 1 // while the run is being balanced
			}
			s.Events = append(s.Events, one(round[0], sending, at, killed))
			round = round[1:]
		}
	}
	if o.sabotage != "" {
		// First: a point that is never passed must not stand before them.
		s.Armed = append(inHand(random, o.instances), s.Armed...)
	}
	if o.pause {
		order := services()
		random.Shuffle(len(order), func(a, b int) { order[a], order[b] = order[b], order[a] })
		for i, service := range order {
			s.Events = append(s.Events, one(service, sending, (float64(i)+random.Float64())/float64(len(order))*0.9, paused))
		}
	}
	if o.stackKill {
		s.Events = append(s.Events, planned{Kind: stackDown, Phase: sending, At: 0.25 + random.Float64()/2})
	}
	slices.SortStableFunc(s.Events, func(a, b planned) int {
		if c := strings.Compare(a.Phase, b.Phase); c != 0 {
			return c // loading comes before sending
		}
		switch {
		case a.At < b.At:
			return -1
		case a.At > b.At:
			return 1
		}
		return 0
	})
	return s
}

// arm draws points that the running services pass, and how often each is passed
// before it kills: few times or many, on a logarithmic scale.
func arm(random *rand.Rand, o options) []armed {
	var points []crash.Point
	for _, p := range crash.Points() {
		if ownerOf(string(p)) != "" {
			points = append(points, p)
		}
	}
	var out []armed
	for range o.kills {
		p := string(points[random.IntN(len(points))])
		n := int(math.Exp(random.Float64() * math.Log(150)))
		service := ownerOf(p)
		if service == topic.Importer {
			n = 1 + n%3 // an import passes each once or a few times
		}
		out = append(out, armed{Service: service, Instance: random.IntN(o.instances), Point: fmt.Sprintf("%s#%d", p, n)})
	}
	return out
}

// deathsInHand is how often each sender dies with a mail's answer in hand when the
// claim is sabotaged: twice, as one answer in a hundred is a rejection.
const deathsInHand = 2

// inHand draws when senders die between the mail server's answer and its outcome.
// Only there the missing claim shows for sure: at a random moment of a short run
// a sender may have nothing on its way.
func inHand(random *rand.Rand, instances int) (out []armed) {
	for range deathsInHand {
		for i := range instances {
			out = append(out, armed{Service: topic.Sender, Instance: i, Point: fmt.Sprintf("%s#%d", crash.Answered.Of(topic.GroupSender), 1+random.IntN(20))})
		}
	}
	return out
}

// ownerOf is the service that passes a point; "" if none of those that keep running does.
func ownerOf(point string) string {
	first, _, _ := strings.Cut(point, ".")
	switch first {
	case "importer":
		return topic.Importer
	case "person", "shards", "driver", "ticks":
		return topic.Resolver
	case "renderer":
		return topic.Renderer
	case "sender":
		return topic.Sender
	case "sink", "intake", "tracking", "unsubscribe":
		return topic.Collector
	}
	return ""
}
