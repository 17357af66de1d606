package sink

import (
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/admit"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// The tables of schemas/clickhouse that the sink fills, each with how its
// columns are read off the record.

func newEventRows() *table[event.Event, *event.Event] {
	type T = event.Event
	return newTable[T]("event_rows", nil,
		[]column[T]{
			text("event_id", func(e *T) string { return e.EventID }),
			text("user_id", func(e *T) string { return e.UserID }),
			text("anonymous_id", func(e *T) string { return e.AnonymousID }),
			word("name", func(e *T) string { return e.Name }),
			moment("occurred_at", func(e *T) time.Time { return e.OccurredAt }),
			moment("received_at", func(e *T) time.Time { return e.ReceivedAt }),
			word("source", func(e *T) string { return e.Source }),
		},
		typed("prop", func(e *T, into *kinds) {
			for i := range e.Properties {
				into.add(e.Properties[i].Name, &e.Properties[i].Value)
			}
		}))
}

func newProfileRows() *table[event.Profile, *event.Profile] {
	type T = event.Profile
	return newTable[T]("profile_rows", nil,
		[]column[T]{
			text("user_id", func(p *T) string { return p.UserID }),
			integer("revision", func(p *T) int64 { return p.Revision }),
		},
		typed("attr", func(p *T, into *kinds) {
			for i := range p.Attributes {
				into.add(p.Attributes[i].Name, &p.Attributes[i].Value)
			}
		}),
		[]column[T]{
			pairs("addresses", byWord(), func(p *T, keys *clickhouse.Word, values *clickhouse.Text) {
				for i := range p.Addresses {
					// An empty one is a removal that is remembered.
					if a := &p.Addresses[i]; a.Address != "" {
						keys.Append(a.Channel)
						values.Append(a.Address)
					}
				}
			}),
			pairs("consents", byWord(), func(p *T, keys *clickhouse.Word, values *clickhouse.Text) {
				for i := range p.Consents {
					keys.Append(p.Consents[i].Channel)
					values.Append(p.Consents[i].Consent)
				}
			}),
			pairs("suppressions", byWord(), func(p *T, keys *clickhouse.Word, values *clickhouse.Text) {
				for i := range p.Addresses {
					a := &p.Addresses[i]
					if reason := admit.SuppressedFor(p, a.Channel, a.Address); reason != "" && a.Address != "" {
						keys.Append(a.Channel)
						values.Append(reason)
					}
				}
			}),
			word("locale", func(p *T) string { return p.Locale }),
			word("time_zone", func(p *T) string { return p.TimeZone }),
			text("account_id", func(p *T) string { return p.AccountID }),
			boolean("deleted", func(p *T) bool { return p.Deleted }),
			moment("created_at", func(p *T) time.Time { return p.CreatedAt }),
			moment("updated_at", func(p *T) time.Time { return p.UpdatedAt }),
		})
}

func byWord() *clickhouse.Map[*clickhouse.Word, *clickhouse.Text] {
	return clickhouse.NewMap(clickhouse.NewWord(), clickhouse.NewText())
}

// member is a SegmentMember with its values as JSON.
type member struct {
	event.SegmentMember
	attributes string
}

func newSegmentMemberRows() *table[member, *member] {
	type T = member
	return newTable[T]("segment_member_rows", func(m *T, _ *kgo.Record) { m.attributes = object(m.Attributes) }, []column[T]{
		word("segment_id", func(m *T) string { return m.SegmentID }),
		id("import_id", func(m *T) identity.ID { return m.ImportID }),
		text("user_id", func(m *T) string { return m.UserID }),
		text("attributes", func(m *T) string { return m.attributes }),
		moment("occurred_at", func(m *T) time.Time { return m.OccurredAt }),
		integer("line", func(m *T) int64 { return m.Line }),
	})
}

func newOutcomeRows() *table[event.Outcome, *event.Outcome] {
	type T = event.Outcome
	source := func(o *T) event.Source {
		if o.Source == nil {
			return event.Source{Partition: -1, Offset: -1}
		}
		return *o.Source
	}
	return newTable[T]("outcome_rows", nil, []column[T]{
		id("outcome_id", func(o *T) identity.ID { return o.OutcomeID }),
		id("message_id", func(o *T) identity.ID { return o.MessageID }),
		id("run_id", func(o *T) identity.ID { return o.RunID }),
		word("campaign_id", func(o *T) string { return o.CampaignID }),
		word("variant", func(o *T) string { return o.Variant }),
		word("step", func(o *T) string { return o.Step }),
		word("lane", func(o *T) string { return o.Lane }),
		text("user_id", func(o *T) string { return o.UserID }),
		word("channel", func(o *T) string { return o.Channel }),
		word("outcome", func(o *T) string { return o.Outcome }),
		integer32("attempt", func(o *T) int32 { return o.Attempt }),
		word("reason", func(o *T) string { return o.Reason }),
		text("detail", func(o *T) string { return o.Detail }),
		moment("occurred_at", func(o *T) time.Time { return o.OccurredAt }),
		word("source_topic", func(o *T) string { return source(o).Topic }),
		integer32("source_partition", func(o *T) int32 { return source(o).Partition }),
		integer("source_offset", func(o *T) int64 { return source(o).Offset }),
		word("provider", func(o *T) string { return o.Provider }),
		text("provider_id", func(o *T) string { return o.ProviderID }),
		text("provider_event_id", func(o *T) string { return o.ProviderEventID }),
		text("content_hash", func(o *T) string { return string(o.ContentHash) }),
		word("renderer_version", func(o *T) string { return o.RendererVersion }),
	})
}

func newEngagementRows() *table[event.Engagement, *event.Engagement] {
	type T = event.Engagement
	return newTable[T]("engagement_rows", nil, []column[T]{
		id("engagement_id", func(e *T) identity.ID { return e.EngagementID }),
		id("message_id", func(e *T) identity.ID { return e.MessageID }),
		id("run_id", func(e *T) identity.ID { return e.RunID }),
		word("campaign_id", func(e *T) string { return e.CampaignID }),
		word("variant", func(e *T) string { return e.Variant }),
		text("user_id", func(e *T) string { return e.UserID }),
		word("channel", func(e *T) string { return e.Channel }),
		word("kind", func(e *T) string { return e.Kind }),
		text("url", func(e *T) string { return e.URL }),
		moment("occurred_at", func(e *T) time.Time { return e.OccurredAt }),
		word("method", func(e *T) string { return e.Method }),
		text("user_agent", func(e *T) string { return e.UserAgent }),
		text("network", func(e *T) string { return e.Network }),
		text("referer", func(e *T) string { return e.Referer }),
		word("purpose", func(e *T) string { return e.Purpose }),
		integer("latency_ms", func(e *T) int64 { return e.LatencyMs }),
	})
}

// request is a MessageRequest with its values as JSON and as it lay in Kafka:
// what the message can be rendered from again.
type request struct {
	event.MessageRequest
	attributes, segments, record string
}

func (m *request) derive(r *kgo.Record) {
	m.record, m.attributes = string(r.Value), object(m.Attributes)
	b := []byte{'{'}
	for i := range m.Segments {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(appendValue(b, event.String(m.Segments[i].SegmentID)), ':'), object(m.Segments[i].Attributes)...)
	}
	m.segments = string(append(b, '}'))
}

