package importfile

// The states of an import, in this order; failed may follow any but done, and undone
// follows done or failed.
const (
	StateAnnounced = "announced" // seen; nothing written yet
	StateReading   = "reading"   // rows up to offset_bytes are committed
	StatePublished = "published" // all rows are committed
	StateLoaded    = "loaded"    // resolver and sink have passed them
	StateDone      = "done"      // the segment points at it, the report is written
	StateFailed    = "failed"
	StateUndone    = "undone" // it had ended, and another import has taken it back
)

// States are all of them.
func States() []string {
	return []string{StateAnnounced, StateReading, StatePublished, StateLoaded, StateDone, StateFailed, StateUndone}
}

// Ended says whether an import in this state is over.
func Ended(state string) bool {
	return state == StateDone || state == StateFailed || state == StateUndone
}

// What the importer writes of an object has the object's name and one of these behind
// it, and is never imported.
const (
	RejectsSuffix = ".rejects.csv"
	ReportSuffix  = ".report.json"
)
