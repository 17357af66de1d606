package definition

import (
	"fmt"
	"sort"
	"strings"
)

// Error is one thing wrong with one document.
type Error struct {
	File       string // as given to Load, joined with the name inside the directory
	Line       int    // from 1; 0 when the file as a whole is meant
	Column     int    // from 1; 0 when the line as a whole is meant
	Field      string // the path inside the document, such as filter.all[0].attribute.gte; may be empty
	Message    string
	Expected   string // what would have been right; may be empty
	Suggestion string // the nearest right word; may be empty

	meaning bool // the shape is right, so that the JSON Schema accepts it
}

// Error prints file:line:column: field: message, and then the nearest right word or what was expected.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
		if e.Column > 0 {
			fmt.Fprintf(&b, ":%d", e.Column)
		}
	}
	b.WriteString(": ")
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Message)
	switch {
	case e.Suggestion != "":
		fmt.Fprintf(&b, "; did you mean %q?", e.Suggestion)
	case e.Expected != "":
		b.WriteString("; expected " + e.Expected)
	}
	return b.String()
}

// Errors is everything wrong with a set of documents, by file and position. It is never empty when it is returned as an error.
type Errors []*Error

// Error prints one error per line.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// orNil keeps an empty list from becoming a non-nil error.
func (e Errors) orNil() error {
	if len(e) == 0 {
		return nil
	}
	sort.SliceStable(e, func(i, j int) bool {
		a, b := e[i], e[j]
		if a.File != b.File {
			return a.File < b.File
		}
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		return a.Column < b.Column
	})
	return e
}

// nearest returns the word that differs least from the one written, or nothing if none is near: at most one edit in three letters.
func nearest(written string, words []string) string {
	best, bestDistance := "", max(1, len(written)/3)+1
	for _, w := range words {
		if d := distance(strings.ToLower(written), strings.ToLower(w)); d < bestDistance {
			best, bestDistance = w, d
		}
	}
	return best
}

// distance counts insertions, deletions, substitutions and swaps of neighbours (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// oneOf writes a list of words as a person would.
func oneOf(words []string) string {
	switch len(words) {
	case 0:
		return "nothing"
	case 1:
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}
