package kafka_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// The delivery matrix: what the handler says × whether the commit succeeds × what
// happens to the loop meanwhile → what was put out, committed and parked. It holds
// for every service, because every service runs in one of the two loops.

type matrixCase struct {
	handler string // ok, poison, transient, fatal
	commit  string // ok, fails
	during  string // steady, rebalance, shutdown
}

func matrix() (cases []matrixCase) {
	for _, h := range []string{"ok", "poison", "transient", "fatal"} {
		for _, c := range []string{"ok", "fails"} {
			for _, d := range []string{"steady", "rebalance", "shutdown"} {
				cases = append(cases, matrixCase{h, c, d})
			}
		}
	}
	return cases
}

func (m matrixCase) String() string { return m.handler + "/commit " + m.commit + "/" + m.during }

var people = []string{"a", "b", "c", "bad", "d", "e", "f", "g"}

// world is one run of the matrix: a broker with one request per person.
type world struct {
	t *testing.T
	matrixCase
	k    *kafkatest.Kafka
	ends map[int32]int64 // of the input

	once   sync.Once
	signal func()                                                         // stops the first member
	second func(kafka.Config, *kafka.Cluster) func(context.Context) error // its loop
	stops  []func() error
}

func newWorld(t *testing.T, m matrixCase) *world {
	w := &world{t: t, matrixCase: m, k: kafkatest.Start(t, kafkatest.SessionTimeout(3*time.Second)), ends: map[int32]int64{0: 0, 1: 0, 2: 0, 3: 0}}
	c := w.k.Cluster(t, topic.Renderer)
	for _, p := range people {
		r, err := c.Record(topic.MessageRequestsBulk, p, request(p))
		require.NoError(t, err)
		if m.during != "rebalance" {
			r.Partition = 0 // all of them in the first poll
		}
		w.k.Produce(t, r)
		w.ends[r.Partition]++
	}
	if m.commit == "fails" {
		w.failCommit()
	}
	return w
}

// failCommit makes the first commit, of whichever kind, be refused.
func (w *world) failCommit() {
	var once sync.Once
	first := func() (yes bool) {
		once.Do(func() { yes = true })
		return yes
	}
	w.k.Fake.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		w.k.Fake.KeepControl()
		if !first() {
			return nil, nil, false
		}
		r := req.(*kmsg.TxnOffsetCommitRequest)
		resp := r.ResponseKind().(*kmsg.TxnOffsetCommitResponse)
		for _, t := range r.Topics {
			rt := kmsg.NewTxnOffsetCommitResponseTopic()
			rt.Topic = t.Topic
			for _, p := range t.Partitions {
				rp := kmsg.NewTxnOffsetCommitResponseTopicPartition()
				rp.Partition, rp.ErrorCode = p.Partition, kerr.IllegalGeneration.Code
				rt.Partitions = append(rt.Partitions, rp)
			}
			resp.Topics = append(resp.Topics, rt)
		}
		return resp, nil, true
	})
	refuseCommits(w.k, func(*kmsg.OffsetCommitRequest) bool { return first() })
}

// meanwhile happens inside the first member's first call of its handler.
func (w *world) meanwhile() {
	w.once.Do(func() {
		switch w.during {
		case "shutdown":
			w.signal()
		case "rebalance":
			cfg := w.k.Config()
			cfg.Instance = "1"
			c := w.k.ClusterWith(w.t, topic.Renderer, cfg)
			w.stops = append(w.stops, run(w.t, w.second(cfg, c)))
			_, err := w.k.Fake.WaitGroupInfo(contextOf(w.t), topic.GroupRenderer.In("test"), func(g *kfake.GroupInfo) bool {
				return len(g.Members) == 2
			})
			assert.NoError(w.t, err)
		}
	})
}

// verdict is the handler's, for the first member; a second one has no troubles of
// its own, but the poison is in the record.
func (w *world) verdict(first bool, calls int) error {
	switch {
	case w.handler == "transient" && first && calls == 1:
		return fault.Transient(errors.New("something is away"))
	case w.handler == "fatal" && first:
		return errors.New("nobody has classified this")
	}
	return nil
}

func (w *world) committed() map[int32]int64 {
	got := w.k.Committed(w.t, topic.GroupRenderer)[topic.MessageRequestsBulk]
	return got
}

func (w *world) requireNothingCommitted() {
	require.Equal(w.t, map[int32]int64{0: 0, 1: 0, 2: 0, 3: 0}, w.committed())
}