func newMessageInputRows() *table[request, *request] {
	type T = request
	return newTable[T]("message_input_rows", (*T).derive, []column[T]{
		id("message_id", func(m *T) identity.ID { return m.MessageID }),
		id("run_id", func(m *T) identity.ID { return m.RunID }),
		word("campaign_id", func(m *T) string { return m.CampaignID }),
		integer("campaign_version", func(m *T) int64 { return m.CampaignVersion }),
		word("template_id", func(m *T) string { return m.TemplateID }),
		integer("template_version", func(m *T) int64 { return m.TemplateVersion }),
		word("variant", func(m *T) string { return m.Variant }),
		word("step", func(m *T) string { return m.Step }),
		word("lane", func(m *T) string { return m.Lane }),
		text("user_id", func(m *T) string { return m.UserID }),
		word("channel", func(m *T) string { return m.Channel }),
		text("address", func(m *T) string { return m.Address }),
		word("policy", func(m *T) string { return m.Policy }),
		moment("requested_at", func(m *T) time.Time { return m.RequestedAt }),
		moment("expires_at", func(m *T) time.Time { return m.ExpiresAt }),
		word("locale", func(m *T) string { return m.Locale }),
		word("time_zone", func(m *T) string { return m.TimeZone }),
		word("key_id", func(m *T) string { return m.KeyID }),
		text("attributes", func(m *T) string { return m.attributes }),
		text("segments", func(m *T) string { return m.segments }),
		text("record", func(m *T) string { return m.record }),
	})
}

