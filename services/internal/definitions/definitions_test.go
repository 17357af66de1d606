package definitions_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

func start(t *testing.T) (context.Context, *kafkatest.Kafka, *kafka.Cluster, *definitions.Store) {
	t.Helper()
	t.Parallel()
	k := kafkatest.Start(t)
	c := k.Cluster(t, topic.Console)
	ctx, cancel := context.WithTimeout(context.Background(), kafkatest.Patience)
	s := definitions.NewStore(c)
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-ran) })
	return ctx, k, c, s
}

func change(kind, id, body string, replaces int64) definitions.Change {
	return definitions.Change{Kind: kind, ID: id, Body: []byte(body), ReplacesVersion: replaces}
}

func TestVersionsAreNumberedKeptAndInForce(t *testing.T) {
	ctx, k, c, s := start(t)
	got, err := definitions.Write(ctx, c, "ada", []definitions.Change{change("Template", "b", "1", 0), change("Template", "a", "2", 0), change("Campaign", "a", "3", 0)})
	require.NoError(t, err)
	require.Len(t, got, 3)
	got, err = definitions.Write(ctx, c, "bob", []definitions.Change{change("Template", "a", "4", 1), change("Template", "b", "1", 0)})
	require.NoError(t, err)
	require.EqualValues(t, 2, got[0].Number)
	require.EqualValues(t, 1, got[1].Number, "a body that is in force already is no new version")
	require.Equal(t, "ada", got[1].AppliedBy)

	require.NoError(t, s.CaughtUp(ctx))
	head, ok := s.Head("Template", "a")
	require.True(t, ok)
	require.Equal(t, "4", string(head.Body))
	require.Equal(t, "bob", head.AppliedBy)
	old, ok := s.Get("Template", "a", 1)
	require.True(t, ok)
	require.Equal(t, "2", string(old.Body))
	_, ok = s.Head("Audience", "a")
	require.False(t, ok)
	var all []string
	for _, v := range s.All("Template") {
		all = append(all, fmt.Sprintf("%s@%d", v.ID, v.Number))
	}
	require.Equal(t, []string{"a@2", "b@1"}, all)

	keys := map[string]int{}
	for _, r := range k.All(t, topic.Definitions) {
		keys[string(r.Key)]++
	}
	require.Equal(t, map[string]int{"Template/a": 2, "Template/a@1": 1, "Template/a@2": 1, "Template/b": 1, "Template/b@1": 1, "Campaign/a": 1, "Campaign/a@1": 1}, keys)
}

func TestAStaleWriteChangesNothing(t *testing.T) {
	ctx, k, c, s := start(t)
	_, err := definitions.Write(ctx, c, "ada", []definitions.Change{change("Template", "a", "1", 0)})
	require.NoError(t, err)
	_, err = definitions.Write(ctx, c, "bob", []definitions.Change{change("Template", "new", "1", 0), change("Template", "a", "2", 0)})
	var conflict *definitions.Conflict
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, definitions.Conflict{Kind: "Template", ID: "a", Replaces: 0, InForce: 1}, *conflict)
	require.NoError(t, s.CaughtUp(ctx))
	_, ok := s.Head("Template", "new")
	require.False(t, ok)
	require.Len(t, k.All(t, topic.Definitions), 2)
}

// Several at once, each on what it has seen: every version follows from the one
// before, and none is lost.
func TestWritersOvertakeEachOtherAndLoseNothing(t *testing.T) {
	ctx, _, c, s := start(t)
	const writers, each = 4, 5
	var done sync.WaitGroup
	for w := range writers {
		done.Go(func() {
			for n := range each {
				for {
					head, _ := s.Head("Template", "a")
					body := fmt.Sprintf("%s,%d.%d", head.Body, w, n)
					_, err := definitions.Write(ctx, c, "w", []definitions.Change{change("Template", "a", body, head.Number)})
					if err == nil {
						break
					}
					var conflict *definitions.Conflict
					if !errors.As(err, &conflict) {
						t.Errorf("writing: %v", err)
						return
					}
					if err := s.CaughtUp(ctx); err != nil {
						t.Errorf("reading: %v", err)
						return
					}
				}
			}
		})
	}
	done.Wait()
	require.NoError(t, s.CaughtUp(ctx))
	head, ok := s.Head("Template", "a")
	require.True(t, ok)
	require.EqualValues(t, writers*each, head.Number)
	for n := int64(2); n <= head.Number; n++ {
		before, _ := s.Get("Template", "a", n-1)
		after, _ := s.Get("Template", "a", n)
		require.Contains(t, string(after.Body), string(before.Body)+",")
	}
}

