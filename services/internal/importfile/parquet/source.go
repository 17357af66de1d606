package parquet

import (
	"io"
)

const (
	maxHeld     = 96 << 20 // bytes of pages, dictionaries and what has been read ahead, of all columns
	maxTogether = 16 << 20 // a row group up to this size is read at once
	aheadBytes  = 32 << 20 // are read ahead in larger ones, of all columns together
	aheadMax    = 2 << 20  // of one column
	aheadMin    = 64 << 10
)

// source reads the object in large pieces, each of which is a request.
type source struct {
	r      io.ReaderAt
	size   int64
	held   int64 // by all windows, pages and dictionaries
	failed error // what it said
}

// grow returns a buffer of n bytes, b if it is large enough. Error: *rows.Invalid if
// all buffers become too large.
func (s *source) grow(b []byte, n int64) ([]byte, error) {
	if n <= int64(cap(b)) {
		return b[:n], nil
	}
	// The old one is garbage by then, and is made anew.
	if s.held+n-int64(cap(b)) > maxHeld {
		return nil, errTooMuch
	}
	s.held += n - int64(cap(b))
	return make([]byte, n), nil
}

// window is a piece of the object that has been read.
type window struct {
	b  []byte
	at int64
}

// bytes returns n bytes or more at an offset, valid until the next call. If they must
// be read, ahead bytes are at least, but nothing behind end. Errors: *rows.Invalid if the
// object ends before; the source's.
func (s *source) bytes(w *window, at, n, ahead, end int64) ([]byte, error) {
	if at >= w.at && at+n <= w.at+int64(len(w.b)) {
		return w.b[at-w.at:], nil
	}
	var have []byte // of it
	if at >= w.at && at < w.at+int64(len(w.b)) {
		have = w.b[at-w.at:]
	}
	known := int64(len(have))
	want := min(known+max(n-known, ahead), end-at)
	if want < n || at < 0 || at+want > s.size {
		return nil, errCutOff
	}
	b, err := s.grow(w.b, want)
	if err != nil {
		return nil, err
	}
	copy(b, have)
	w.b = b[:0] // so that it is empty if this fails
	read, err := s.r.ReadAt(b[known:], at+known)
	switch {
	case int64(read) == want-known:
	case err == io.EOF:
		return nil, errCutOff
	case err == nil:
		err = io.ErrNoProgress
		fallthrough
	default:
		s.failed = err
		return nil, err
	}
	w.b, w.at = b, at
	return b, nil
}

var (
	errTooMuch = invalid("the pages of all columns of a row group need more than %d MiB together", maxHeld>>20)
	errCutOff  = invalid("the file is cut off, or says that there is something where nothing is")
)
