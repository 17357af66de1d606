package drill

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

// held is a drill in which everything held: five people, one of whom a killed
// sender left uncertain, after she had got her mail.
func held() *facts {
	lay := place{"messages.email.bulk", 3, 40}
	return &facts{
		Policy: atMostOnce, Within: backWithin, State: "finished", Balanced: true, Witnessed: true, Instances: 2,
		Audience:   map[string]bool{"a": true, "b": true, "c": true, "d": true, "e": true},
		Class:      map[string]string{"a": "accepted", "b": "accepted", "c": "excluded", "d": "failed", "e": "uncertain"},
		Mails:      map[string]int{"a": 1, "b": 1, "e": 1},
		Uncertain:  []uncertain{{"e", 12 * time.Second, lay}},
		Unresolved: map[string]int{"e": 1},
		Incidents: []*incident{
			{Kind: killed, Service: topic.Sender, At: 10 * time.Second, Restart: 10 * time.Second, Back: 12 * time.Second, Seen: true, claims: map[place]bool{lay: true}},
			{Kind: killed, Service: topic.Renderer, At: 20 * time.Second, Restart: 20 * time.Second, Back: 25 * time.Second},
			{Kind: paused, Service: topic.Importer, At: 20 * time.Second, Restart: 40 * time.Second, Back: 60 * time.Second},
		},
		Joined: 3, JoinedKnown: 3, Unsubscribed: 2, Files: 2, FilesDone: 2,
	}
}

func TestADrillInWhichEverythingHeldHasNothingToComplainOf(t *testing.T) {
	t.Parallel()
	v := judge(held(), uncertainPerKill)
	require.Empty(t, v.Broken)
	require.Equal(t, 1, v.CopiesMax)
	require.Equal(t, 1, v.Uncertain)
}

// How soon is soon enough is said with --back.
func TestBackIsTheBarOfTheJudge(t *testing.T) {
	t.Parallel()
	for within, broken := range map[string]int{"4999ms": 1, "5s": 0} {
		o, err := parse([]string{"--back", within}, func(string) string { return "" }, io.Discard)
		require.NoError(t, err)
		f := held() // whose slowest needed 5 s
		f.Within = o.facts().Within
		require.Len(t, judge(f, uncertainPerKill).Broken, broken, within)
	}
}

