package chdb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
)

// revisionCustomSerialization is the protocol revision from which a column says whether its serialization is a special one.
const revisionCustomSerialization = 54454

// native turns blocks of the Native format at revision 0, the only one libchdb.so writes, into blocks of the revision a client asked
// for. The two differ around the columns, not inside them. So the columns are copied byte for byte, and clickhouse-go's decoders are
// only used to find where each ends; a type they do not know is an error, because then nobody can tell.
type native struct {
	revision uint64
	server   *column.ServerContext
	src      bytes.Reader
	buffered *bufio.Reader
	reader   *chproto.Reader
	out      []byte
}

func newNative(revision uint64, version string) *native {
	n := &native{revision: revision, server: &column.ServerContext{Revision: revision}}
	numbers := []*uint64{&n.server.VersionMajor, &n.server.VersionMinor, &n.server.VersionPatch}
	for i, part := range strings.Split(version, ".") {
		if i < len(numbers) {
			*numbers[i], _ = strconv.ParseUint(part, 10, 64)
		}
	}
	// ch-go reads ahead through this very buffer (it takes a *bufio.Reader of at least its own size as it is), so that the position is known.
	n.buffered = bufio.NewReaderSize(&n.src, 1<<17)
	n.reader = chproto.NewReader(n.buffered)
	return n
}

// convert re-encodes whole blocks. What it returns is valid until the next call.
func (n *native) convert(blocks []byte) (out []byte, err error) {
	if n.revision == 0 {
		return blocks, nil
	}
	defer func() {
		// A decoder that meets what it does not expect may panic; the client has to hear of it.
		if r := recover(); r != nil {
			err = fmt.Errorf("re-encoding for revision %d: %v", n.revision, r)
		}
	}()
	n.src.Reset(blocks)
	n.buffered.Reset(&n.src)
	n.out = n.out[:0]
	for n.at(blocks) < len(blocks) {
		if err := n.block(blocks); err != nil {
			return nil, err
		}
	}
	return n.out, nil
}

func (n *native) at(blocks []byte) int { return len(blocks) - n.src.Len() - n.buffered.Buffered() }

func (n *native) block(blocks []byte) error {
	columns, err := n.reader.UVarInt()
	if err != nil {
		return fmt.Errorf("re-encoding a block: %w", err)
	}
	rows, err := n.reader.UVarInt()
	if err != nil {
		return fmt.Errorf("re-encoding a block: %w", err)
	}
	// Block info: 1 → not overflows, 2 → bucket -1, 0 → end.
	n.out = append(n.out, 1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0)
	n.out = binary.AppendUvarint(n.out, columns)
	n.out = binary.AppendUvarint(n.out, rows)
	for range columns {
		start := n.at(blocks)
		name, err := n.reader.Str()
		if err != nil {
			return fmt.Errorf("re-encoding a block: %w", err)
		}
		typ, err := n.reader.Str()
		if err != nil {
			return fmt.Errorf("re-encoding column %s: %w", name, err)
		}
		data := n.at(blocks)
		n.out = append(n.out, blocks[start:data]...)
		if n.revision >= revisionCustomSerialization {
			n.out = append(n.out, 0)
		}
		if rows > 0 {
			if err := n.skip(name, typ, int(rows)); err != nil {
				return fmt.Errorf("re-encoding column %s of type %s: %w", name, typ, err)
			}
		}
		n.out = append(n.out, blocks[data:n.at(blocks)]...)
	}
	return nil
}

// skip reads one column and forgets it.
func (n *native) skip(name, typ string, rows int) error {
	c, err := column.Type(typ).Column(name, n.server)
	if err != nil {
		return err
	}
	if prefix, ok := c.(column.CustomSerialization); ok {
		if err := prefix.ReadStatePrefix(n.reader); err != nil {
			return err
		}
	}
	return c.Decode(n.reader, rows)
}
