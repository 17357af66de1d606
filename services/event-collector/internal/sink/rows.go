package sink

import (
	"encoding/json"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// row is one row for one table, values in the order of the table's columns.
type row struct {
	table  *table
	values []any
}

// table is a storage table and the columns that are written.
type table struct {
	name    string
	columns []string
}

// origin ends every table: when and where the record lay in Kafka.
var origin = []string{"ingested_at", "kafka_topic", "kafka_partition", "kafka_offset"}

func newTable(name string, columns ...string) *table { return &table{name, append(columns, origin...)} }

// The tables of schemas/clickhouse that the sink fills.
var (
	eventRows = newTable("event_rows", "event_id", "user_id", "anonymous_id", "name", "occurred_at", "received_at", "source",
		"prop_string", "prop_int", "prop_float", "prop_bool", "prop_time", "prop_json")
	profileRows = newTable("profile_rows", "user_id", "revision", "attr_string", "attr_int", "attr_float", "attr_bool", "attr_time", "attr_json",
		"addresses", "consents", "locale", "time_zone", "account_id", "created_at", "updated_at")
	segmentMemberRows = newTable("segment_member_rows", "segment_id", "import_id", "user_id", "attributes", "occurred_at", "line")
	outcomeRows       = newTable("outcome_rows", "outcome_id", "message_id", "run_id", "campaign_id", "variant", "step", "lane", "user_id", "channel",
		"outcome", "attempt", "reason", "detail", "occurred_at", "source_topic", "source_partition", "source_offset",
		"provider", "provider_id", "provider_event_id", "content_hash", "renderer_version")
	engagementRows = newTable("engagement_rows", "engagement_id", "message_id", "run_id", "campaign_id", "variant", "user_id", "channel",
		"kind", "url", "occurred_at", "method", "user_agent", "network", "referer")
	messageInputRows = newTable("message_input_rows", "message_id", "run_id", "campaign_id", "campaign_version", "template_id", "template_version",
		"variant", "step", "lane", "user_id", "channel", "address", "policy", "requested_at", "expires_at", "locale", "time_zone", "key_id",
		"attributes", "segments", "record")
	runRows = newTable("run_rows", "run_id", "campaign_id", "state", "note", "campaign_version", "audience_id", "audience_version", "template_id",
		"template_version", "channel", "lane", "policy", "consent", "request_id", "requested_at", "as_of", "segments", "expires_at", "shards",
		"expected", "cancel_requested", "unread_spool_events", "started_at", "finished_at", "balanced", "updated_at")
	runShardRows   = newTable("run_shard_rows", "run_id", "campaign_id", "shard", "shard_count", "candidates", "children", "done_at")
	runCounterRows = newTable("run_counter_rows", "run_id", "campaign_id", "partition", "repeats", "excluded", "requested", "waiting", "rejected",
		"accepted", "failed", "uncertain", "expired", "cancelled", "parked", "updated_at")
)

// decoder reads a record's value.
type decoder interface {
	Decode(r *kgo.Record, into event.Record) error
}

// rowOf turns a record into its row. Every column is a function of the record
// (I5): the same record read twice makes the same row. No row and no error
// means that there is nothing to store.
func rowOf(d decoder, name topic.Name, r *kgo.Record) (row, error) {
	switch name {
	case topic.Events:
		return decoded(d, name, r, eventRow)
	case topic.Profiles:
		return decoded(d, name, r, profileRow)
	case topic.SegmentMembers:
		return decoded(d, name, r, segmentMemberRow)
	case topic.Outcomes:
		return decoded(d, name, r, outcomeRow)
	case topic.Engagements:
		return decoded(d, name, r, engagementRow)
	case topic.MessageRequestsBulk:
		return decoded(d, name, r, func(m *event.MessageRequest) (row, error) { return messageInputRow(m, r.Value) })
	case topic.Runs:
		return decoded(d, name, r, runRow)
	}
	return row{}, fmt.Errorf("the sink has no table for %s", name)
}

func decoded[T any, P interface {
	*T
	event.Record
}](d decoder, name topic.Name, r *kgo.Record, build func(P) (row, error)) (row, error) {
	if r.Value == nil {
		return row{}, nil // a tombstone: what it removes is gone from the topic, not from history
	}
	rec := P(new(T))
	if err := d.Decode(r, rec); err != nil {
		return row{}, err
	}
	out, err := build(rec)
	if err != nil {
		return row{}, err
	}
	out.values = append(out.values, r.Timestamp.UTC(), string(name), r.Partition, r.Offset)
	return out, nil
}

func eventRow(e *event.Event) (row, error) {
	m := split(e.Properties)
	return row{eventRows, []any{e.EventID, e.UserID, e.AnonymousID, e.Name, e.OccurredAt, e.ReceivedAt, e.Source,
		m.strings, m.ints, m.floats, m.bools, m.times, m.json}}, nil
}

func profileRow(p *event.Profile) (row, error) {
	values := make([]event.NamedValue, len(p.Attributes))
	for i := range p.Attributes {
		values[i] = event.NamedValue{Name: p.Attributes[i].Name, Value: p.Attributes[i].Value}
	}
	m := split(values)
	addresses, consents := map[string]string{}, map[string]string{}
	for i := range p.Addresses {
		if p.Addresses[i].Address != "" {
			addresses[p.Addresses[i].Channel] = p.Addresses[i].Address
		}
	}
	for i := range p.Consents {
		consents[p.Consents[i].Channel] = p.Consents[i].Consent
	}
	return row{profileRows, []any{p.UserID, p.Revision, m.strings, m.ints, m.floats, m.bools, m.times, m.json,
		addresses, consents, p.Locale, p.TimeZone, p.AccountID, p.CreatedAt, p.UpdatedAt}}, nil
}

func segmentMemberRow(m *event.SegmentMember) (row, error) {
	attributes, err := object(m.Attributes)
	return row{segmentMemberRows, []any{m.SegmentID, m.ImportID.UUID(), m.UserID, attributes, m.OccurredAt, m.Line}}, err
}

func outcomeRow(o *event.Outcome) (row, error) {
	source := event.Source{Partition: -1, Offset: -1}
	if o.Source != nil {
		source = *o.Source
	}
	return row{outcomeRows, []any{o.OutcomeID.UUID(), o.MessageID.UUID(), o.RunID.UUID(), o.CampaignID, o.Variant, o.Step, o.Lane, o.UserID, o.Channel,
		o.Outcome, o.Attempt, o.Reason, o.Detail, o.OccurredAt, source.Topic, source.Partition, source.Offset,
		o.Provider, o.ProviderID, o.ProviderEventID, string(o.ContentHash), o.RendererVersion}}, nil
}

func engagementRow(e *event.Engagement) (row, error) {
	return row{engagementRows, []any{e.EngagementID.UUID(), e.MessageID.UUID(), e.RunID.UUID(), e.CampaignID, e.Variant, e.UserID, e.Channel,
		e.Kind, e.URL, e.OccurredAt, e.Method, e.UserAgent, e.Network, e.Referer}}, nil
}

// messageInputRow keeps the whole record beside the columns: it is what the
// message can be rendered from again.
func messageInputRow(m *event.MessageRequest, record []byte) (row, error) {
	attributes, err := object(m.Attributes)
	if err != nil {
		return row{}, err
	}
	segments := map[string]json.RawMessage{}
	for i := range m.Segments {
		text, err := object(m.Segments[i].Attributes)
		if err != nil {
			return row{}, err
		}
		segments[m.Segments[i].SegmentID] = json.RawMessage(text)
	}
	text, err := json.Marshal(segments)
	if err != nil {
		return row{}, fmt.Errorf("writing the segments of message %s: %w", m.MessageID, err)
	}
	return row{messageInputRows, []any{m.MessageID.UUID(), m.RunID.UUID(), m.CampaignID, m.CampaignVersion, m.TemplateID, m.TemplateVersion,
		m.Variant, m.Step, m.Lane, m.UserID, m.Channel, m.Address, m.Policy, m.RequestedAt, m.ExpiresAt, m.Locale, m.TimeZone, m.KeyID,
		attributes, string(text), string(record)}}, nil
}

func runRow(r *event.Run) (row, error) {
	id := r.RunID.UUID()
	switch {
	case r.State != nil:
		s := r.State
		var request *string
		if s.RequestID != nil {
			text := s.RequestID.UUID()
			request = &text
		}
		segments := map[string][]string{}
		for _, pin := range s.Segments {
			ids := make([]string, len(pin.ImportIDs))
			for i, importID := range pin.ImportIDs {
				ids[i] = importID.UUID()
			}
			segments[pin.SegmentID] = ids
		}
		return row{runRows, []any{id, r.CampaignID, s.State, s.Note, s.CampaignVersion, s.AudienceID, s.AudienceVersion, s.TemplateID,
			s.TemplateVersion, s.Channel, s.Lane, s.Policy, s.Consent, request, s.RequestedAt, s.AsOf, segments, s.ExpiresAt, s.Shards,
			s.Expected, s.CancelRequested, s.UnreadSpoolEvents, s.StartedAt, s.FinishedAt, s.Balanced, s.UpdatedAt}}, nil
	case r.Shard != nil:
		s := r.Shard
		return row{runShardRows, []any{id, r.CampaignID, s.Shard, s.Of, s.Candidates, s.Children, s.DoneAt}}, nil
	case r.Counters != nil:
		c := r.Counters
		excluded := make(map[string]int64, len(c.Excluded))
		for i := range c.Excluded {
			excluded[c.Excluded[i].Reason] = c.Excluded[i].Count
		}
		return row{runCounterRows, []any{id, r.CampaignID, c.Partition, c.Repeats, excluded, c.Requested, c.Waiting, c.Rejected,
			c.Accepted, c.Failed, c.Uncertain, c.Expired, c.Cancelled, c.Parked, c.UpdatedAt}}, nil
	}
	return row{}, nil
}

// typed are a person's own values, each in the map of its type.
type typed struct {
	strings, json map[string]string
	ints, times   map[string]int64
	floats        map[string]float64
	bools         map[string]bool
}

func split(values []event.NamedValue) typed {
	m := typed{map[string]string{}, map[string]string{}, map[string]int64{}, map[string]int64{}, map[string]float64{}, map[string]bool{}}
	for i := range values {
		name, v := values[i].Name, values[i].Value
		switch v.Kind() {
		case event.KindString:
			m.strings[name] = v.Text()
		case event.KindInt:
			m.ints[name] = v.Int()
		case event.KindFloat:
			m.floats[name] = v.Float()
		case event.KindBool:
			m.bools[name] = v.Bool()
		case event.KindTime:
			m.times[name] = v.Time().UnixMicro()
		case event.KindJSON:
			m.json[name] = v.Text()
		}
	}
	return m
}

// object writes values as a JSON object, names sorted.
func object(values []event.NamedValue) (string, error) {
	m := make(map[string]event.Value, len(values))
	for i := range values {
		m[values[i].Name] = values[i].Value
	}
	text, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("writing values as JSON: %w", err)
	}
	return string(text), nil
}

