package event_test

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/linkedin/goavro/v2"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/hikyaku/hikyaku/schemas/avro"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// goavro is the judge of what bytes are right: for every record and any
// content, it writes the bytes that we write and reads what we read.
func TestBytesAreGoavros(t *testing.T) {
	t.Parallel()
	for _, name := range event.Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			schema, codec := judge(t, fresh(name))
			rapid.Check(t, func(t *rapid.T) {
				want := fresh(name)
				random{t}.fill(reflect.ValueOf(want).Elem())
				agree(t, want, schema, codec)
			})
		})
	}
}

// agree checks one value against the judge, in both directions.
func agree(t require.TestingT, want event.Record, schema *avro.Schema, codec *goavro.Codec) {
	native := toNative(schema, reflect.ValueOf(want).Elem())
	theirs, err := codec.BinaryFromNative(nil, native)
	require.NoError(t, err)
	ours := want.AppendAvro(nil)
	require.Equal(t, theirs, ours, "bytes")

	got := fresh(want.SchemaName())
	require.NoError(t, got.DecodeAvro(theirs))
	require.Equal(t, exact(toNative(schema, reflect.ValueOf(want).Elem())), exact(toNative(schema, reflect.ValueOf(got).Elem())), "what we read")

	read, rest, err := codec.NativeFromBinary(ours)
	require.NoError(t, err)
	require.Empty(t, rest)
	require.Equal(t, exact(native), exact(read), "what goavro reads")
}

func fresh(name string) event.Record {
	r, ok := event.New(name)
	if !ok {
		panic("no record " + name)
	}
	return r
}

func judge(t testing.TB, r event.Record) (*avro.Schema, *goavro.Codec) {
	schema, err := avro.Parse([]byte(r.Schema()))
	require.NoError(t, err)
	codec, err := event.Compile(r.Schema())
	require.NoError(t, err)
	return schema, codec
}

// random fills a record with anything that it can hold.
type random struct{ t *rapid.T }

func (r random) fill(v reflect.Value) {
	switch v.Addr().Interface().(type) {
	case *identity.ID:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(rapid.Byte().Draw(r.t, "byte")))
		}
		return
	case *time.Time:
		v.Set(reflect.ValueOf(r.time()))
		return
	case *event.Value:
		v.Set(reflect.ValueOf(r.value()))
		return
	case *[]byte:
		v.SetBytes(rapid.SliceOf(rapid.Byte()).Draw(r.t, "bytes"))
		if rapid.Bool().Draw(r.t, "nil") {
			v.SetZero()
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			r.fill(v.Field(i))
		}
	case reflect.Pointer:
		if rapid.Bool().Draw(r.t, "present") {
			v.Set(reflect.New(v.Type().Elem()))
			r.fill(v.Elem())
		}
	case reflect.Slice:
		if n := rapid.IntRange(0, 3).Draw(r.t, "length"); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				r.fill(v.Index(i))
			}
		}
	case reflect.String:
		v.SetString(r.text())
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(r.t, "bool"))
	case reflect.Int32:
		v.SetInt(int64(rapid.Int32().Draw(r.t, "int")))
	case reflect.Int64:
		v.SetInt(rapid.Int64().Draw(r.t, "long"))
	default:
		panic("no random " + v.Type().String())
	}
}

// text is sometimes as long as needs a length of two or three bytes.
func (r random) text() string {
	s := rapid.String().Draw(r.t, "string")
	if repeat := rapid.SampledFrom([]int{1, 1, 1, 1, 1, 20, 1000}).Draw(r.t, "repeat"); repeat > 1 {
		s = strings.Repeat(s, repeat)
	}
	return s
}

func (r random) time() time.Time {
	if rapid.IntRange(0, 9).Draw(r.t, "zero") == 0 {
		return time.Time{}
	}
	return time.UnixMicro(rapid.Int64().Draw(r.t, "micros")).UTC()
}

