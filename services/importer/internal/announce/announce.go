// Package announce reads what servers say when an object has appeared: S3's own
// notification, which MinIO and versitygw send as well, the same inside SNS, and
// EventBridge's form of it.
//
// An announcement is not a fact, only a reason to look at a key now. So nothing is
// taken from it but where to look, and what comes twice, late or in the wrong order
// needs no memory: the second look finds what the first has found. S3's sequencer
// would tell the order of two announcements of one key; whoever looks needs it not.
package announce

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxKey is the length of the longest key that S3 allows, in bytes.
const maxKey = 1024

// Object is where to look.
type Object struct {
	Bucket    string
	Key       string // as it is, not as a URL has it
	VersionID string // empty if the bucket has no versions, or the server does not say
}

// message has the fields of all forms, since only they tell which one it is.
type message struct {
	// S3, MinIO and versitygw. MinIO adds EventName and Key, which repeat.
	Records []struct {
		EventSource string `json:"eventSource"` // aws:s3, or minio:s3
		EventName   string `json:"eventName"`   // ObjectCreated:Put; with s3: before it from MinIO and versitygw
		S3          struct {
			Bucket struct {
				Name string `json:"name"`
			} `json:"bucket"`
			Object struct {
				Key       string `json:"key"`
				VersionID string `json:"versionId"`
			} `json:"object"`
		} `json:"s3"`
	}

	// What a server sends when notifications are set up.
	Event string

	// SNS; the announcement is a text in it.
	Type    string
	Message string

	// EventBridge.
	DetailType string `json:"detail-type"`
	Source     string `json:"source"`
	Detail     struct {
		Bucket struct {
			Name string `json:"name"`
		} `json:"bucket"`
		Object struct {
			Key       string `json:"key"`
			VersionID string `json:"version-id"`
		} `json:"object"`
	} `json:"detail"`
}

// Parse returns the objects that a message announces; none if it is about something
// else that happens to objects, or a test. The error says in words why it is no
// announcement, and does not quote it.
func Parse(body []byte) ([]Object, error) {
	var m message
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("the message is no JSON object with the fields of an announcement: %w", err)
	}
	if m.Type == "Notification" && m.Message != "" {
		text := m.Message
		m = message{}
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			return nil, fmt.Errorf("the SNS notification holds no JSON object with the fields of an announcement: %w", err)
		}
	}
	switch {
	case m.Records != nil:
		return records(&m)
	case m.DetailType != "":
		return eventBridge(&m)
	case m.Event == "s3:TestEvent":
		return nil, nil
	}
	return nil, errors.New("the message is neither an S3 notification nor EventBridge's form of one")
}

func records(m *message) ([]Object, error) {
	if len(m.Records) == 0 {
		return nil, errors.New("the S3 notification has no records")
	}
	var objects []Object
	for n, r := range m.Records {
		switch {
		case r.EventSource != "aws:s3" && r.EventSource != "minio:s3":
			return nil, fmt.Errorf("record %d is not from S3", n+1)
		case r.EventName == "":
			return nil, fmt.Errorf("record %d does not say what happened", n+1)
		case !strings.HasPrefix(strings.TrimPrefix(r.EventName, "s3:"), "ObjectCreated:"):
			continue
		}
		keys := readings(r.S3.Object.Key)
		if len(keys) == 0 {
			return nil, fmt.Errorf("record %d has no key that an object can have", n+1)
		}
		for _, key := range keys {
			o := Object{Bucket: r.S3.Bucket.Name, Key: key, VersionID: r.S3.Object.VersionID}
			if o.Bucket == "" {
				return nil, fmt.Errorf("record %d names no bucket", n+1)
			}
			objects = append(objects, o.unversioned())
		}
	}
	return objects, nil
}

// readings returns the keys that may be meant. AWS and MinIO write a key as a form in
// a URL does; versitygw, in the same fields, as it is. The wrong reading names an
// object that is not there, or one that may be looked at as well.
func readings(key string) []string {
	keys := []string{key}
	if decoded, err := url.QueryUnescape(key); err == nil && decoded != key {
		keys = []string{decoded, key}
	}
	return slices.DeleteFunc(keys, func(k string) bool { return !possible(k) })
}

func eventBridge(m *message) ([]Object, error) {
	switch {
	case m.Source != "aws.s3" || !strings.HasPrefix(m.DetailType, "Object "):
		return nil, errors.New("the EventBridge event is not about an object on S3")
	case m.DetailType != "Object Created":
		return nil, nil
	case m.Detail.Bucket.Name == "":
		return nil, errors.New("the EventBridge event names no bucket")
	case !possible(m.Detail.Object.Key):
		return nil, errors.New("the EventBridge event has no key that an object can have")
	}
	o := Object{Bucket: m.Detail.Bucket.Name, Key: m.Detail.Object.Key, VersionID: m.Detail.Object.VersionID}
	return []Object{o.unversioned()}, nil
}

// possible says whether an object can have this key.
func possible(key string) bool {
	return key != "" && len(key) <= maxKey && utf8.ValidString(key) && !strings.Contains(key, "\x00")
}

// unversioned removes the version of a bucket that has none: null where versions
// were given once.
func (o Object) unversioned() Object {
	if o.VersionID == "null" {
		o.VersionID = ""
	}
	return o
}
