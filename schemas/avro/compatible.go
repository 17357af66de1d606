package avro

import (
	"fmt"
	"slices"
)

// Compatible checks FULL_TRANSITIVE: whatever was written with any version of
// a record can be read with any other. It returns every fault it finds.
func Compatible(versions []Version) []error {
	var faults []error
	for i, a := range versions {
		for _, b := range versions[i+1:] {
			if a.Record != b.Record {
				continue
			}
			for _, fault := range readable(a.Schema, b.Schema, "") {
				faults = append(faults, fmt.Errorf("%s cannot be read with %s: %s", a.File(), b.File(), fault))
			}
			for _, fault := range readable(b.Schema, a.Schema, "") {
				faults = append(faults, fmt.Errorf("%s cannot be read with %s: %s", b.File(), a.File(), fault))
			}
		}
	}
	return faults
}

// readable lists why data written with w cannot be read with r.
func readable(w, r *Schema, at string) []string {
	if w.Kind == Union {
		var faults []string
		for _, branch := range w.Branches {
			faults = append(faults, readable(branch, r, at)...)
		}
		return faults
	}
	if r.Kind == Union {
		branch := Resolve(w, r.Branches)
		if branch == nil {
			return []string{fmt.Sprintf("%s: no branch for %s", at, w.title())}
		}
		return readable(w, branch, at)
	}
	if Resolve(w, []*Schema{r}) == nil {
		return []string{fmt.Sprintf("%s: %s became %s", at, w.title(), r.title())}
	}
	switch r.Kind {
	case Array:
		return readable(w.Items, r.Items, at+"[]")
	case Record:
		var faults []string
		for _, f := range r.Fields {
			name := at + "." + f.Name
			if of, ok := w.Field(f.Name); ok {
				faults = append(faults, readable(of.Type, f.Type, name)...)
			} else if f.Default == nil {
				faults = append(faults, name+": not written, and without default")
			}
		}
		return faults
	}
	return nil
}

func (s *Schema) title() string {
	switch {
	case s.Kind == Fixed:
		return fmt.Sprintf("%s of %d bytes", s.Name, s.Size)
	case s.Name != "":
		return s.Name
	case s.Logical != "":
		return s.Logical
	}
	return string(s.Kind)
}

// Resolve picks the candidate with which a reader reads data written as w,
// which is no union: the same type, else the first that Avro widens it to. The
// insides of records and arrays are not compared. Nil means none.
func Resolve(w *Schema, candidates []*Schema) *Schema {
	for _, r := range candidates {
		if w.Kind == r.Kind && w.ShortName() == r.ShortName() && w.Size == r.Size && w.Logical == r.Logical {
			return r
		}
	}
	for _, r := range candidates {
		if slices.Contains(widens(w.Kind), r.Kind) && w.Logical == "" && r.Logical == "" {
			return r
		}
	}
	return nil
}

// widens lists Avro's promotions. What a number counts is part of the contract,
// so a logical type neither comes nor goes.
func widens(k Kind) []Kind {
	switch k {
	case Int:
		return []Kind{Long, Float, Double}
	case Long:
		return []Kind{Float, Double}
	case Float:
		return []Kind{Double}
	case String:
		return []Kind{Bytes}
	case Bytes:
		return []Kind{String}
	}
	return nil
}

// SameBytes reports whether both schemas put every value as the same bytes;
// docs, defaults and namespaces do not matter.
func SameBytes(a, b *Schema) bool {
	if a.Kind != b.Kind || a.Logical != b.Logical || a.Size != b.Size || a.ShortName() != b.ShortName() || len(a.Fields) != len(b.Fields) || len(a.Branches) != len(b.Branches) {
		return false
	}
	for i := range a.Fields {
		if a.Fields[i].Name != b.Fields[i].Name || !SameBytes(a.Fields[i].Type, b.Fields[i].Type) {
			return false
		}
	}
	for i := range a.Branches {
		if !SameBytes(a.Branches[i], b.Branches[i]) {
			return false
		}
	}
	return a.Kind != Array || SameBytes(a.Items, b.Items)
}