func (r random) value() event.Value {
	switch event.Kind(rapid.IntRange(0, int(event.KindJSON)).Draw(r.t, "kind")) {
	case event.KindBool:
		return event.Bool(rapid.Bool().Draw(r.t, "bool"))
	case event.KindInt:
		return event.Int(rapid.Int64().Draw(r.t, "int"))
	case event.KindFloat:
		return event.Float(rapid.OneOf(rapid.Float64(), rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(0, -1), math.MaxFloat64, math.SmallestNonzeroFloat64})).Draw(r.t, "float"))
	case event.KindString:
		return event.String(r.text())
	case event.KindTime:
		return event.Time(r.time())
	case event.KindJSON:
		return event.JSON(r.text())
	}
	return event.Null()
}

// toNative is the record as goavro wants it, field by field as the schema
// names them; it shares nothing with the generated code but the JSON tags.
func toNative(s *avro.Schema, v reflect.Value) any {
	switch x := v.Interface().(type) {
	case identity.ID:
		return x[:]
	case time.Time:
		return x
	case event.Value:
		return valueToNative(x)
	}
	switch s.Kind {
	case avro.Record:
		m := map[string]any{}
		for _, f := range s.Fields {
			m[f.Name] = toNative(f.Type, fieldTagged(v, f.Name))
		}
		if v.NumField() != len(s.Fields) {
			panic(fmt.Sprintf("%s has %d fields, its schema %d", s.Name, v.NumField(), len(s.Fields)))
		}
		return m
	case avro.Array:
		items := make([]any, v.Len())
		for i := range items {
			items[i] = toNative(s.Items, v.Index(i))
		}
		return items
	case avro.Union:
		if v.IsNil() {
			return nil
		}
		branch := s.Branches[1]
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		name := branch.Name
		if name == "" {
			name = string(branch.Kind)
			if branch.Logical != "" {
				name += "." + branch.Logical
			}
		}
		return map[string]any{name: toNative(branch, v)}
	case avro.Bytes:
		return append([]byte{}, v.Bytes()...)
	}
	return v.Interface()
}

func valueToNative(v event.Value) any {
	switch v.Kind() {
	case event.KindBool:
		return map[string]any{"boolean": v.Bool()}
	case event.KindInt:
		return map[string]any{"long": v.Int()}
	case event.KindFloat:
		return map[string]any{"double": v.Float()}
	case event.KindString:
		return map[string]any{"string": v.Text()}
	case event.KindTime:
		return map[string]any{"hikyaku.Instant": map[string]any{"at": v.Time()}}
	case event.KindJSON:
		return map[string]any{"hikyaku.Json": map[string]any{"text": v.Text()}}
	}
	return nil
}

func fieldTagged(v reflect.Value, name string) reflect.Value {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("json") == name {
			return v.Field(i)
		}
	}
	panic(v.Type().String() + " has no field " + name)
}

// exact makes two values comparable that == cannot tell: NaN, and times.
func exact(x any) any {
	switch x := x.(type) {
	case map[string]any:
		m := make(map[string]any, len(x))
		for k := range x {
			m[k] = exact(x[k])
		}
		return m
	case []any:
		l := make([]any, len(x))
		for i := range x {
			l[i] = exact(x[i])
		}
		return l
	case float64:
		return fmt.Sprintf("%x", math.Float64bits(x))
	case time.Time:
		return x.UTC().Format("micros ") + fmt.Sprint(x.UnixMicro())
	}
	return x
}

// sample is a record in which every field is set, each to something of its own.
func sample(name string) event.Record {
	r := fresh(name)
	s := sampler{}
	s.fill(reflect.ValueOf(r).Elem(), name)
	return r
}

type sampler struct{ n, values int64 }

func (s *sampler) fill(v reflect.Value, name string) {
	s.n++
	switch v.Addr().Interface().(type) {
	case *identity.ID:
		v.Set(reflect.ValueOf(identity.Hash(name, fmt.Sprint(s.n))))
		return
	case *time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 3, 1, 9, 30, int(s.n%60), int(s.n)*1_001_000, time.UTC)))
		return
	case *event.Value:
		v.Set(reflect.ValueOf([]event.Value{
			event.Null(), event.Bool(true), event.Int(-s.n), event.Float(float64(s.n) + 0.25), event.String("飛脚 " + name),
			event.Time(time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)), event.JSON(`{"a":[1,2.5,null]}`),
		}[s.values%7]))
		s.values++
		return
	case *[]byte:
		v.SetBytes([]byte{0, 1, 0xfe, 0xff, byte(s.n)})
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			s.fill(v.Field(i), v.Type().Field(i).Tag.Get("json"))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		s.fill(v.Elem(), name)
	case reflect.Slice:
		n := 2
		if v.Type().Elem() == reflect.TypeFor[event.NamedValue]() {
			n = 7 // one of each kind
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			s.fill(v.Index(i), name)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("%s-%d-é", name, s.n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32:
		v.SetInt(1000 + s.n)
	case reflect.Int64:
		v.SetInt(1<<40 + s.n)
	default:
		panic("no sample of " + v.Type().String())
	}
}