// Every bar can break, and is named when it does.
func TestEveryBarCanBreak(t *testing.T) {
	t.Parallel()
	many := func(f *facts, n int, claimed bool) {
		for i := range n {
			person, lay := fmt.Sprint("x", i), place{"messages.email.bulk", 1, int64(i)}
			f.Audience[person], f.Class[person] = true, "uncertain"
			f.Uncertain = append(f.Uncertain, uncertain{person, 11 * time.Second, lay})
			if claimed {
				f.Incidents[0].claims[lay] = true
			}
		}
	}
	for _, c := range []struct {
		name   string
		change func(f *facts)
		says   string
	}{
		{"a second copy", func(f *facts) { f.Mails["b"] = 2 }, "1 people got more than one copy: b"},
		{"a second copy to one who is uncertain", func(f *facts) { f.Mails["e"] = 2 }, "more than one copy: e"},
		{"nothing is known of somebody", func(f *facts) { delete(f.Class, "d") }, "1 people are missing: d"},
		{"somebody waits for ever", func(f *facts) { f.Class["d"] = "waiting" }, "missing: d"},
		{"somebody is excluded for no reason", func(f *facts) { f.Class["c"] = "" }, "missing: c"},
		{"accepted, and no mail", func(f *facts) { delete(f.Mails, "a") }, "missing: a"},
		{"a mail to somebody excluded", func(f *facts) { f.Mails["c"] = 1 }, "1 people got a mail that the books do not show: c"},
		{"a mail to a stranger", func(f *facts) { f.Mails["z"] = 1 }, "do not show: z"},
		{"one too many uncertain by a kill", func(f *facts) { many(f, uncertainPerKill, true) }, "sender-0 left 129 people uncertain at 10.0 s, more than 128"},
		{"uncertain, and no sender had claimed it", func(f *facts) { many(f, 2, false) }, "2 people were left uncertain though no sender"},
		{"more uncertain by the stack's kill than two senders had claimed", func(f *facts) {
			f.Incidents = append(f.Incidents, &incident{Kind: stackDown, Service: "embedded", At: 10500 * time.Millisecond, Restart: 11 * time.Second, Back: 12 * time.Second})
			many(f, 2*uncertainPerKill+1, false)
		}, "the stack's kill left 257 people uncertain at 10.5 s"},
		{"uncertain long after the stack's kill", func(f *facts) {
			f.Incidents = append(f.Incidents, &incident{Kind: stackDown, Service: "embedded", At: time.Second, Restart: time.Second, Back: 2 * time.Second})
			many(f, 1, false)
			f.Uncertain[1].At = 23 * time.Second
		}, "1 people were left uncertain though no sender"},
		{"uncertain, and only a renderer died", func(f *facts) { f.Incidents = f.Incidents[1:] }, "1 people were left uncertain though no sender"},
		{"uncertain long after a kill of which the broker could not be asked", func(f *facts) {
			f.Incidents[0].Seen, f.Incidents[0].claims = false, nil
			f.Uncertain[0].At = 33 * time.Second
		}, "1 people were left uncertain though no sender"},
		{"the books do not balance", func(f *facts) { f.Balanced, f.Differences = false, map[string]int64{"accepted": -2} }, "not exact: ClickHouse counts accepted -2"},
		{"the run does not end", func(f *facts) { f.State = "balancing" }, "did not finish: it is balancing"},
		{"a service is slow to come back", func(f *facts) { f.Incidents[1].Back += time.Millisecond * 100 }, "renderer-0 was back at work only 5.1 s after its restart"},
		{"a service is slow though its fellow's hanging is taken off", func(f *facts) {
			f.Incidents[1].Back = 60 * time.Second
			f.Incidents = append(f.Incidents, &incident{Kind: paused, Service: topic.Renderer, Instance: 1, At: 18 * time.Second, Restart: 37 * time.Second, Back: 54 * time.Second})
		}, "renderer-0 was back at work only 6.0 s"},
		{"a service is slow while another one hangs", func(f *facts) {
			f.Incidents[1].Back = 60 * time.Second
			f.Incidents = append(f.Incidents, &incident{Kind: paused, Service: topic.Resolver, At: 18 * time.Second, Restart: 37 * time.Second, Back: 60 * time.Second})
		}, "renderer-0 was back at work only 40.0 s"},
		{"a service does not come back", func(f *facts) { f.Incidents[1].Back = 0 }, "renderer-0 was not back at work after it was killed at 20.0 s"},
		{"a service dies at a point and does not come back", func(f *facts) { f.Incidents[1].Kind, f.Incidents[1].Back = crashed, 0 }, "renderer-0 was not back"},
		{"somebody who joined is lost", func(f *facts) { f.Lost = []string{"j1"} }, "1 of 3 people who joined meanwhile and were acknowledged are lost: j1"},
		{"an unsubscription is lost", func(f *facts) { f.Forgotten = 1 }, "1 of 2 unsubscriptions"},
		{"a file is not imported", func(f *facts) { f.FilesDone = 1 }, "1 of 2 files"},
		{"a request is never answered", func(f *facts) { f.Crowd = []string{"u of x: 503"} }, "1 requests were never answered well: u of x: 503"},
		{"a message is parked", func(f *facts) { f.Class["d"] = "parked" }, "1 messages are parked"},
		{"uncertain although asked again", func(f *facts) { f.Policy = atLeastOnce }, "1 people are uncertain under at_least_once"},
		{"at least once: a copy that no unanswered call explains", func(f *facts) {
			f.Policy, f.Class["e"] = atLeastOnce, "accepted"
			f.Mails["b"] = 2
		}, "1 people got a copy more than calls without a known answer explain: b"},
		{"at least once: more copies than were claimed", func(f *facts) {
			f.Policy, f.Class["e"] = atLeastOnce, "accepted"
			f.Mails["e"], f.Unresolved["e"] = 3, 2
		}, "2 copies were repeated, but only 1 messages were claimed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := held()
			c.change(f)
			v := judge(f, uncertainPerKill)
			require.Len(t, v.Broken, 1, "%q", v.Broken)
			require.Contains(t, v.Broken[0], c.says)
		})
	}
}