func newImportRows() *table[event.Import, *event.Import] {
	type T = event.Import
	return newTable[T]("import_rows", nil, []column[T]{
		id("import_id", func(i *T) identity.ID { return i.ImportID }),
		word("spec_id", func(i *T) string { return i.SpecID }),
		integer("spec_version", func(i *T) int64 { return i.SpecVersion }),
		word("bucket", func(i *T) string { return i.Bucket }),
		text("key", func(i *T) string { return i.Key }),
		text("version_id", func(i *T) string { return i.VersionID }),
		text("etag", func(i *T) string { return i.ETag }),
		integer("size_bytes", func(i *T) int64 { return i.SizeBytes }),
		moment("last_modified", func(i *T) time.Time { return i.LastModified }),
		moment("announced_at", func(i *T) time.Time { return i.AnnouncedAt }),
		moment("started_at", func(i *T) time.Time { return i.StartedAt }),
		moment("updated_at", func(i *T) time.Time { return i.UpdatedAt }),
		word("state", func(i *T) string { return i.State }),
		text("error", func(i *T) string { return i.Error }),
		integer("offset_bytes", func(i *T) int64 { return i.OffsetBytes }),
		integer("line", func(i *T) int64 { return i.Line }),
		integer("rows", func(i *T) int64 { return i.Rows }),
		integer("rejected", func(i *T) int64 { return i.Rejected }),
		integer("profile_updates", func(i *T) int64 { return i.ProfileUpdates }),
		integer("segment_members", func(i *T) int64 { return i.SegmentMembers }),
		integer("events", func(i *T) int64 { return i.Events }),
		word("segment_id", func(i *T) string { return i.SegmentID }),
		word("segment_mode", func(i *T) string { return i.SegmentMode }),
		text("undoes", func(i *T) string { return i.Undoes }),
		integer("again", func(i *T) int64 { return i.Again }),
	})
}

// runRows are the tables of the topic runs, which holds three kinds of things
// in one type of record.
type runRows struct {
	states, shards, counters *table[event.Run, *event.Run]
}

func (t *runRows) read(source Source, name topic.Name, r *kgo.Record) error {
	rec := new(event.Run)
	if err := source.Decode(r, rec); err != nil {
		return err
	}
	switch {
	case rec.State != nil:
		return t.states.add(rec, name, r)
	case rec.Shard != nil:
		return t.shards.add(rec, name, r)
	case rec.Counters != nil:
		return t.counters.add(rec, name, r)
	}
	return fault.Poison(errors.New("a record of a run that says nothing"))
}

