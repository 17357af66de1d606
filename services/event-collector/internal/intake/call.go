package intake

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// call is one event of a request, as it was sent: the body of /v1/track and its like, or an
// item of a batch. Its texts are parts of the request's body.
type call struct {
	raw  string
	kind string // its "type"
	// problems are the first that were found, by whom they concern.
	problems [concerns]*Problem

	messageID, userID, anonymousID, groupID, writeKey string
	event, name, category                             string

	timestamp, originalTimestamp, sentAt moment

	properties, traits []event.NamedValue
	// contextTraits are where RudderStack's libraries put those of an identify.
	traitsGiven   bool
	contextTraits []event.NamedValue
	extras        extras
}

// Whom a problem concerns: a field that means nothing in a call of this kind may hold anything.
const (
	everybody = iota
	ofTrack
	ofPage
	ofGroup
	ofTraits
	ofContextTraits
	ofContext
	ofProperties
	concerns
)

// problem is the first that concerns a kind of call, nil if there is none.
func (c *call) problem(kind string) *Problem {
	whom := [...]int{everybody, ofTrack, ofProperties}
	switch kind {
	case kindPage, kindScreen:
		whom[1] = ofPage
	case kindGroup:
		whom = [...]int{everybody, ofGroup, ofTraits}
	case kindIdentify:
		whom = [...]int{everybody, ofTraits, ofContext}
		if !c.traitsGiven && c.problems[ofTraits] == nil {
			whom[1] = ofContextTraits
		}
	}
	for _, w := range whom {
		if p := c.problems[w]; p != nil {
			return p
		}
	}
	return nil
}

// moment is a time that may be given or not.
type moment struct {
	at    time.Time
	given bool
}

// extras is context.hikyaku of an identify: what traits have no place for.
type extras struct {
	addresses, consents         []named
	locale, timeZone, accountID *string
}

// named is a channel's address or consent; nil is null.
type named struct {
	name string
	text *string
}

// request is a whole body, read.
type request struct {
	scanner
	calls    []call
	given    bool // the body has a batch, if it is one
	problem  *Problem
	writeKey string
	sentAt   moment
	// values is memory that the properties and traits of many events share.
	values []event.NamedValue
}

// maxBatchEvents bounds what a small body can make us keep.
const maxBatchEvents = 5000

// readBatch reads the body of /v1/batch. What is wrong with the whole is in problem.
func (r *request) readBatch(body string) {
	r.s = body
	switch c := r.peek(); c {
	case '{':
		for more := r.opened('}'); more; more = r.more('}') {
			key, ok := r.key()
			if !ok {
				break
			}
			switch key {
			case "batch":
				r.readCalls()
			case "sentAt":
				r.sentAt = r.moment("sentAt", &r.problem)
			case "writeKey":
				r.writeKey = r.textOf("writeKey", &r.problem)
			default:
				r.skip()
			}
		}
	default:
		r.otherwise("", "object", &r.problem)
	}
	r.end()
	if p := r.scanner.problem(); p != nil {
		r.problem = p
	}
}

// readCalls reads the array of events.
func (r *request) readCalls() {
	if r.calls, r.given = r.calls[:0], true; r.peek() != '[' {
		r.otherwise("batch", "array", &r.problem)
		return
	}
	for more := r.opened(']'); more; more = r.more(']') {
		if len(r.calls) == maxBatchEvents {
			if r.problem == nil {
				r.problem = problem("batch", "too_many", "the batch has more than %d events", maxBatchEvents)
			}
			r.skip()
			continue
		}
		r.calls = append(r.calls, call{})
		r.readCall(&r.calls[len(r.calls)-1])
	}
}

// readSingle reads the body of /v1/track and its like.
func (r *request) readSingle(body string) {
	r.s = body
	r.calls = append(r.calls[:0], call{})
	c := &r.calls[0]
	r.readCall(c)
	r.end()
	r.writeKey = c.writeKey
	if p := r.scanner.problem(); p != nil {
		r.problem = p
	}
}

