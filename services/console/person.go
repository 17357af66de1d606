package console

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/admit"
	"github.com/hikyaku/hikyaku/services/internal/audience"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
)

// person is a profile as ClickHouse holds it.
type person struct {
	userID              string
	attributes          []event.NamedValue // sorted, without nulls
	addresses, consents map[string]string  // by channel
	suppressions        map[string]string  // why the address of a channel is not written to
	locale, timeZone    string
}

// typedMaps are values as the tables hold them: each in the map of its type.
type typedMaps struct {
	text    map[string]string
	integer map[string]int64
	float   map[string]float64
	boolean map[string]bool
	instant map[string]int64 // microseconds since 1970
	json    map[string]string
}

func (m *typedMaps) into() []any {
	return []any{&m.text, &m.integer, &m.float, &m.boolean, &m.instant, &m.json}
}

func (m *typedMaps) values() []event.NamedValue {
	var out []event.NamedValue
	add := func(name string, v event.Value) { out = append(out, event.NamedValue{Name: name, Value: v}) }
	for k, v := range m.text {
		add(k, event.String(v))
	}
	for k, v := range m.integer {
		add(k, event.Int(v))
	}
	for k, v := range m.float {
		add(k, event.Float(v))
	}
	for k, v := range m.boolean {
		add(k, event.Bool(v))
	}
	for k, v := range m.instant {
		add(k, event.Time(time.UnixMicro(v)))
	}
	for k, v := range m.json {
		add(k, event.JSON(v))
	}
	return event.Sorted(out)
}

const personQuery = `SELECT attr_string, attr_int, attr_float, attr_bool, attr_time, attr_json, addresses, consents, suppressions, locale, time_zone FROM profiles WHERE user_id = ?`

// errNobody says that there is no profile of this user_id.
var errNobody = errors.New("no profile")

func (a *app) person(ctx context.Context, userID string) (*person, error) {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return nil, err
	}
	a.sql(personQuery, userID)
	p := person{userID: userID}
	var m typedMaps
	err = conn.QueryRow(ctx, personQuery, userID).Scan(append(m.into(), &p.addresses, &p.consents, &p.suppressions, &p.locale, &p.timeZone)...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errNobody
	}
	if err != nil {
		return nil, fmt.Errorf("reading a profile: %w", err)
	}
	p.attributes = m.values()
	return &p, nil
}

// admission returns why the person would not be sent to now, or nothing: the
// resolver decides by the same rule when a campaign runs.
func (p *person) admission(channel string, campaign *definition.Campaign) (reason string) {
	return string(admit.Decide(admit.Question{Address: p.addresses[channel], Consent: p.consents[channel], Suppressed: p.suppressions[channel], Rule: campaign.Consent}))
}

// placeholders are n of them, for IN (…).
func placeholders(n int, one string) string {
	return strings.TrimSuffix(strings.Repeat(one+", ", n), ", ")
}

// memberships returns the person's places in the pinned imports, with what the
// lists say about the person.
func (a *app) memberships(ctx context.Context, userID string, pins []event.SegmentPin) ([]event.Membership, error) {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return nil, err
	}
	var out []event.Membership
	for _, pin := range pins {
		if len(pin.ImportIDs) == 0 {
			continue
		}
		of, err := a.membershipsIn(ctx, conn, userID, pin)
		if err != nil {
			return nil, fmt.Errorf("reading memberships of segment %s: %w", pin.SegmentID, err)
		}
		out = append(out, of...)
	}
	return out, nil
}

func (a *app) membershipsIn(ctx context.Context, conn *clickhouse.Conn, userID string, pin event.SegmentPin) ([]event.Membership, error) {
	// The rows and not the view: its JSON column would change numbers and
	// names with dots.
	query := `SELECT import_id, attributes FROM segment_member_rows FINAL WHERE segment_id = ? AND user_id = ? AND import_id IN (` + placeholders(len(pin.ImportIDs), "toUUID(?)") + `)`
	args := []any{pin.SegmentID, userID}
	for _, id := range pin.ImportIDs {
		args = append(args, id.UUID())
	}
	a.sql(query, args...)
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []event.Membership
	for rows.Next() {
		var id uuid.UUID
		var text string
		if err := rows.Scan(&id, &text); err != nil {
			return nil, err
		}
		m := event.Membership{SegmentID: pin.SegmentID, ImportID: identity.ID(id)}
		var values map[string]event.Value
		if err := json.Unmarshal([]byte(text), &values); err != nil {
			return nil, fmt.Errorf("reading attributes: %w", err)
		}
		for name, v := range values {
			m.Attributes = append(m.Attributes, event.NamedValue{Name: name, Value: v})
		}
		m.Attributes = event.Sorted(m.Attributes)
		out = append(out, m)
	}
	return out, rows.Err()
}

// facts are what the filter asks about the person: attributes as they are today,
// the imports at the moment, and the events that had arrived by then.
func (a *app) facts(ctx context.Context, p *person, n *filter.Node, at audience.Moment) (*audience.Facts, error) {
	f := audience.Facts{Attributes: p.attributes}
	members, err := a.memberships(ctx, p.userID, at.Segments)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		f.Imports = append(f.Imports, audience.Membership{SegmentID: m.SegmentID, ImportID: m.ImportID})
	}
	args := []any{p.userID, at.AsOf.UnixMilli()}
	seen := map[string]bool{}
	n.Walk(func(n *filter.Node) {
		if n.Event != nil && !seen[n.Event.Name] {
			seen[n.Event.Name] = true
			args = append(args, n.Event.Name)
		}
	})
	if len(seen) == 0 {
		return &f, nil
	}
	query := `SELECT event_id, name, occurred_at, prop_string, prop_int, prop_float, prop_bool, prop_time, prop_json
FROM events WHERE user_id = ? AND ingested_at <= fromUnixTimestamp64Milli(toInt64(?), 'UTC') AND name IN (` + placeholders(len(seen), "?") + `)`
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return nil, err
	}
	a.sql(query, args...)
	rows, err := conn.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("reading a person's events: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var h audience.Happening
		var m typedMaps
		if err := rows.Scan(append([]any{&h.ID, &h.Name, &h.OccurredAt}, m.into()...)...); err != nil {
			return nil, fmt.Errorf("reading a person's events: %w", err)
		}
		h.Properties = m.values()
		f.Events = append(f.Events, h)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading a person's events: %w", err)
	}
	return &f, nil
}

// isMember asks ClickHouse what a run would ask it, for one person.
func (a *app) isMember(ctx context.Context, userID string, n *filter.Node, at audience.Moment) (bool, error) {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return false, err
	}
	q := audience.Count(n, at) // … WHERE (…)
	q.SQL += " AND user_id = ?"
	q.Args = append(q.Args, userID)
	a.sql(q.SQL, q.Args...)
	var count uint64
	if err := conn.QueryRow(ctx, q.SQL, q.Args...).Scan(&count); err != nil {
		return false, fmt.Errorf("asking whether a person is in the audience: %w", err)
	}
	return count > 0, nil
}