func (w *world) awaitAllCommitted() {
	kafkatest.Eventually(w.t, func() bool { return maps.Equal(w.ends, w.committed()) }, "committed offsets are not the ends")
}

// goesOn tells whether somebody will have processed everything in the end.
func (w *world) goesOn() bool { return w.during == "rebalance" || w.handler != "fatal" }

func (w *world) outcomes() (rendered, parked []string) {
	for _, r := range w.k.All(w.t, topic.Outcomes) {
		var o event.Outcome
		w.k.Decode(w.t, r, &o)
		switch o.Outcome {
		case "rendered":
			rendered = append(rendered, o.UserID)
		case "parked":
			require.Equal(w.t, identity.Hash("m", o.UserID), o.MessageID)
			require.Equal(w.t, identity.Hash("r"), o.RunID)
			parked = append(parked, o.UserID)
		}
	}
	slices.Sort(rendered)
	return rendered, parked
}

func (w *world) requireDeadLetter() {
	letters := w.k.All(w.t, topic.DeadLettersRenderer)
	if w.handler != "poison" {
		require.Empty(w.t, letters)
		return
	}
	d := w.k.RequireDeadLetter(w.t, topic.Renderer, "will never render")
	require.Equal(w.t, string(topic.MessageRequestsBulk), d.Topic)
	require.Equal(w.t, "bad", d.UserID)
	require.Equal(w.t, "bad", string(d.Key))
	require.Equal(w.t, identity.Hash("m", "bad"), *d.MessageID)
	require.NotEmpty(w.t, d.Value)
	require.Len(w.t, d.Headers, 4)
}

// everybody is whose message must have been rendered when all is done.
func (w *world) everybody() []string {
	all := slices.Sorted(slices.Values(people))
	if w.handler == "poison" {
		all = slices.DeleteFunc(all, func(p string) bool { return p == "bad" })
	}
	return all
}

func rendered(c *kafka.Cluster, r *kgo.Record) (*kgo.Record, error) {
	var m event.MessageRequest
	if err := c.Decode(r, &m); err != nil {
		return nil, err
	}
	return c.Record(topic.Outcomes, m.UserID, &event.Outcome{
		OutcomeID: identity.Outcome(m.MessageID, "rendered", 0, ""), MessageID: m.MessageID, RunID: m.RunID,
		UserID: m.UserID, Lane: "bulk", Channel: "email", Outcome: "rendered", OccurredAt: m.RequestedAt,
	})
}

// observed is a Transformer whose committed and aborted batches are counted.
type observed struct {
	kafka.Transformer
	before    func() error
	committed func(out []*kgo.Record)
	open      int // batches that were neither committed nor aborted
}

func (o *observed) Transform(ctx context.Context, batch []*kgo.Record) ([]*kgo.Record, error) {
	o.open++
	out, err := o.Transformer.Transform(ctx, batch)
	if err == nil {
		err = o.before()
	}
	return out, err
}

func (o *observed) Committed(out []*kgo.Record) {
	o.open--
	o.committed(out)
}
func (o *observed) Aborted() { o.open-- }

func TestTransformDeliversExactlyOnce(t *testing.T) {
	t.Parallel()
	for _, m := range matrix() {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, m)
			loop := func(c *kafka.Cluster, first bool) func(context.Context) error {
				calls := 0
				o := &observed{
					Transformer: kafka.Each(c, func(_ context.Context, r *kgo.Record) ([]*kgo.Record, error) {
						if m.handler == "poison" && string(r.Key) == "bad" {
							return nil, fault.Poison(errors.New("will never render"))
						}
						out, err := rendered(c, r)
						return []*kgo.Record{out}, err
					}),
					committed: func(out []*kgo.Record) {
						for _, r := range out {
							assert.GreaterOrEqual(t, r.Offset, int64(0), "Committed gets records without their offset")
						}
					},
				}
				o.before = func() error {
					calls++
					if first {
						w.meanwhile()
					}
					return w.verdict(first, calls)
				}
				return func(ctx context.Context) error {
					err := c.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, Transformer: o})
					assert.Zero(t, o.open, "a batch's end was not told, or told twice")
					return err
				}
			}
			w.second = func(_ kafka.Config, c *kafka.Cluster) func(context.Context) error { return loop(c, false) }

			ctx, cancel := context.WithCancel(context.Background())
			w.signal = cancel
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- loop(w.k.Cluster(t, topic.Renderer), true)(ctx) }()

			if m.during == "steady" && m.handler != "fatal" {
				w.awaitAllCommitted()
				cancel()
			}
			if m.during == "rebalance" {
				w.awaitAllCommitted()
				cancel()
			}
			err := <-ended
			if m.handler == "fatal" {
				require.ErrorContains(t, err, "nobody has classified this")
			} else {
				require.NoError(t, err)
			}
			for _, stop := range w.stops {
				require.NoError(t, stop())
			}

			outcomes, parked := w.outcomes()
			// At a signal the batch in hand ends (I4): it commits if it can, and is
			// given back if not. Otherwise all is done in the end, once.
			nothing := !w.goesOn() || m.during == "shutdown" && (m.handler == "transient" || m.commit == "fails")
			if nothing {
				require.Empty(t, outcomes)
				require.Empty(t, parked)
				w.requireNothingCommitted()
				require.Empty(t, w.k.All(t, topic.DeadLettersRenderer))
				return
			}
			require.Equal(t, w.everybody(), outcomes, "not exactly once")
			require.Equal(t, w.ends, w.committed())
			w.requireDeadLetter()
			if m.handler == "poison" {
				require.Equal(t, []string{"bad"}, parked)
			} else {
				require.Empty(t, parked)
			}
		})
	}
}