func newRunRows() *table[event.Run, *event.Run] {
	type T = event.Run
	return newTable[T]("run_rows", nil, []column[T]{
		id("run_id", func(r *T) identity.ID { return r.RunID }),
		text("campaign_id", func(r *T) string { return r.CampaignID }),
		word("state", func(r *T) string { return r.State.State }),
		text("note", func(r *T) string { return r.State.Note }),
		integer("campaign_version", func(r *T) int64 { return r.State.CampaignVersion }),
		text("audience_id", func(r *T) string { return r.State.AudienceID }),
		integer("audience_version", func(r *T) int64 { return r.State.AudienceVersion }),
		text("template_id", func(r *T) string { return r.State.TemplateID }),
		integer("template_version", func(r *T) int64 { return r.State.TemplateVersion }),
		word("channel", func(r *T) string { return r.State.Channel }),
		word("lane", func(r *T) string { return r.State.Lane }),
		word("policy", func(r *T) string { return r.State.Policy }),
		word("consent", func(r *T) string { return r.State.Consent }),
		maybeID("request_id", func(r *T) *identity.ID { return r.State.RequestID }),
		moment("requested_at", func(r *T) time.Time { return r.State.RequestedAt }),
		moment("as_of", func(r *T) time.Time { return r.State.AsOf }),
		pairs("segments", bySegment(), func(r *T, keys *clickhouse.Text, values *clickhouse.Array[*clickhouse.UUID]) {
			for i := range r.State.Segments {
				p := &r.State.Segments[i]
				keys.Append(p.SegmentID)
				appendIDs(values, p.ImportIDs)
			}
		}),
		pairs("segment_removals", bySegment(), func(r *T, keys *clickhouse.Text, values *clickhouse.Array[*clickhouse.UUID]) {
			for i := range r.State.Segments {
				if p := &r.State.Segments[i]; len(p.Removes) > 0 {
					keys.Append(p.SegmentID)
					appendIDs(values, p.Removes)
				}
			}
		}),
		moment("expires_at", func(r *T) time.Time { return r.State.ExpiresAt }),
		integer32("shards", func(r *T) int32 { return r.State.Shards }),
		integer("expected", func(r *T) int64 { return r.State.Expected }),
		boolean("cancel_requested", func(r *T) bool { return r.State.CancelRequested }),
		integer("unread_spool_events", func(r *T) int64 { return r.State.UnreadSpoolEvents }),
		maybeMoment("started_at", func(r *T) *time.Time { return r.State.StartedAt }),
		maybeMoment("finished_at", func(r *T) *time.Time { return r.State.FinishedAt }),
		boolean("balanced", func(r *T) bool { return r.State.Balanced }),
		moment("updated_at", func(r *T) time.Time { return r.State.UpdatedAt }),
		text("goal_event", func(r *T) string { return r.State.GoalEvent }),
		integer("goal_within_ms", func(r *T) int64 { return r.State.GoalWithinMs }),
		text("goal_revenue", func(r *T) string { return r.State.GoalRevenue }),
	})
}

// bySegment is a column of the imports of each segment.
func bySegment() *clickhouse.Map[*clickhouse.Text, *clickhouse.Array[*clickhouse.UUID]] {
	return clickhouse.NewMap(clickhouse.NewText(), clickhouse.NewArray(clickhouse.NewUUID()))
}

func appendIDs(to *clickhouse.Array[*clickhouse.UUID], ids []identity.ID) {
	for _, id := range ids {
		to.Items.Append(id)
	}
	to.End()
}

func newRunShardRows() *table[event.Run, *event.Run] {
	type T = event.Run
	return newTable[T]("run_shard_rows", nil, []column[T]{
		id("run_id", func(r *T) identity.ID { return r.RunID }),
		text("campaign_id", func(r *T) string { return r.CampaignID }),
		integer32("shard", func(r *T) int32 { return r.Shard.Shard }),
		integer32("shard_count", func(r *T) int32 { return r.Shard.Of }),
		integer("candidates", func(r *T) int64 { return r.Shard.Candidates }),
		integer32("children", func(r *T) int32 { return r.Shard.Children }),
		moment("done_at", func(r *T) time.Time { return r.Shard.DoneAt }),
	})
}

func newRunCounterRows() *table[event.Run, *event.Run] {
	type T = event.Run
	return newTable[T]("run_counter_rows", nil, []column[T]{
		id("run_id", func(r *T) identity.ID { return r.RunID }),
		text("campaign_id", func(r *T) string { return r.CampaignID }),
		integer32("partition", func(r *T) int32 { return r.Counters.Partition }),
		integer("repeats", func(r *T) int64 { return r.Counters.Repeats }),
		pairs("excluded", clickhouse.NewMap(clickhouse.NewText(), clickhouse.NewInt64()), func(r *T, keys *clickhouse.Text, values *clickhouse.Int64) {
			for _, e := range r.Counters.Excluded {
				keys.Append(e.Reason)
				values.Append(e.Count)
			}
		}),
		integer("requested", func(r *T) int64 { return r.Counters.Requested }),
		integer("waiting", func(r *T) int64 { return r.Counters.Waiting }),
		integer("rejected", func(r *T) int64 { return r.Counters.Rejected }),
		integer("accepted", func(r *T) int64 { return r.Counters.Accepted }),
		integer("failed", func(r *T) int64 { return r.Counters.Failed }),
		integer("uncertain", func(r *T) int64 { return r.Counters.Uncertain }),
		integer("expired", func(r *T) int64 { return r.Counters.Expired }),
		integer("cancelled", func(r *T) int64 { return r.Counters.Cancelled }),
		integer("parked", func(r *T) int64 { return r.Counters.Parked }),
		moment("updated_at", func(r *T) time.Time { return r.Counters.UpdatedAt }),
	})
}