// readCall reads one event. What is wrong with it, while it is JSON, is the event's own
// problem: the others are read all the same.
func (r *request) readCall(c *call) {
	if r.peek() != '{' {
		start := r.at
		r.otherwise("", "object", &c.problems[everybody])
		c.raw = r.s[start:r.at]
		return
	}
	start := r.at
	for more := r.opened('}'); more; more = r.more('}') {
		key, ok := r.key()
		if !ok {
			return
		}
		switch key {
		case "type":
			c.kind = r.textOf(key, &c.problems[everybody])
		case "messageId":
			c.messageID = r.textOf(key, &c.problems[everybody])
		case "userId":
			c.userID = r.id(key, &c.problems[everybody])
		case "anonymousId":
			c.anonymousID = r.id(key, &c.problems[everybody])
		case "groupId":
			c.groupID = r.id(key, &c.problems[ofGroup])
		case "event":
			c.event = r.textOf(key, &c.problems[ofTrack])
		case "name":
			c.name = r.textOf(key, &c.problems[ofPage])
		case "category":
			c.category = r.textOf(key, &c.problems[ofPage])
		case "properties":
			c.properties = r.named(key, &c.problems[ofProperties])
		case "traits":
			c.traitsGiven = r.peek() == '{'
			c.traits = r.named(key, &c.problems[ofTraits])
		case "timestamp":
			c.timestamp = r.moment(key, &c.problems[everybody])
		case "originalTimestamp":
			c.originalTimestamp = r.moment(key, &c.problems[everybody])
		case "sentAt":
			c.sentAt = r.moment(key, &c.problems[everybody])
		case "context":
			r.context(c)
		case "writeKey":
			c.writeKey = r.textOf(key, &c.problems[everybody])
		default:
			r.skip()
		}
	}
	c.raw = r.s[start:r.at]
	if len(c.raw) > MaxEventBytes {
		c.problems[everybody] = problem("", "too_large", "the event has %d bytes, at most %d are allowed", len(c.raw), MaxEventBytes)
	}
}

// otherwise passes a value of a kind that was not expected.
func (r *request) otherwise(field, expected string, at **Problem) {
	found := kindOf(r.peek())
	r.skip()
	if r.bad == "" && *at == nil {
		*at = problem(field, "type", "%s was found where %s was expected", found, expected)
	}
}

// nothing passes whatever is not an object, and says that there is none. Null is nothing, and
// so is an empty array, which is how PHP writes an object without fields.
func (r *request) nothing(field string, at **Problem) bool {
	switch {
	case r.peek() == '{':
		return false
	case r.null():
	default:
		start := r.at
		var p *Problem
		r.otherwise(field, "object", &p)
		if empty := strings.HasPrefix(r.s[start:r.at], "[") && strings.Trim(r.s[start:r.at], "[ \t\r\n]") == "" && strings.Count(r.s[start:r.at], "[") == 1; !empty && *at == nil {
			*at = p
		}
	}
	return true
}

// textOf reads a string, or null for none.
func (r *request) textOf(field string, at **Problem) string {
	if r.peek() == '"' {
		return r.text()
	}
	if !r.null() {
		r.otherwise(field, "string", at)
	}
	return ""
}

// id reads an id: a string, or a number as it is written, or null for none.
func (r *request) id(field string, at **Problem) string {
	id := ""
	switch c := r.peek(); {
	case c == '"':
		id = r.text()
	case c == '-' || '0' <= c && c <= '9':
		id, _ = r.number()
	case !r.null():
		r.otherwise(field, "string", at)
	}
	if len(id) > maxUserIDBytes && *at == nil {
		*at = problem(field, "too_long", "the id is longer than %d bytes", maxUserIDBytes)
	}
	return id
}

// timeLayouts are ISO 8601's usual forms; without a zone it is UTC.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999", "2006-01-02"}

