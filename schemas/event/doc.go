// Package event is every record of the pipeline as a Go struct, with a codec.
//
// The structs and their codec are generated from the newest version of each
// schema in schemas/avro; bytes are identical to goavro's, which the tests
// prove, and stay readable for ever: testdata/frozen holds bytes of every
// version, and DecodeWith reads records written with another version
// (docs/invariants.md, I7). This is the only package that imports goavro.
//
// Types: Id128 is identity.ID; timestamp-micros is time.Time in UTC, cut to
// microseconds; the zero time.Time is a value like any other (year 1) and comes
// back as the zero time.Time, in a union with null it is a pointer. Times
// further than 292,000 years from 1970 do not fit. Strings are UTF-8 by
// contract and not checked. A null of a ["null", X] field is a nil pointer,
// for bytes a nil slice, and bytes that are there but empty are a slice of
// length 0. Empty arrays and plain empty bytes decode to nil.
//
// Decoding copies the record once; all its strings are parts of that copy, so
// a string kept for long keeps the whole record in memory: strings.Clone what
// outlives its record. Byte slices are copies of their own. What is decoded
// never aliases the input. After an error a struct's content is unspecified.
package event

//go:generate go run ./internal/generate -schemas ..