func TestSamplesAreGoavros(t *testing.T) {
	t.Parallel()
	for _, name := range event.Names() {
		r := sample(name)
		schema, codec := judge(t, r)
		agree(t, r, schema, codec)
	}
}

// A record cut off anywhere, or with a byte too many, is refused.
func TestEveryCutIsNoticed(t *testing.T) {
	t.Parallel()
	for _, name := range event.Names() {
		b := sample(name).AppendAvro(nil)
		for n := range b {
			require.Error(t, fresh(name).DecodeAvro(b[:n]), "%s cut at %d of %d", name, n, len(b))
		}
		require.NoError(t, fresh(name).DecodeAvro(b))
		require.Error(t, fresh(name).DecodeAvro(append(b, 0)), name)
	}
}

// What is decoded does not change when its input does, and a record that is
// decoded into twice keeps nothing of the first.
func TestDecodedRecordsStandAlone(t *testing.T) {
	t.Parallel()
	for _, name := range event.Names() {
		b := sample(name).AppendAvro(nil)
		got := fresh(name)
		require.NoError(t, got.DecodeAvro(b))
		clear(b)
		require.Equal(t, sample(name), got, name)
		empty := fresh(name).AppendAvro(nil)
		require.NoError(t, got.DecodeAvro(empty))
		require.Equal(t, fresh(name), got, name)
	}
}

func TestArraysInSeveralBlocks(t *testing.T) {
	t.Parallel()
	item := func(b []byte, name string) []byte {
		return append(append(append(b, byte(len(name)<<1)), name...), 0) // with a null
	}
	b := (&event.SegmentMember{}).AppendAvro(nil)
	const head = 1 + 16 + 1 // segment_id, import_id, user_id; then the attributes
	tail := b[head+1:]
	in := append([]byte{}, b[:head]...)
	in = item(append(in, 2), "a")                // one item
	in = item(item(append(in, 3, 12), "b"), "c") // count -2, 6 bytes
	in = item(append(in, 2), "d")                // one more
	in = append(append(in, 0), tail...)          // the end
	var got event.SegmentMember
	require.NoError(t, got.DecodeAvro(in))
	require.Equal(t, []event.NamedValue{{Name: "a"}, {Name: "b"}, {Name: "c"}, {Name: "d"}}, got.Attributes)
}

// Numbers that claim more than there is are refused before anything is made.
func TestClaimsAreNotBelieved(t *testing.T) {
	t.Parallel()
	huge := []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}  // MaxInt64
	least := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01} // MinInt64
	over := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02}  // 65 bits
	for _, claim := range [][]byte{huge, least, over, {3, 0}, {4}} {
		var m event.SegmentMember
		require.Error(t, m.DecodeAvro(claim), "a string of %x", claim)
		in := append(append(make([]byte, 1+16+1), claim...), make([]byte, 3)...)
		require.Error(t, m.DecodeAvro(in), "an array of %x", claim)
		require.LessOrEqual(t, cap(m.Attributes), 2)
	}
	var tick event.Tick
	require.Error(t, tick.DecodeAvro([]byte{0x80, 0x80, 0x80, 0x80, 0x20, 0}), "partition 2^32")
	require.ErrorContains(t, tick.DecodeAvro(append([]byte{0}, over...)), "more than 64 bits")
	var d event.Definition
	empty := d.AppendAvro(nil)
	empty[len(empty)-1] = 2
	require.ErrorContains(t, d.DecodeAvro(empty), "neither 0 nor 1")
}