func TestWhatIsNoBreach(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(f *facts)
	}{
		{"as many uncertain as a kill may leave", func(f *facts) {
			for i := range uncertainPerKill - 1 {
				person, lay := fmt.Sprint("x", i), place{"messages.email.bulk", 1, int64(i)}
				f.Audience[person], f.Class[person], f.Incidents[0].claims[lay] = true, "uncertain", true
				f.Uncertain = append(f.Uncertain, uncertain{person, time.Minute, lay}) // recorded late, but claimed then
			}
		}},
		{"as many uncertain by the stack's kill as senders had claimed", func(f *facts) {
			f.Incidents = append(f.Incidents, &incident{Kind: stackDown, Service: "embedded", At: 11 * time.Second, Restart: 11 * time.Second, Back: 12 * time.Second})
			for i := range 2 * uncertainPerKill {
				person := fmt.Sprint("x", i)
				f.Audience[person], f.Class[person] = true, "uncertain"
				f.Uncertain = append(f.Uncertain, uncertain{person, 13 * time.Second, place{"messages.email.bulk", 1, int64(i)}})
			}
		}},
		{"an uncertainty that a later answer overruled", func(f *facts) { f.Class["e"] = "accepted" }},
		{"an uncertain person without a mail", func(f *facts) { delete(f.Mails, "e") }},
		{"a paused service that takes its time", func(f *facts) { f.Incidents[2].Back += time.Hour }},
		{"a service whose fellow hung meanwhile, and whose broker was away", func(f *facts) {
			f.Incidents[1].Back = 60 * time.Second
			f.Incidents = append(f.Incidents,
				&incident{Kind: paused, Service: topic.Renderer, Instance: 1, At: 18 * time.Second, Restart: 37 * time.Second, Back: 40 * time.Second},
				&incident{Kind: stackDown, Service: "embedded", At: 38 * time.Second, Restart: 39 * time.Second, Back: 55 * time.Second})
		}},
		{"a service that dies again before it is back", func(f *facts) { f.Incidents[1].Back, f.Incidents[1].Again = 0, true }},
		{"a mail server that nobody can look into", func(f *facts) { f.Witnessed, f.Mails = false, map[string]int{} }},
		{"at least once: a copy of what was claimed", func(f *facts) {
			f.Policy, f.Class["e"], f.Mails["e"] = atLeastOnce, "accepted", 2
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := held()
			c.change(f)
			require.Empty(t, judge(f, uncertainPerKill).Broken)
		})
	}
}

func TestOneSeedIsOneDrill(t *testing.T) {
	t.Parallel()
	o := options{people: 500, kills: 20, instances: 3, pause: true, stackKill: true, seed: 7}
	require.Equal(t, plan(o), plan(o))
	other := o
	other.seed = 8
	require.NotEqual(t, plan(o), plan(other))
	o.points = true
	require.Equal(t, plan(o), plan(o))

	var first, again strings.Builder
	p, err := writePeople(&first, 7, 500)
	require.NoError(t, err)
	q, err := writePeople(&again, 7, 500)
	require.NoError(t, err)
	require.Equal(t, first.String(), again.String())
	require.Equal(t, p, q)
	require.Equal(t, 501, strings.Count(first.String(), "\n"))
	require.Less(t, p.Mailable, len(p.Audience))
	require.Greater(t, p.Mailable, 350)
}

