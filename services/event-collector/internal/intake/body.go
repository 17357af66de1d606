package intake

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
)

// Sizes of what is accepted, as Segment's. A batch is measured after it was
// unpacked.
const (
	MaxEventBytes = 32 << 10
	MaxBatchBytes = 500 << 10
)

// refusal is why a whole request is not looked at.
type refusal struct {
	status int
	Problem
}

func (r *refusal) Error() string { return r.Reason }

func refuse(status int, code, reason string) *refusal {
	return &refusal{status, Problem{Code: code, Reason: reason}}
}

// readBody reads at most limit bytes, unpacked if need be.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	tooLarge := refuse(http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the body is larger than %d bytes", limit))
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	var body io.Reader = http.MaxBytesReader(w, r.Body, limit)
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
	case "gzip":
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			return nil, broken(err, tooLarge)
		}
		body = unpacked
	default:
		return nil, refuse(http.StatusUnsupportedMediaType, "encoding", "the body's encoding is not gzip or identity")
	}
	// One byte more than the limit tells a body that is too large from one that
	// is not, however well it was packed.
	b := bytes.NewBuffer(make([]byte, 0, max(512, min(r.ContentLength, limit)+bytes.MinRead)))
	if _, err := b.ReadFrom(io.LimitReader(body, limit+1)); err != nil {
		return nil, broken(err, tooLarge)
	}
	if int64(b.Len()) > limit {
		return nil, tooLarge
	}
	return b.Bytes(), nil
}

func broken(err error, tooLarge *refusal) error {
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return tooLarge
	}
	return refuse(http.StatusBadRequest, "body", "the body could not be read to its end")
}

// batch is the body of /v1/batch. The write key may stand in any body.
type batch struct {
	Batch    []json.RawMessage `json:"batch"`
	SentAt   json.RawMessage   `json:"sentAt"`
	WriteKey string            `json:"writeKey"`
}

// call is the body of /v1/track and /v1/identify, and an item of a batch.
// Unknown fields are ignored, as Segment's libraries send many.
type call struct {
	Type              string                     `json:"type"`
	MessageID         string                     `json:"messageId"`
	UserID            json.RawMessage            `json:"userId"`
	AnonymousID       json.RawMessage            `json:"anonymousId"`
	Event             string                     `json:"event"`
	Properties        map[string]json.RawMessage `json:"properties"`
	Traits            map[string]json.RawMessage `json:"traits"`
	Timestamp         json.RawMessage            `json:"timestamp"`
	OriginalTimestamp json.RawMessage            `json:"originalTimestamp"`
	SentAt            json.RawMessage            `json:"sentAt"`
	Context           json.RawMessage            `json:"context"`
	WriteKey          string                     `json:"writeKey"`
}

// parse reads JSON into v and says which field is wrong.
func parse(raw []byte, v any) *Problem {
	err := json.Unmarshal(raw, v)
	if err == nil {
		return nil
	}
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return &Problem{Field: wrong.Field, Code: "type", Reason: fmt.Sprintf("%s was found where %s was expected", wrong.Value, expected(wrong.Type.Kind()))}
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return &Problem{Code: "json", Reason: fmt.Sprintf("not JSON at byte %d: %v", syntax.Offset, syntax)}
	}
	return &Problem{Code: "json", Reason: "not JSON"}
}

// expected is JSON's word for what Go wanted.
func expected(kind reflect.Kind) string {
	switch kind {
	case reflect.Slice:
		return "array"
	case reflect.Map, reflect.Struct:
		return "object"
	}
	return kind.String()
}
