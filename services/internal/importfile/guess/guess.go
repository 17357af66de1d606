// Package guess writes an import spec for a file that somebody has and knows nothing
// about yet. It looks at the beginning of the file only and says what it has seen, in
// comments: a guess is to be read by the file's owner.
package guess

import (
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/importfile"
	"github.com/hikyaku/hikyaku/services/internal/importfile/layers"
	"github.com/hikyaku/hikyaku/services/internal/importfile/pinpoint"
	"github.com/hikyaku/hikyaku/services/internal/importfile/rows"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

const (
	sampleBytes = 1 << 20 // of text that are looked at
	sampleRows  = 1000
)

// Spec is a spec as YAML, for the file of a name. Errors: *rows.Invalid when nothing can
// be made of the file; the source's.
func Spec(name string, source importfile.Source) (string, error) {
	src, columns, err := look(source)
	if err != nil {
		return "", err
	}
	header, sample, err := read(source, src, columns)
	if err != nil {
		return "", err
	}
	if len(header) == 0 || len(sample) == 0 {
		return "", &rows.Invalid{Reason: "the file has no rows to guess from"}
	}
	named := named(header, sample)
	if len(named) == 0 {
		return "", &rows.Invalid{Reason: "no column of the file has a name of its own"}
	}
	return write(slug(name), src, named, sample), nil
}

// IsPinpoint says whether a file is a segment file of Amazon Pinpoint, which needs no
// spec.
func IsPinpoint(source importfile.Source) bool {
	src, columns, err := look(source)
	if err != nil || src.Format != definition.FormatJSONL && src.Delimiter != "," {
		return false
	}
	header, _, err := read(source, src, columns)
	if err != nil {
		return false
	}
	names := make([]string, len(header))
	for i, h := range header {
		names[i] = strings.TrimSpace(h)
	}
	return pinpoint.Recognises(names)
}

// look guesses the source from the first bytes; columns are the keys of JSON Lines.
func look(source importfile.Source) (src definition.Source, columns []string, err error) {
	text, err := beginning(source)
	if err != nil {
		return src, nil, err
	}
	trimmed := strings.TrimSpace(strings.TrimPrefix(string(text), "\xef\xbb\xbf"))
	switch {
	case len(trimmed) == 0:
		return src, nil, &rows.Invalid{Reason: "the file is empty"}
	case strings.HasPrefix(trimmed, "Obj\x01"):
		src.Format = definition.FormatAvro
		return src, nil, nil
	case strings.HasPrefix(trimmed, "PAR1"):
		src.Format = definition.FormatParquet
		return src, nil, nil
	case strings.HasPrefix(trimmed, "PK\x03\x04"):
		return src, nil, &rows.Invalid{Reason: "the file is a ZIP archive or an Excel workbook; save the sheet as CSV UTF-8"}
	case strings.HasPrefix(trimmed, "%PDF"):
		return src, nil, &rows.Invalid{Reason: "the file is a PDF"}
	}
	encoding := guessEncoding(text)
	if encoding != layers.UTF8 {
		if layers.Encoding(layers.Auto, text) != encoding {
			src.Encoding = encoding // else the byte order mark says it
		}
		decoded, err := io.ReadAll(layers.Decode(encoding, strings.NewReader(string(text))))
		if err != nil {
			return src, nil, fmt.Errorf("decoding %s: %w", encoding, err)
		}
		text = decoded
	}
	if first := strings.TrimSpace(strings.TrimPrefix(string(text), "\xef\xbb\xbf")); strings.HasPrefix(first, "{") || strings.HasPrefix(first, "[") {
		src.Format = definition.FormatJSONL
		return src, keys(text), nil
	}
	src.Format, src.Delimiter = definition.FormatCSV, guessDelimiter(text)
	if src.Delimiter == "\t" {
		src.Format = definition.FormatTSV
	}
	return src, nil, nil
}

// beginning is the first part of the decompressed file.
func beginning(source importfile.Source) ([]byte, error) {
	head := make([]byte, layers.HeadBytes)
	n, err := source.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var r io.Reader = io.NewSectionReader(source, 0, source.Size())
	if c := layers.Compression(head[:n]); c != "" {
		text, free := layers.Decompress(c, r, 1<<40)
		defer free()
		r = text
	}
	text, err := io.ReadAll(io.LimitReader(r, sampleBytes))
	var invalid *rows.Invalid
	if errors.As(err, &invalid) && len(text) > 0 {
		err = nil // what there is may be enough
	}
	return text, err
}

// read reads the first rows as the importer would.
func read(source importfile.Source, src definition.Source, columns []string) (header []string, sample [][]string, err error) {
	spec := &definition.ImportSpec{Source: src, UserID: definition.Value{Column: "x"}}
	if src.Format == definition.FormatJSONL {
		spec.Profile = &definition.Profile{Attributes: map[string]definition.Value{}}
		for _, c := range columns {
			spec.Profile.Attributes[c] = definition.Value{Column: c}
		}
		spec.UserID.Column = columns[0]
	}
	source.Go(0)
	f, err := importfile.Open(liquid.New(liquid.Options{}), spec, source, importfile.Position{})
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	for len(sample) < sampleRows {
		row, err := f.Next()
		var invalid *rows.Invalid
		switch {
		case err == io.EOF, errors.As(err, &invalid):
			return order(f.Header(), columns), reorder(sample, f.Header(), columns), nil
		case err != nil:
			return nil, nil, err
		case row.Malformed == nil && len(row.Fields) == len(f.Header()):
			sample = append(sample, slices.Clone(row.Fields))
		}
	}
	return order(f.Header(), columns), reorder(sample, f.Header(), columns), nil
}

// order is the header in the order of the keys in the file, where it has none.
func order(header, columns []string) []string {
	if columns == nil {
		return header
	}
	return columns
}

func reorder(sample [][]string, header, columns []string) [][]string {
	if columns == nil {
		return sample
	}
	out := make([][]string, len(sample))
	for i, fields := range sample {
		out[i] = make([]string, len(columns))
		for k, c := range columns {
			out[i][k] = fields[slices.Index(header, c)]
		}
	}
	return out
}

var notInID = regexp.MustCompile(`[^a-z0-9]+`)

// slug makes an id of a file's name.
func slug(name string) string {
	base := strings.ToLower(path.Base(strings.ReplaceAll(name, `\`, "/")))
	base, _, _ = strings.Cut(base, ".")
	id := strings.Trim(notInID.ReplaceAllString(base, "-"), "-")
	if id == "" {
		return "people"
	}
	return strings.Trim(id[:min(len(id), 50)], "-")
}
