//go:build !linux

package chdb

import "os"

// newSpool returns an empty file, and the path under which the engine can open it.
func newSpool() (*os.File, string, error) {
	f, err := os.CreateTemp("", "chdb-insert-*")
	if err != nil {
		return nil, "", err
	}
	return f, f.Name(), nil
}
