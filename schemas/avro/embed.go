// Package avro holds the contract: one .avsc file per record and version,
// named <record>.v<N>.avsc. A released file is never edited; a change is a new
// version, which must be fully compatible with every earlier one (Compatible).
//
// Reading a schema here means our dialect of Avro: no maps (their order is
// random), no enums (open sets are strings), no aliases.
package avro

import (
	"embed"
	"fmt"
	"io/fs"
	"sort"
	"strconv"
	"strings"
)

//go:embed *.avsc
var files embed.FS

// Files returns the .avsc files, in one folder.
func Files() fs.FS { return files }

// Version is one .avsc file.
type Version struct {
	Record string // as in the file name: message_request
	Number int    // from 1
	Text   []byte // the file
	Schema *Schema
}

// File is the version's file name.
func (v Version) File() string { return fmt.Sprintf("%s.v%d.avsc", v.Record, v.Number) }

// Versions reads every .avsc file of a folder, sorted by record and number.
// Numbers without a gap from 1 are required: a missing file is a lost contract.
func Versions(folder fs.FS) ([]Version, error) {
	names, err := fs.Glob(folder, "*.avsc")
	if err != nil {
		return nil, fmt.Errorf("listing schemas: %w", err)
	}
	var out []Version
	for _, name := range names {
		record, number, ok := strings.Cut(strings.TrimSuffix(name, ".avsc"), ".v")
		n, err := strconv.Atoi(number)
		if !ok || err != nil || n < 1 {
			return nil, fmt.Errorf("reading schema %s: want <record>.v<N>.avsc", name)
		}
		text, err := fs.ReadFile(folder, name)
		if err != nil {
			return nil, fmt.Errorf("reading schema %s: %w", name, err)
		}
		s, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("reading schema %s: %w", name, err)
		}
		out = append(out, Version{Record: record, Number: n, Text: text, Schema: s})
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Record != out[j].Record {
			return out[i].Record < out[j].Record
		}
		return out[i].Number < out[j].Number
	})
	for i, v := range out {
		want := 1
		if i > 0 && out[i-1].Record == v.Record {
			want = out[i-1].Number + 1
		}
		if v.Number != want {
			return nil, fmt.Errorf("reading schema %s: v%d is missing", v.File(), want)
		}
	}
	return out, nil
}

// Latest keeps the highest version of each record.
func Latest(versions []Version) []Version {
	var out []Version
	for i, v := range versions {
		if i+1 == len(versions) || versions[i+1].Record != v.Record {
			out = append(out, v)
		}
	}
	return out
}
