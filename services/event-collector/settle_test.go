package collector

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/sink"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// standstill is a database whose first insert waits, and of whose inserts no answer
// comes if that is asked.
type standstill struct {
	*clickhouse.Conn
	waits, goOn chan struct{}
	unanswered  bool
}

func (d *standstill) Send(ctx context.Context, table string, names []string, columns []clickhouse.Column) error {
	if d.waits != nil {
		close(d.waits)
		d.waits = nil
		<-d.goOn
		ctx = context.WithoutCancel(ctx) // the sink's patience with an insert, however long the standstill was
	}
	if err := d.Conn.Send(ctx, table, names, columns); err != nil {
		return err
	}
	if d.unanswered && table == "message_input_rows" {
		return fault.Transient(errors.New("the connection was lost"))
	}
	return nil
}

// A sink stands still with a batch in hand, for so long that another has taken its
// partitions. Then somebody is erased and an import is undone, and it wakes up and
// stores what it has.
func TestABatchThatIsStoredAfterWhatItHoldsWasRemovedIsSettled(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ unanswered, overtaken bool }{
		"stored":                    {overtaken: true},
		"stored, without an answer": {overtaken: true, unanswered: true},
		// Who removes waits for this sink, and says how much there was.
		"still its own": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			unanswered := c.unanswered
			k := kafkatest.Start(t)
			cluster := k.Cluster(t, topic.Importer)
			conn := clickhousetest.Open(t)
			namespace := k.Config().Namespace
			undone, kept := identity.Hash("undone"), identity.Hash("kept")
			var records []*kgo.Record
			add := func(name topic.Name, key string, rec event.Record) {
				r, err := cluster.Record(name, key, rec)
				require.NoError(t, err)
				r.Offset, r.Timestamp = int64(len(records)), time.Now()
				records = append(records, r)
			}
			visit := func(user, source string) {
				add(topic.Events, user, &event.Event{EventID: fmt.Sprint(user, source), UserID: user, Name: "visit", OccurredAt: noon, ReceivedAt: noon, Source: source})
			}
			for _, user := range []string{"gone", "here"} {
				visit(user, "api:web")
				visit(user, "import:"+undone.String())
				visit(user, "import:"+kept.String())
				add(topic.Profiles, user, &event.Profile{UserID: user, Revision: 1, CreatedAt: noon, UpdatedAt: noon})
				add(topic.SegmentMembers, user, &event.SegmentMember{SegmentID: "vip", ImportID: kept, UserID: user})
				add(topic.MessageRequestsBulk, user, messageRequest(user))
				add(topic.Outcomes, user, outcome(user, "accepted", "", 1))
				add(topic.Engagements, user, engagement(user, "clicked", "https://example.test/"+user))
			}

			db := &standstill{Conn: conn, waits: make(chan struct{}), goOn: make(chan struct{}), unanswered: unanswered}
			erased := sink.NewErased(namespace, cluster.Record)
			newSink := func(into sink.Database, erased *sink.Erased) *sink.Sink {
				s := sink.New(cluster, into, telemetry.New("sink", telemetry.Config{}, nil).Registry)
				s.LeaveOut(erased, func(context.Context) error { return nil }, func(context.Context) (kafka.Mark, error) {
					passed := kafka.Mark{}
					for _, r := range records {
						if name := cluster.NameOf(r.Topic); c.overtaken {
							passed.Merge(kafka.Mark{name: {r.Partition: r.Offset + 1}})
						}
					}
					return passed, nil
				})
				return s
			}
			sleeper := newSink(db, erased)
			waits, answered := db.waits, make(chan error, 1)
			go func() {
				_, err := sleeper.Handle(t.Context(), records)
				answered <- err
			}()
			<-waits
			n, err := newSink(conn, sink.NewErased(namespace, cluster.Record)).Handle(t.Context(), records)
			require.NoError(t, err)
			require.Equal(t, len(records), n)

			x := &event.Erasure{Person: identity.Person(namespace, "gone"), Partition: topic.Partition("gone", cluster.P()), Pseudonym: "erased-x", ErasedAt: time.Now(), UnlinkedUntil: time.Now().Add(time.Hour)}
			for _, name := range []topic.Name{topic.Events, topic.Profiles, topic.SegmentMembers} {
				x.Ends = append(x.Ends, event.ErasedTopic{Topic: string(name), Offset: int64(len(records))})
			}
			for _, table := range clickhouse.PersonTables {
				query, args := table.Erase("gone", x)
				require.NoError(t, conn.Exec(t.Context(), query, args...))
			}
			require.NoError(t, conn.Exec(t.Context(), "DELETE FROM event_rows WHERE source = ?", "import:"+undone.String()))
			erased.Put(x)
			sleeper.Undone().Put(&event.Import{ImportID: undone, State: "undone"})

			close(db.goOn)
			if err := <-answered; unanswered {
				require.Error(t, err)
				require.NotZero(t, rows(t, conn, "event_rows", "user_id = 'gone'"), "it was stored all the same")
				// It has lost its partitions, and gets others.
				db.unanswered = false
				n, err := sleeper.Handle(t.Context(), records[:1])
				require.NoError(t, err)
				require.Equal(t, 1, n)
			} else {
				require.NoError(t, err)
			}
			if !c.overtaken {
				for _, table := range clickhouse.PersonTables {
					require.NotZero(t, rows(t, conn, table.Name, "user_id = 'gone'"), table.Name)
				}
				require.NotZero(t, rows(t, conn, "event_rows", "source = 'import:"+undone.String()+"'"))
				return
			}
			for _, table := range clickhouse.PersonTables {
				require.Zero(t, rows(t, conn, table.Name, "user_id = 'gone'"), table.Name)
				require.NotZero(t, rows(t, conn, table.Name, "user_id = 'here'"), table.Name)
				if table.Kept {
					require.NotZero(t, rows(t, conn, table.Name, "user_id = 'erased-x'"), table.Name)
				}
			}
			require.Zero(t, rows(t, conn, "event_rows", "source = 'import:"+undone.String()+"'"))
			require.NotZero(t, rows(t, conn, "event_rows", "source = 'import:"+kept.String()+"'"))
		})
	}
}

func rows(t *testing.T, conn *clickhouse.Conn, table, where string) (n uint64) {
	t.Helper()
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count() FROM "+table+" WHERE "+where).Scan(&n))
	return n
}