// moment reads a time; null and the empty string are none.
func (r *request) moment(field string, at **Problem) moment {
	if r.peek() != '"' {
		if !r.null() {
			r.skip()
			if r.bad == "" && *at == nil {
				*at = problem(field, "type", "a string such as 2026-05-17T12:00:00.000Z was expected")
			}
		}
		return moment{}
	}
	text := r.text()
	if text == "" {
		return moment{}
	}
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, text); err == nil {
			return moment{t, true}
		}
	}
	if *at == nil {
		*at = problem(field, "value", "%.40q is not a time such as 2026-05-17T12:00:00.000Z", text)
	}
	return moment{}
}

const (
	fewValues    = 16  // that an event may add before the shared memory is thought full
	sharedValues = 512 // of one piece of it
)

// named reads properties or traits, sorted by name, each with the type of its JSON
// value; null is none.
func (r *request) named(field string, at **Problem) []event.NamedValue {
	if r.nothing(field, at) {
		return nil
	}
	if cap(r.values)-len(r.values) < fewValues {
		// The last of a request need not be kept for more than there is to come.
		r.values = make([]event.NamedValue, 0, min(sharedValues, max(fewValues, (len(r.s)-r.at)/20)))
	}
	out := r.values[len(r.values):]
	sorted := true
	for more := r.opened('}'); more; more = r.more('}') {
		name, ok := r.key()
		if !ok {
			return nil
		}
		v, code, reason := r.value()
		if code != "" && *at == nil {
			*at = problem(field+"."+name, code, "%s", reason)
		}
		if n := len(out); n > 0 && name <= out[n-1].Name {
			sorted = false
		}
		out = append(out, event.NamedValue{Name: name, Value: v})
	}
	if cap(out) <= cap(r.values)-len(r.values) { // else it has outgrown the shared memory
		r.values = r.values[:len(r.values)+len(out)]
	}
	if !sorted {
		out = event.Sorted(out)
	}
	return out[:len(out):len(out)]
}

// context reads the two parts of an event's context that mean something here.
func (r *request) context(c *call) {
	if r.nothing("context", &c.problems[ofContext]) {
		return
	}
	for more := r.opened('}'); more; more = r.more('}') {
		key, ok := r.key()
		if !ok {
			return
		}
		switch {
		case key == "hikyaku":
			r.extras(c)
		case key == "traits" && r.peek() == '{':
			// Those of a track or a page are not looked at; they may be anything.
			c.problems[ofContextTraits] = nil
			c.contextTraits = r.named("context.traits", &c.problems[ofContextTraits])
		default:
			r.skip()
		}
	}
}

// extras reads context.hikyaku.
func (r *request) extras(c *call) {
	const field = "context.hikyaku"
	if c.extras = (extras{}); r.nothing(field, &c.problems[ofContext]) {
		return
	}
	for more := r.opened('}'); more; more = r.more('}') {
		key, ok := r.key()
		if !ok {
			return
		}
		switch key {
		case "addresses":
			c.extras.addresses = r.channels(field+".addresses", &c.problems[ofContext])
		case "consents":
			c.extras.consents = r.channels(field+".consents", &c.problems[ofContext])
		case "locale":
			c.extras.locale = r.optional(field+".locale", &c.problems[ofContext])
		case "time_zone":
			c.extras.timeZone = r.optional(field+".time_zone", &c.problems[ofContext])
		case "account_id":
			c.extras.accountID = r.optional(field+".account_id", &c.problems[ofContext])
		default:
			r.skip()
		}
	}
}

// optional reads a string, or nil for null.
func (r *request) optional(field string, at **Problem) *string {
	if r.null() {
		return nil
	}
	text := r.textOf(field, at)
	return &text
}

// channels reads an object of texts by channel, sorted; of equal names the last stays.
func (r *request) channels(field string, at **Problem) (out []named) {
	if r.nothing(field, at) {
		return nil
	}
	for more := r.opened('}'); more; more = r.more('}') {
		name, ok := r.key()
		if !ok {
			return nil
		}
		text := r.optional(fmt.Sprintf("%s.%.40s", field, name), at)
		out = append(slices.DeleteFunc(out, func(n named) bool { return n.name == name }), named{name, text})
	}
	slices.SortFunc(out, func(a, b named) int { return strings.Compare(a.name, b.name) })
	return out
}