func TestHeader(t *testing.T) {
	t.Parallel()
	b := event.AppendHeader([]byte("x"), 0x01020304)
	require.Equal(t, []byte{'x', 0, 1, 2, 3, 4}, b)
	id, payload, err := event.SplitHeader(append(b[1:], "rest"...))
	require.NoError(t, err)
	require.Equal(t, 0x01020304, id)
	require.Equal(t, "rest", string(payload))
	for _, bad := range [][]byte{nil, {0, 1, 2, 3}, {1, 0, 0, 0, 1, 9}} {
		_, _, err := event.SplitHeader(bad)
		require.Error(t, err)
	}
}

func TestSchemaIsTheFile(t *testing.T) {
	t.Parallel()
	versions, err := avro.Versions(avro.Files())
	require.NoError(t, err)
	for _, v := range avro.Latest(versions) {
		r, ok := event.New(v.Schema.ShortName())
		require.True(t, ok, v.File())
		require.Equal(t, v.Schema.ShortName(), r.SchemaName())
		text, err := avro.Compact(v.Text)
		require.NoError(t, err)
		require.Equal(t, text, r.Schema())
	}
	_, ok := event.New("NoSuchRecord")
	require.False(t, ok)
}

// FuzzDecodeAvro covers every record: no panic, no more memory than the input
// warrants, and what is decoded is what goavro decodes and stays the same when
// written and read again.
func FuzzDecodeAvro(f *testing.F) {
	names := event.Names()
	schemas := make([]*avro.Schema, len(names))
	codecs := make([]*goavro.Codec, len(names))
	for i, name := range names {
		schemas[i], codecs[i] = judge(f, fresh(name))
		f.Add(uint8(i), sample(name).AppendAvro(nil))
		f.Add(uint8(i), fresh(name).AppendAvro(nil))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		i := int(which) % len(names)
		first := fresh(names[i])
		err := first.DecodeAvro(b)
		if size, limit := deepSize(reflect.ValueOf(first).Elem()), 100*len(b)+4096; size > limit {
			t.Fatalf("%s: %d bytes of input became %d bytes", names[i], len(b), size)
		}
		if err != nil {
			return
		}
		written := first.AppendAvro(nil)
		second := fresh(names[i])
		require.NoError(t, second.DecodeAvro(written))
		if again := second.AppendAvro(nil); !bytes.Equal(written, again) {
			t.Fatalf("%s: %x, then %x", names[i], written, again)
		}
		native, rest, err := codecs[i].NativeFromBinary(b)
		require.NoError(t, err, "goavro refuses what we read")
		require.Empty(t, rest)
		require.Equal(t, exact(native), exact(toNative(schemas[i], reflect.ValueOf(second).Elem())))
	})
}

// deepSize is the memory that a record holds, what is reserved included.
func deepSize(v reflect.Value) int {
	size := int(v.Type().Size())
	switch v.Kind() {
	case reflect.String:
		size += v.Len()
	case reflect.Pointer:
		if !v.IsNil() {
			size += deepSize(v.Elem())
		}
	case reflect.Slice:
		size += (v.Cap() - v.Len()) * int(v.Type().Elem().Size())
		for i := range v.Len() {
			size += deepSize(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			size += deepSize(v.Field(i)) - int(v.Field(i).Type().Size())
		}
	}
	return size
}

func TestDecodeIsFrugal(t *testing.T) {
	m := request()
	b := m.AppendAvro(nil)
	require.InDelta(t, 400, len(b), 50)
	var got event.MessageRequest
	buf := make([]byte, 0, 1024)
	allocs := testing.AllocsPerRun(100, func() {
		buf = m.AppendAvro(buf[:0])
		if err := got.DecodeAvro(buf); err != nil {
			panic(err)
		}
	})
	require.LessOrEqual(t, allocs, 8.0)
}

func BenchmarkMessageRequestGoavro(b *testing.B) {
	m := request()
	schema, codec := judge(b, m)
	buf := m.AppendAvro(nil)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	native := toNative(schema, reflect.ValueOf(m).Elem())
	for b.Loop() {
		var err error
		if buf, err = codec.BinaryFromNative(buf[:0], native); err != nil {
			b.Fatal(err)
		}
		if _, _, err := codec.NativeFromBinary(buf); err != nil {
			b.Fatal(err)
		}
	}
}
