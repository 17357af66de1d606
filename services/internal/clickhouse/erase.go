package clickhouse

import (
	"strconv"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// PersonTable is a storage table that names people.
type PersonTable struct {
	Name   string
	Kept   bool       // its rows stay under a pseudonym: they say what was done to messages
	from   topic.Name // whose records its rows are, if they go
	unlink string     // what is set beside user_id where they stay
}

// PersonTables are all of them.
var PersonTables = []PersonTable{
	{Name: "event_rows", from: topic.Events},
	{Name: "profile_rows", from: topic.Profiles},
	{Name: "segment_member_rows", from: topic.SegmentMembers},
	{Name: "outcome_rows", Kept: true, unlink: ", detail = '', provider_id = ''"},
	{Name: "engagement_rows", Kept: true, unlink: ", url = '', referer = ''"},
	{Name: "message_input_rows", Kept: true, unlink: ", address = '', locale = '', time_zone = '', attributes = '{}', segments = '{}', record = ''"},
	{Name: "message_rows", Kept: true},
}

// Erased is the condition, with its arguments, under which a row is of what an erasure
// erases of its person. Whoever came back since then is somebody new: what is newer stays.
func (t *PersonTable) Erased(userID string, e *event.Erasure) (where string, args []any) {
	if t.Kept {
		return "user_id = {user:String} AND ingested_at <= {until:DateTime64(3)}",
			[]any{clickhouse.Named("user", userID), clickhouse.Named("until", e.UnlinkedUntil.Format("2006-01-02 15:04:05.000"))}
	}
	end := int64(0) // of a topic that the erasure does not name nothing goes
	for _, of := range e.Ends {
		if of.Topic == string(t.from) {
			end = of.Offset
		}
	}
	return "user_id = {user:String} AND kafka_offset < {end:Int64}", []any{clickhouse.Named("user", userID), clickhouse.Named("end", strconv.FormatInt(end, 10))}
}

// Erase is the statement, with its arguments, that removes these rows, or unlinks them
// if they are kept. It returns when that is so in every part, and may be repeated.
func (t *PersonTable) Erase(userID string, e *event.Erasure) (query string, args []any) {
	where, args := t.Erased(userID, e)
	query = "ALTER TABLE " + t.Name + " DELETE WHERE " + where
	if t.Kept {
		query = "ALTER TABLE " + t.Name + " UPDATE user_id = {pseudonym:String}" + t.unlink + " WHERE " + where
		args = append(args, clickhouse.Named("pseudonym", e.Pseudonym))
	}
	return query + " SETTINGS mutations_sync = 2", args
}