func TestThePlanLeavesNothingOut(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		for _, instances := range []int{1, 3} {
			s := plan(options{kills: 20, instances: instances, pause: true, stackKill: true, seed: seed})
			kinds, victims, pauses := map[kind]int{}, map[string]int{}, map[string]int{}
			last := planned{Phase: loading}
			for _, e := range s.Events {
				kinds[e.Kind]++
				require.Less(t, e.Instance, instances)
				require.GreaterOrEqual(t, e.Instance, 0)
				switch e.Kind {
				case killed:
					victims[e.Service]++
				case paused:
					pauses[e.Service]++
				}
				if e.Phase == last.Phase {
					require.GreaterOrEqual(t, e.At, last.At)
				} else {
					require.Equal(t, sending, e.Phase, "the list is loaded before it is sent to")
				}
				if e.Phase == sending {
					require.LessOrEqual(t, e.At, 1.0)
				}
				last = e
			}
			require.Equal(t, map[kind]int{killed: 20, paused: 5, stackDown: 1}, kinds)
			for _, service := range services() {
				require.Positive(t, victims[service], service)
				require.Equal(t, 1, pauses[service], service)
			}
		}
	}
	one := plan(options{kills: 1, instances: 1})
	require.Len(t, one.Events, 1)
	require.Equal(t, topic.Sender, one.Events[0].Service, "one kill is the one that matters most")
	require.Empty(t, plan(options{instances: 1}).Events)
}

func TestPointsBelongToServicesThatKeepRunning(t *testing.T) {
	t.Parallel()
	s := plan(options{kills: 400, instances: 3, points: true, seed: 3})
	require.Empty(t, s.Events)
	require.Len(t, s.Armed, 400)
	of := map[string]int{}
	for _, a := range s.Armed {
		require.Equal(t, a.Service, ownerOf(a.Point))
		require.Regexp(t, `^[a-z]+\.[a-z]+#[1-9][0-9]*$`, a.Point)
		of[a.Service]++
	}
	require.Len(t, of, len(services()), "%v", of)
}

// Before anything else, as a point that it never passes would keep it from dying there.
func TestEachSabotagedSenderDiesWithAnAnswerInHand(t *testing.T) {
	t.Parallel()
	for _, o := range []options{{kills: 5, instances: 1, sabotage: "claim"}, {kills: 1, instances: 3, points: true, sabotage: "claim"}, {kills: 200, instances: 3, points: true, sabotage: "claim"}} {
		s := plan(o)
		died, other := map[int]int{}, map[int]bool{}
		for _, a := range s.Armed {
			switch {
			case a.Service != topic.Sender || other[a.Instance]:
			case strings.HasPrefix(a.Point, "sender.answered#"):
				died[a.Instance]++
			default:
				other[a.Instance] = true
			}
		}
		require.Len(t, died, o.instances)
		for i, n := range died {
			require.GreaterOrEqual(t, n, 2, i)
		}
	}
}

func TestFlagsThatMakeNoSenseAreRefused(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"--policy twice", "--people 5", "--instances 0", "--sabotage offsets", "--sabotage claim --kills 0", "--index x", "word"} {
		_, err := parse(strings.Fields(args), func(string) string { return "" }, &strings.Builder{})
		require.Equal(t, command.Usage, command.ExitCode(err), args)
	}
	o, err := parse([]string{"--seed", "5"}, func(string) string { return "" }, &strings.Builder{})
	require.NoError(t, err)
	require.True(t, o.stackKill)
	require.Equal(t, uint64(5), o.seed)
	o, err = parse(nil, func(name string) string { return map[string]string{"KAFKA_BROKERS": "a:1"}[name] }, &strings.Builder{})
	require.NoError(t, err)
	require.False(t, o.stackKill, "a broker that is not ours is left alone")
}

func TestTheTimelineShowsTheWorstOfEachMoment(t *testing.T) {
	t.Parallel()
	second := time.Second
	line := strip([]spell{{'-', 0}, {'x', 50 * second}, {'-', 51 * second}, {'p', 80 * second}, {'-', 90 * second}},
		[]*incident{{Kind: killed, At: 50 * second, Restart: 51 * second, Back: 54 * second}}, 0, 100*second)
	require.Equal(t, 100, len([]rune(line)))
	require.Equal(t, "─✗✗▒▒▒─", string([]rune(line)[49:56]))
	require.Equal(t, "─zzzzzzzzzzz─", string([]rune(line)[79:92]))
}

func TestAPersonIsKnownByTheirAddress(t *testing.T) {
	t.Parallel()
	for address, person := range map[string]string{"u000001@example.test": "u000001", "<U000002+451@example.test>": "u000002", "f01-00003@example.test": "f01-00003"} {
		require.Equal(t, person, personOf(address))
	}
}
