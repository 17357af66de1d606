package chdb

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// newSpool returns an empty file in memory, and the path under which the engine, in this process, can open it.
func newSpool() (*os.File, string, error) {
	fd, err := unix.MemfdCreate("chdb-insert", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, "", fmt.Errorf("making a memory file: %w", err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	return os.NewFile(uintptr(fd), path), path, nil
}
