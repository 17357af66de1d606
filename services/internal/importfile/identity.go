package importfile

import (
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// TransactionalID is what whoever writes about an import opens first.
func TransactionalID(importID identity.ID) string { return "import." + importID.String() }

// ID is the import_id of an import that is not an undo, made from its object, its spec and
// how often it is repeated.
func ID(e *event.Import) identity.ID {
	version := e.VersionID
	if version == "" {
		version = identity.UnversionedObject(e.ETag, e.SizeBytes, e.LastModified.UnixMicro())
	}
	id := identity.Import(e.Bucket, e.Key, version, e.SpecID, e.SpecVersion)
	if e.Again > 0 {
		id = identity.ImportAgain(id, e.Again)
	}
	return id
}

// Undoable is for how long after it began an import can be undone. It is a little less than it
// is known whom it changed.
func Undoable() time.Duration {
	updates, _ := topic.ByName(topic.ProfileUpdates)
	return updates.Retain - 24*time.Hour
}
