// Package exports is what the importer, which does exports, and the command, which asks for
// them, have to agree on.
package exports

import (
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// The states of an export, in this order; failed may follow any before sealed.
const (
	Requested = "requested" // somebody asked for it
	Writing   = "writing"   // an attempt is under way
	Sealed    = "sealed"    // its files are complete, and are the export
	Done      = "done"      // the manifest is written
	Failed    = "failed"
)

// Ended says that nothing more becomes of an export in this state.
func Ended(state string) bool { return state == Done || state == Failed }

// Manifest is the file whose presence says that an export is complete.
const Manifest = "manifest.json"

// TransactionalID is that of whoever writes about an export, without the namespace.
func TransactionalID(id identity.ID) string { return "export." + id.String() }

// New is the first record of an export: version of def, due or asked for at a time. The moment is
// that of its schedule, or the id of a request.
func New(namespace string, def *definition.Export, version int64, body []byte, moment string, at time.Time) event.Export {
	id := identity.Export(namespace, def.ID, version, moment)
	at = at.UTC().Truncate(time.Microsecond)
	return event.Export{
		ExportID: id, DefinitionID: def.ID, DefinitionVersion: version, Definition: string(body), Moment: moment,
		RequestedAt: at, State: Requested, AsOf: time.Unix(0, 0).UTC(), UpdatedAt: at,
		Folder: def.To + at.Format("20060102T150405Z") + "-" + id.String()[:12] + "/",
	}
}
