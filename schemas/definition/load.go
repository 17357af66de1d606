package definition

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Options are what Load cannot know by itself.
type Options struct {
	// ParseTemplate reports whether a Liquid text parses. html is set for the HTML part of a template, strict as the template says.
	// An error that has a method LineNumber() int names the line at fault, from 1. Nil accepts every text.
	ParseTemplate func(src string, html, strict bool) error
}

// Document is one accepted definition.
type Document struct {
	Ref
	Definition Definition
	Body       []byte // canonical; see Encode
	File       string
	Line       int

	mentions []mention
}

// mention is a place that names another definition.
type mention struct {
	ref          Ref
	field        string
	line, column int
}

// KindSegment is the kind under which Validate asks for a segment, which is made by an import spec and is no document of its own.
const KindSegment = "Segment"

// Load reads a file, or every *.yaml and *.yml under a directory, in order of their names. The error is an Errors with everything wrong
// in all of them, or what the file system said; documents are returned only when there is none. What one document says about another is
// left to Validate.
func Load(path string, o Options) ([]Document, error) {
	files, err := filesOf(path)
	if err != nil {
		return nil, err
	}
	var docs []Document
	var wrong Errors
	for _, f := range files {
		src, err := readBounded(f)
		if err != nil {
			return nil, fmt.Errorf("reading definitions: %w", err)
		}
		found, errs := Parse(f, src, o)
		docs = append(docs, found...)
		wrong = append(wrong, errs...)
	}
	if len(wrong) > 0 {
		return nil, wrong.orNil()
	}
	if len(docs) == 0 {
		return nil, Errors{{File: path, Message: "no definitions here", Expected: "*.yaml or *.yml files"}}
	}
	return docs, nil
}

func filesOf(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading definitions: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var files []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != path && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if ext := filepath.Ext(p); !d.IsDir() && (ext == ".yaml" || ext == ".yml") {
			files = append(files, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading definitions: %w", err)
	}
	return files, nil // WalkDir goes in lexical order
}

// readBounded reads at most one byte more than a file may have, so that a wrong path costs no memory.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFileBytes+1))
}

// Parse reads the documents in src. file names them in errors, and files they embed are looked for beside it.
func Parse(file string, src []byte, o Options) ([]Document, Errors) {
	nodes, err := parseYAML(file, src)
	if err != nil {
		return nil, Errors{err}
	}
	var docs []Document
	var wrong Errors
	for _, n := range nodes {
		d := &decoder{file: file, options: o}
		def := d.document(n)
		if len(d.errs) > 0 {
			wrong = append(wrong, d.errs...)
			continue
		}
		body, err := Encode(def)
		if err != nil {
			wrong = append(wrong, &Error{File: file, Line: n.line, Column: n.column, Message: err.Error()})
			continue
		}
		docs = append(docs, Document{Ref: def.Ref(), Definition: def, Body: body, File: file, Line: n.line, mentions: d.mentions})
	}
	return docs, wrong
}

// Validate checks what documents say about each other: none is there twice, and whatever they name is among them or known (kind is one of
// Kinds or KindSegment). The error is an Errors.
func Validate(docs []Document, known func(kind, id string) bool) error {
	var wrong Errors
	here := map[Ref]*Document{}
	segments := map[string]bool{}
	names := map[string][]string{}
	for i := range docs {
		d := &docs[i]
		if first, twice := here[d.Ref]; twice {
			wrong = append(wrong, &Error{File: d.File, Line: d.Line, Column: 1, Field: "id",
				Message: fmt.Sprintf("%s is already in %s:%d", d.Ref, first.File, first.Line)})
			continue
		}
		here[d.Ref] = d
		names[d.Kind] = append(names[d.Kind], d.ID)
		if spec, ok := d.Definition.(*ImportSpec); ok && spec.Segment != nil {
			segments[spec.Segment.ID] = true
			names[KindSegment] = append(names[KindSegment], spec.Segment.ID)
		}
	}
	for _, d := range docs {
		for _, m := range d.mentions {
			if here[m.ref] != nil || m.ref.Kind == KindSegment && segments[m.ref.ID] || known != nil && known(m.ref.Kind, m.ref.ID) {
				continue
			}
			e := &Error{File: d.File, Line: m.line, Column: m.column, Field: m.field,
				Message: fmt.Sprintf("there is no %s %q", m.ref.Kind, m.ref.ID), Suggestion: nearest(m.ref.ID, names[m.ref.Kind]), meaning: true}
			if m.ref.Kind == KindSegment {
				e.Expected = "the segment.id of an ImportSpec"
			} else {
				e.Expected = "one in these files or applied before"
			}
			wrong = append(wrong, e)
		}
	}
	return wrong.orNil()
}
