package export

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
)

// written is what an attempt has written so far. One goroutine writes, another tells of it.
type written struct {
	mu    sync.Mutex
	rows  int64
	files []event.ExportFile // complete
}

func (w *written) get() (rows int64, files []event.ExportFile) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rows, w.files
}

func (w *written) set(rows int64, files []event.ExportFile) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows, w.files = rows, files
}

// countEvery is after how many rows the progress is told, and whether to stop looked at.
const countEvery = 1024

// maxFiles keeps the record of an export, which lists them, far below the largest there can be.
const maxFiles = 4000

// splitter writes rows into one file after the other.
type splitter struct {
	ctx     context.Context
	export  *definition.Export
	columns []column
	bucket  bucket
	folder  string
	attempt int64

	object *object
	file   file
	before int64 // rows of the files before
	rows   int64
	files  []event.ExportFile
}

func (s *splitter) write(row []cell) error {
	if s.file == nil {
		if err := s.begin(); err != nil {
			return err
		}
	}
	if err := s.file.Write(row); err != nil {
		return err
	}
	s.rows++
	if s.object.bytes >= s.export.MaxFileBytes {
		return s.end()
	}
	return nil
}

// begin opens the next file. The attempt is in its name, so that a former one that is not
// quite dead cannot replace it.
func (s *splitter) begin() (err error) {
	if len(s.files) == maxFiles {
		return &Failure{fmt.Sprintf("more than %d files; allow them to be larger with max_file_bytes", maxFiles)}
	}
	s.before = s.rows
	s.object = s.bucket.create(s.ctx, fmt.Sprintf("%spart-%d-%05d%s", s.folder, s.attempt, len(s.files)+1, extension(s.export)))
	s.file, err = newFile(s.export, s.columns, s.object)
	return err
}

func (s *splitter) end() error {
	if err := s.file.Close(); err != nil {
		return err
	}
	if err := s.object.Close(); err != nil {
		return err
	}
	s.files = append(s.files[:len(s.files):len(s.files)], event.ExportFile{
		Key: s.object.key[len(s.folder):], Rows: s.rows - s.before, Bytes: s.object.bytes, Sha256: s.object.sha256(),
	})
	s.file, s.object = nil, nil
	return nil
}

// page writes the rows of a sorter.
func (s *splitter) page(rows *reader, page *sorter, progress *written) error {
	err := page.each(func(b []byte) error {
		row, err := rows.row(b)
		if err != nil {
			return err
		}
		if err := s.write(row); err != nil {
			return err
		}
		if s.rows%countEvery == 0 && s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		return nil
	})
	progress.set(s.rows, s.files)
	return err
}

// finish ends the last file. Even no rows make a file.
func (s *splitter) finish(progress *written) error {
	if s.file == nil && len(s.files) == 0 {
		if err := s.begin(); err != nil {
			return err
		}
	}
	if s.file != nil {
		if err := s.end(); err != nil {
			return err
		}
	}
	progress.set(s.rows, s.files)
	return nil
}

// abort takes back the file that is not complete.
func (s *splitter) abort() {
	if s.object != nil {
		s.object.Abort()
	}
}

type manifestColumn struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

type manifestFile struct {
	Key    string `json:"key"` // in the bucket
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// manifest is made of a sealed export and nothing else, so that it is the same whoever
// writes it how often.
func manifest(e *event.Export, def *definition.Export, columns []column) ([]byte, error) {
	m := struct {
		ExportID    string           `json:"export_id"`
		Definition  string           `json:"definition"`
		Version     int64            `json:"definition_version"`
		What        string           `json:"what"`
		Format      string           `json:"format"`
		Compression string           `json:"compression"`
		AsOf        string           `json:"as_of"`
		Rows        int64            `json:"rows"`
		Bytes       int64            `json:"bytes"`
		Columns     []manifestColumn `json:"columns"`
		Files       []manifestFile   `json:"files"`
	}{
		e.ExportID.String(), e.DefinitionID, e.DefinitionVersion, def.What, def.Format, def.Compression, e.AsOf.Format("2006-01-02T15:04:05.000000Z07:00"),
		e.Rows, e.Bytes, make([]manifestColumn, len(columns)), make([]manifestFile, len(e.Files)),
	}
	for i, c := range columns {
		m.Columns[i] = manifestColumn{c.name, c.kind.String()}
	}
	for i, f := range e.Files {
		m.Files[i] = manifestFile{e.Folder + f.Key, f.Rows, f.Bytes, f.Sha256}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing the manifest of export %s: %w", e.ExportID, err)
	}
	return append(text, '\n'), nil
}
