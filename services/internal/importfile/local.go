package importfile

import (
	"fmt"
	"io"
	"os"
	"time"
)

// Local is a file on disk as a Source.
type Local struct {
	file *os.File
	info os.FileInfo // when it was opened
	at   int64
}

// OpenLocal opens a file on disk.
func OpenLocal(path string) (*Local, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening a file to import: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file", path)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("opening a file to import: %w", err)
	}
	return &Local{file: file, info: info}, nil
}

// Read implements io.Reader.
func (l *Local) Read(p []byte) (int, error) {
	n, err := l.file.ReadAt(p, l.at)
	l.at += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (l *Local) ReadAt(p []byte, at int64) (int, error) { return l.file.ReadAt(p, at) }

// Go moves to a byte.
func (l *Local) Go(to int64) { l.at = to }

// At is the next byte.
func (l *Local) At() int64 { return l.at }

// Size is the file's, in bytes.
func (l *Local) Size() int64 { return l.info.Size() }

// LastModified is when the file was written last.
func (l *Local) LastModified() time.Time { return l.info.ModTime().UTC() }

// Close closes the file.
func (l *Local) Close() error { return l.file.Close() }
