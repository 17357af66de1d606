package parquet

import (
	"io"
)

const (
	maxHeld     = 96 << 20 // bytes of pages, dictionaries and what has been read ahead, of all columns
	maxTogether = 16 << 20 // a row group up to this size is read at once
	aheadBytes  = 24 << 20 // are read ahead in larger ones, of all columns together
	aheadMax    = 2 << 20  // of one column
	aheadMin    = 4 << 10
	footerBytes = 64 << 10 // are read first
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
// be read, so are those behind them, ahead bytes at least, but nothing behind end.
// Errors: *rows.Invalid if the object ends before; the source's.
func (s *source) bytes(w *window, at, n, ahead, end int64) ([]byte, error) {
	known := w.behind(at)
	if int64(len(known)) >= n {
		return known, nil
	}
	b, err := s.readBehind(known, &w.b, at, n, ahead, end)
	w.b, w.at = b, at
	return b, err
}

// page returns n bytes at an offset, valid until the next call: from the window, or in
// buffer, and then what was read ahead is in the window.
func (s *source) page(w *window, buffer *[]byte, at, n, ahead, end int64) ([]byte, error) {
	known := w.behind(at)
	if int64(len(known)) >= n {
		return known[:n], nil
	}
	b, err := s.readBehind(known, buffer, at, n, ahead, end)
	if err != nil {
		return nil, err
	}
	if w.b, err = s.grow(w.b, int64(len(b))-n); err != nil {
		return nil, err
	}
	copy(w.b, b[n:])
	w.at = at + n
	return b[:n], nil
}

// behind returns what the window has from an offset on.
func (w *window) behind(at int64) []byte {
	if at < w.at || at >= w.at+int64(len(w.b)) {
		return nil
	}
	return w.b[at-w.at:]
}

// readBehind reads into buffer what follows the bytes that are known at an offset, and
// puts those before it.
func (s *source) readBehind(known []byte, buffer *[]byte, at, n, ahead, end int64) ([]byte, error) {
	have := int64(len(known))
	want := min(max(n, have)+ahead, end-at)
	if want < n || at < 0 || at+want > s.size {
		return nil, errCutOff
	}
	b, err := s.grow(*buffer, want)
	if err != nil {
		return nil, err
	}
	copy(b, known)
	*buffer = b[:0] // so that it is empty if this fails
	read, err := s.r.ReadAt(b[have:], at+have)
	switch {
	case int64(read) == want-have:
		return b, nil
	case err == io.EOF:
		return nil, errCutOff
	case err == nil:
		err = io.ErrNoProgress
	}
	s.failed = err
	return nil, err
}

var (
	errTooMuch = invalid("the pages of all columns of a row group need more than %d MiB together", maxHeld>>20)
	errCutOff  = invalid("the file is cut off, or says that there is something where nothing is")
)