func TestEffectMovesOffsetsLast(t *testing.T) {
	t.Parallel()
	for _, m := range matrix() {
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, m)
			var mu sync.Mutex
			effects := map[string]int{}
			loop := func(c *kafka.Cluster, first bool) func(context.Context) error {
				calls := 0
				return func(ctx context.Context) error {
					return c.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupRenderer, Handler: handle(func(_ context.Context, recs []*kgo.Record) (int, error) {
						calls++
						if first {
							w.meanwhile()
						}
						mu.Lock()
						defer mu.Unlock()
						for i, r := range recs {
							// Troubles come in the middle of the batch: what is before
							// them is durable, what is behind must not be committed.
							if i == len(recs)/2 {
								if err := w.verdict(first, calls); err != nil {
									return i, err
								}
							}
							if m.handler == "poison" && string(r.Key) == "bad" {
								return i, fault.Poison(errors.New("will never render"))
							}
							effects[string(r.Key)]++
						}
						return len(recs), nil
					})})
				}
			}
			w.second = func(_ kafka.Config, c *kafka.Cluster) func(context.Context) error { return loop(c, false) }

			ctx, cancel := context.WithCancel(context.Background())
			w.signal = cancel
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- loop(w.k.Cluster(t, topic.Renderer), true)(ctx) }()
			switch {
			case m.during == "steady" && m.commit == "fails" && m.handler != "fatal":
				// The refused commit is made up for by the next one.
				kafkatest.Eventually(t, func() bool {
					mu.Lock()
					defer mu.Unlock()
					return len(effects) == len(w.everybody())
				}, "not everything was done")
				cancel()
			case m.during == "steady" && m.handler != "fatal", m.during == "rebalance":
				w.awaitAllCommitted()
				cancel()
			}
			err := <-ended
			if m.handler == "fatal" {
				require.ErrorContains(t, err, "nobody has classified this")
			} else {
				require.NoError(t, err)
			}
			for _, stop := range w.stops {
				require.NoError(t, stop())
			}

			mu.Lock()
			defer mu.Unlock()
			stopsHalfway := !w.goesOn() || m.during == "shutdown" && m.handler == "transient"
			if stopsHalfway {
				// I1: what is committed was done, and nothing beyond it.
				var committed int64
				for p, at := range w.committed() {
					require.LessOrEqual(t, at, w.ends[p])
					committed += at
				}
				require.Equal(t, len(effects), int(committed), "committed %v, done %v", w.committed(), effects)
				require.Less(t, len(effects), len(people))
				require.NotEmpty(t, effects, "the finished prefix was thrown away")
			} else {
				for _, p := range w.everybody() {
					require.GreaterOrEqual(t, effects[p], 1, "%s was lost", p)
					if m.during != "rebalance" && m.commit == "ok" {
						require.Equal(t, 1, effects[p], "%s again without need", p)
					}
				}
				require.Equal(t, w.ends, w.committed())
			}
			_, parked := w.outcomes()
			require.Empty(t, parked, "whoever keeps copies ends nobody's wait")
			w.requireDeadLetter()
			if m.handler == "poison" {
				require.NotContains(t, effects, "bad")
			}
		})
	}
}
