package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
)

// The mark is one line: segment, offset, and a checksum of both.

func markLine(p position) string {
	text := fmt.Sprintf("%d %d", p.segment, p.offset)
	return fmt.Sprintf("%s %08x\n", text, crc32.Checksum([]byte(text), castagnoli))
}

func writeMark(path string, p position) error { return replaceFile(path, []byte(markLine(p))) }

// readMark returns the zero position if there is no mark yet.
func readMark(path string) (position, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return position{}, nil
	}
	if err != nil {
		return position{}, err
	}
	var p position
	var sum uint32
	if _, err := fmt.Sscanf(string(b), "%d %d %x", &p.segment, &p.offset, &sum); err != nil || markLine(p) != string(b) {
		return position{}, fmt.Errorf("%s is damaged", path)
	}
	return p, nil
}
