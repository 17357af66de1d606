// Package pinpoint reads the segment files of Amazon Pinpoint, as that service imported
// and exported them, without an import spec: CSV with a header, or one JSON object on each line.
// Each row is an endpoint, which is a way to reach a person. What becomes of what in it is in
// docs/decisions/20261122-pinpoint.md; both formats name a thing alike
// (User.UserAttributes.FirstName), so there is one mapping.
package pinpoint

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/hikyaku/hikyaku/schemas/definition"
)

const (
	// SpecID is the id of the spec that is built in. Nobody can give a spec of their own this
	// name, since ids have no colon.
	SpecID = "builtin:pinpoint"
	// Version rises when a row is mapped to something else.
	Version = 1
	// Format is either of the two; which, the file's first bytes tell.
	Format = "pinpoint"
	// Object is the column, and the only one, of JSON Lines: all of the line.
	Object = ""
)

// Spec is the spec that is built in, for a file that fills a segment, or none if that is
// empty.
func Spec(segmentID string) *definition.ImportSpec {
	spec := &definition.ImportSpec{ID: SpecID, Source: definition.Source{Format: Format, Delimiter: ","}, Profile: &definition.Profile{}}
	if segmentID != "" {
		// A segment that Pinpoint has exported is several files.
		spec.Segment = &definition.Segment{ID: segmentID, Mode: definition.SegmentAdd}
	}
	return spec
}

// Segment is the folder that names the segment a file fills: the first of those in its key, of which
// the prefix is cut off already. It is empty if there is none.
func Segment(key string) string {
	folder, _, in := strings.Cut(key, "/")
	if !in {
		return ""
	}
	return folder
}

// FormatOf is the format of a file whose text begins like this.
func FormatOf(head []byte) string {
	if bytes.ContainsAny(head, "{[") {
		return definition.FormatJSONL
	}
	return definition.FormatCSV
}

// Recognises says whether a file with these names for its values is a segment file of
// Pinpoint.
func Recognises(names []string) bool {
	has := func(name string) bool { return slices.Contains(names, name) }
	return has("ChannelType") && (has("Address") || has("Id") || has("User.UserId")) ||
		has("User.UserId") && slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "User.UserAttributes.") })
}

// NotTaken are the names of what may be in a file and is not kept of it.
func NotTaken() []string {
	return []string{"ApplicationId", "CohortId", "CreationDate", "EffectiveDate", "Id, where there is a User.UserId", "RequestId"}
}

// check refuses a folder that cannot name a segment, and a header without anybody.
func check(spec *definition.ImportSpec, header []string) error {
	if s := spec.Segment; s != nil && !definition.IsID(s.ID) {
		return fmt.Errorf("the folder %q cannot name a segment: it has to be of a-z, 0-9 and -, such as vip-customers", s.ID)
	}
	if slices.Equal(header, []string{Object}) {
		return nil
	}
	named := map[string]bool{}
	for _, h := range header {
		name := strings.TrimSpace(h)
		if k := meaning(name).kind; named[name] && k != kindAttribute && k != kindNone {
			return fmt.Errorf("the header has the column %q more than once", name)
		}
		named[name] = true
	}
	if !named[userID] && !named[endpointID] && !named[address] {
		return fmt.Errorf("this is no segment file of Amazon Pinpoint: the header has none of %s, %s and %s", userID, endpointID, address)
	}
	return nil
}
