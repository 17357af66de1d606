package importfile

import (
	"slices"
	"strings"
)

// Tally counts what rejects have in common, in memory that does not grow with their
// number. The zero one is empty.
type Tally struct {
	kinds map[place]*RejectKind
	other RejectKind
}

// place is where a kind of rejects is kept.
type place struct{ column, reason string }

// RejectKind is the rejects that have one reason in one column.
type RejectKind struct {
	Column    string // empty if it concerns the whole row
	Reason    string
	Rows      int64
	FirstLine int64
}

// maxKinds are told apart; the rest are counted together, as otherReasons.
const (
	maxKinds     = 100
	otherReasons = "other reasons"
)

// Add counts a reject. The texts are kept as copies.
func (t *Tally) Add(line int64, column, reason string) {
	kind := t.kinds[place{column, reason}]
	switch {
	case kind != nil:
	case len(t.kinds) < maxKinds:
		if t.kinds == nil {
			t.kinds = map[place]*RejectKind{}
		}
		kind = &RejectKind{Column: strings.Clone(column), Reason: strings.Clone(reason), FirstLine: line}
		t.kinds[place{kind.Column, kind.Reason}] = kind
	default:
		kind = &t.other
		if kind.Rows == 0 {
			kind.Reason, kind.FirstLine = otherReasons, line
		}
	}
	kind.Rows++
}

// Kinds returns the kinds with the most rows first, those that have as many in the
// order of tie, and last the other reasons.
func (t *Tally) Kinds(tie func(a, b RejectKind) int) []RejectKind {
	kinds := make([]RejectKind, 0, len(t.kinds)+1)
	for _, k := range t.kinds {
		kinds = append(kinds, *k)
	}
	slices.SortFunc(kinds, func(a, b RejectKind) int {
		if a.Rows != b.Rows {
			return int(b.Rows - a.Rows)
		}
		return tie(a, b)
	})
	if t.other.Rows > 0 {
		kinds = append(kinds, t.other)
	}
	return kinds
}