// A writer that dies between two records has written neither, and the next is
// not held up by it.
func TestAWriterThatDiesHalfwayHasWrittenNothing(t *testing.T) {
	ctx, k, c, s := start(t)
	// As a writer's, but the broker gives its transaction up only after the test.
	versions := kversion.Tip()
	versions.SetMaxKeyVersion(int16(kmsg.EndTxn), 4)
	dead, err := kgo.NewClient(kgo.MaxVersions(versions), kgo.SeedBrokers(k.Config().Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.TransactionalID(c.Namespace()+".definitions"), kgo.TransactionTimeout(10*time.Minute))
	require.NoError(t, err)
	defer dead.Close()
	require.NoError(t, dead.BeginTransaction())
	r, err := c.Record(topic.Definitions, "Template/a@1", &event.Definition{Kind: "Template", ID: "a", Version: 1, Body: "half"})
	require.NoError(t, err)
	require.NoError(t, dead.ProduceSync(ctx, r).FirstErr())

	got, err := definitions.Write(ctx, c, "ada", []definitions.Change{change("Template", "a", "whole", 0)})
	require.NoError(t, err)
	require.EqualValues(t, 1, got[0].Number)
	require.Error(t, dead.EndTransaction(ctx, kgo.TryCommit), "fenced")
	v, err := s.WaitFor(ctx, "Template", "a", 1)
	require.NoError(t, err)
	require.Equal(t, "whole", string(v.Body))
}

func TestAVersionThatIsNamedBeforeItIsReadIsWaitedFor(t *testing.T) {
	ctx, _, c, s := start(t)
	short, cancel := context.WithCancel(ctx)
	cancel()
	_, err := s.WaitFor(short, "Template", "a", 1)
	require.ErrorIs(t, err, context.Canceled)
	got := make(chan definitions.Version, 1)
	go func() {
		v, _ := s.WaitFor(ctx, "Template", "a", 1)
		got <- v
	}()
	_, err = definitions.Write(ctx, c, "ada", []definitions.Change{change("Template", "a", "1", 0)})
	require.NoError(t, err)
	require.Equal(t, "1", string((<-got).Body))
}

func TestASegmentIsItsImports(t *testing.T) {
	t.Parallel()
	id := identity.Hash("x")
	body, err := definitions.Segment{Imports: []identity.ID{id}}.Encode()
	require.NoError(t, err)
	require.JSONEq(t, `{"imports":["`+id.String()+`"]}`, string(body))
	s, err := definitions.DecodeSegment(definitions.Version{Body: body})
	require.NoError(t, err)
	require.Equal(t, definitions.Segment{Imports: []identity.ID{id}}, s)

	undone := identity.Hash("y")
	body, err = definitions.Segment{Imports: []identity.ID{id}, Removes: []identity.ID{id}, Undone: undone}.Encode()
	require.NoError(t, err)
	require.JSONEq(t, `{"imports":["`+id.String()+`"],"removes":["`+id.String()+`"],"undone":"`+undone.String()+`"}`, string(body))
	body, err = definitions.Segment{}.Encode()
	require.NoError(t, err)
	require.JSONEq(t, `{"imports":[]}`, string(body), "a segment that no import makes up has no members")
}

// A segment is pinned as it is now; one that nobody has filled is empty, and one that cannot be
// read is not taken for that.
func TestASegmentThatCannotBeReadIsNotAnEmptyOne(t *testing.T) {
	ctx, k, c, s := start(t)
	id := identity.Hash("x")
	body, err := definitions.Segment{Imports: []identity.ID{id}}.Encode()
	require.NoError(t, err)
	_, err = definitions.Write(ctx, c, "ada", []definitions.Change{change(definitions.KindSegment, "full", string(body), 0), change(definitions.KindSegment, "broken", string(body), 0)})
	require.NoError(t, err)
	k.Produce(t, &kgo.Record{Topic: topic.Definitions.In(c.Namespace()), Key: []byte(definitions.KindSegment + "/broken"), Value: []byte("not Avro")})
	require.NoError(t, s.CaughtUp(ctx))
	pins, err := s.Pins([]string{"full", "never filled"})
	require.NoError(t, err)
	require.Equal(t, []event.SegmentPin{{SegmentID: "full", ImportIDs: []identity.ID{id}}, {SegmentID: "never filled"}}, pins)
	_, err = s.Pins([]string{"full", "broken"})
	require.ErrorContains(t, err, "which imports make up segment broken cannot be read")
}

// What cannot be read concerns those who name it: everybody else goes on, and
// applying it again mends it.
func TestADefinitionThatCannotBeReadStopsNobodyElse(t *testing.T) {
	ctx, k, c, s := start(t)
	_, err := definitions.Write(ctx, c, "ada", []definitions.Change{change("Template", "a", "1", 0), change("Template", "b", "1", 0), change("Template", "c", "1", 0)})
	require.NoError(t, err)
	kafkaTopic := topic.Definitions.In(c.Namespace())
	k.Produce(t, &kgo.Record{Topic: kafkaTopic, Key: []byte("Template/a"), Value: []byte("not Avro")}, // which version is in force
		&kgo.Record{Topic: kafkaTopic, Key: []byte("Template/b@1"), Value: []byte("not Avro")}, // the version in force
		&kgo.Record{Topic: kafkaTopic, Key: []byte("Template/c@2"), Value: []byte("not Avro")}, // one that nobody has put in force
		&kgo.Record{Topic: kafkaTopic, Key: []byte("nothing that is known"), Value: []byte("not Avro")})
	require.NoError(t, s.CaughtUp(ctx))
	for _, id := range []string{"a", "b"} {
		_, ok := s.Head("Template", id)
		require.False(t, ok, "nothing older stands in")
		require.NotEmpty(t, s.Unreadable("Template", id, 0))
	}
	_, ok := s.Head("Template", "c")
	require.True(t, ok)
	exact := definitions.NewExact[definition.Definition](s, "Template")
	_, err = exact.Get(ctx, "b", 1)
	require.Equal(t, fault.ClassPoison, fault.ClassOf(err))
	require.ErrorContains(t, err, "definition Template/b@1 cannot be read")
	_, err = s.WaitFor(ctx, "Template", "b", 1)
	require.Equal(t, fault.ClassPoison, fault.ClassOf(err))

	got, err := definitions.Write(ctx, c, "ada", []definitions.Change{change("Template", "a", "2", 0), change("Template", "b", "2", 0), change("Template", "c", "2", 1)})
	require.NoError(t, err)
	require.NoError(t, s.CaughtUp(ctx))
	for i, want := range []int64{2, 2, 3} {
		require.Equal(t, want, got[i].Number, "a number is used once, whatever can be read of it")
		head, ok := s.Head("Template", got[i].ID)
		require.True(t, ok)
		require.Equal(t, "2", string(head.Body))
		require.Empty(t, s.Unreadable("Template", got[i].ID, 0))
	}
}
