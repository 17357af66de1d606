package event

import (
	"fmt"
	"sync"
	"time"

	"github.com/linkedin/goavro/v2"

	"github.com/hikyaku/hikyaku/schemas/avro"
)

// Limits for what goavro is made to read: it reserves 16 bytes for every item
// an array claims to have, before it has seen one. No record of ours is longer
// than 1 MiB, so no honest array has more items than that.
const (
	maxArrayItems = 1 << 20
	maxBlockBytes = 16 << 20
)

// DecodeWith reads b, written with writerSchema, which may be an older or newer
// version of the record's schema. Fields match by name: what the writer did not
// know gets the default of the schema known here, what is unknown here is
// dropped, numbers widen. Where both versions put the same bytes it costs as
// little as DecodeAvro, else some ten times that.
func DecodeWith(writerSchema string, b []byte, into Record) error {
	if writerSchema == into.Schema() {
		return into.DecodeAvro(b)
	}
	t, err := translationFor(writerSchema, into)
	if err != nil {
		return fmt.Errorf("decoding %s with its writer's schema: %w", into.SchemaName(), err)
	}
	if t.same {
		return into.DecodeAvro(b)
	}
	native, rest, err := t.from.NativeFromBinary(b)
	if err != nil {
		return fmt.Errorf("decoding %s with its writer's schema: %w", into.SchemaName(), err)
	}
	if len(rest) > 0 {
		return fmt.Errorf("decoding %s with its writer's schema: %d bytes are left over", into.SchemaName(), len(rest))
	}
	native, err = adapt(t.writer, t.reader, native)
	if err != nil {
		return fmt.Errorf("decoding %s with its writer's schema: %w", into.SchemaName(), err)
	}
	ours, err := t.to.BinaryFromNative(nil, native)
	if err != nil {
		return fmt.Errorf("decoding %s with its writer's schema: %w", into.SchemaName(), err)
	}
	return into.DecodeAvro(ours)
}

// translation is what it takes to read one writer's schema as ours.
type translation struct {
	writer, reader *avro.Schema
	same           bool // both put the same bytes
	from, to       *goavro.Codec
}

// translations remembers what follows from its key alone, so that one for the
// whole process cannot be told from none but by its speed. It grows with the
// number of schemas in the registry.
var translations sync.Map // translationKey → *translation

type translationKey struct{ writer, record string }

func translationFor(writerSchema string, into Record) (*translation, error) {
	key := translationKey{writerSchema, into.SchemaName()}
	if t, ok := translations.Load(key); ok {
		return t.(*translation), nil
	}
	t, err := translate(writerSchema, into.Schema())
	if err != nil {
		return nil, err
	}
	translations.Store(key, t)
	return t, nil
}

func translate(writerSchema, readerSchema string) (*translation, error) {
	t := &translation{}
	var err error
	if t.writer, err = avro.Parse([]byte(writerSchema)); err != nil {
		return nil, fmt.Errorf("parsing it: %w", err)
	}
	if t.reader, err = avro.Parse([]byte(readerSchema)); err != nil {
		return nil, fmt.Errorf("parsing ours: %w", err)
	}
	if t.writer.Kind != t.reader.Kind || t.writer.ShortName() != t.reader.ShortName() {
		return nil, fmt.Errorf("it is of %s %s", t.writer.Kind, t.writer.Name)
	}
	if t.same = avro.SameBytes(t.writer, t.reader); t.same {
		return t, nil
	}
	if t.from, err = compile(writerSchema); err != nil {
		return nil, fmt.Errorf("compiling it: %w", err)
	}
	if t.to, err = compile(readerSchema); err != nil {
		return nil, fmt.Errorf("compiling ours: %w", err)
	}
	return t, nil
}

// limits sets goavro's, which are variables of its package, before the first
// codec can read them.
var limits = sync.OnceFunc(func() {
	goavro.MaxBlockCount = maxArrayItems
	goavro.MaxBlockSize = maxBlockBytes
})

func compile(schema string) (*goavro.Codec, error) {
	limits()
	return goavro.NewCodec(schema)
}

// adapt turns what goavro decoded with the writer's schema into what it encodes
// with the reader's. Fields that the writer does not have are left out; goavro
// fills in their defaults.
func adapt(w, r *avro.Schema, x any) (any, error) {
	if w.Kind == avro.Union {
		branch, inner, err := unwrap(w, x)
		if err != nil {
			return nil, err
		}
		w, x = branch, inner
	}
	if r.Kind == avro.Union {
		branch := avro.Resolve(w, r.Branches)
		if branch == nil {
			return nil, fmt.Errorf("no branch for %s", w.Kind)
		}
		inner, err := adapt(w, branch, x)
		return goavro.Union(branchName(branch), inner), err
	}
	if avro.Resolve(w, []*avro.Schema{r}) == nil {
		return nil, fmt.Errorf("%s %s cannot be read as %s %s", w.Kind, w.Name, r.Kind, r.Name)
	}
	switch r.Kind {
	case avro.Record:
		fields := x.(map[string]any)
		out := make(map[string]any, len(r.Fields))
		for _, f := range r.Fields {
			of, ok := w.Field(f.Name)
			if !ok {
				continue
			}
			v, err := adapt(of.Type, f.Type, fields[f.Name])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name, err)
			}
			out[f.Name] = v
		}
		return out, nil
	case avro.Array:
		items := x.([]any)
		for i := range items {
			v, err := adapt(w.Items, r.Items, items[i])
			if err != nil {
				return nil, err
			}
			items[i] = v
		}
		return items, nil
	}
	switch v := x.(type) {
	case time.Time:
		return v.UnixMicro(), nil // goavro takes it with or without a logical type
	case int32:
		if r.Kind == avro.Double {
			return float64(v), nil
		}
	case int64: // as float64, which may round: Avro widens long to double all the same
		if r.Kind == avro.Double {
			return float64(v), nil
		}
	}
	return x, nil
}

// unwrap opens goavro's union: nil, or a map from the branch's name to its value.
func unwrap(u *avro.Schema, x any) (*avro.Schema, any, error) {
	name := "null"
	if m, ok := x.(map[string]any); ok {
		for name, x = range m {
		}
	}
	for _, branch := range u.Branches {
		if branchName(branch) == name {
			return branch, x, nil
		}
	}
	return nil, nil, fmt.Errorf("union has no branch %s", name)
}

// branchName is what goavro calls a branch of a union.
func branchName(s *avro.Schema) string {
	switch {
	case s.Name != "":
		return s.Name
	case s.Logical != "":
		return string(s.Kind) + "." + s.Logical
	}
	return string(s.Kind)
}
