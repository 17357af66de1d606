// Package fault says what a failure asks of the loop that met it: wait
// (transient), park the record (poison) or stop (fatal). The class is attached
// where the knowledge is and survives wrapping; an error nobody classified is
// fatal, because the restart is the retry and guessing loses records.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Class is what a failure asks for.
type Class uint8

// The classes. The zero value is the one for errors that nobody knows.
const (
	ClassFatal     Class = iota // stop the process
	ClassPoison                 // park the record with its reason and go on
	ClassTransient              // wait and do the same again
)

// String is the class as logs and metrics write it.
func (c Class) String() string {
	switch c {
	case ClassTransient:
		return "transient"
	case ClassPoison:
		return "poison"
	}
	return "fatal"
}

type classified struct {
	class Class
	err   error
}

func (c *classified) Error() string { return c.err.Error() }
func (c *classified) Unwrap() error { return c.err }

func classify(c Class, err error) error {
	if err == nil {
		return nil
	}
	return &classified{c, err}
}

// Transient marks an error that passes by itself: something is away, busy or
// not there yet. Nil stays nil.
func Transient(err error) error { return classify(ClassTransient, err) }

// Poison marks an error that the same record will meet for ever. Nil stays nil.
func Poison(err error) error { return classify(ClassPoison, err) }

// Fatal marks an error after which going on would do harm. Nil stays nil.
func Fatal(err error) error { return classify(ClassFatal, err) }

// ClassOf returns the outermost class on the chain of err, so that a caller who
// knows better overrules what is below; ClassFatal when there is none. Of errors
// that were joined the gravest counts: a batch is only as good as its worst part.
func ClassOf(err error) Class {
	c, ok := classOf(err)
	if !ok {
		return ClassFatal
	}
	return c
}

func classOf(err error) (Class, bool) {
	switch e := err.(type) {
	case nil:
		return ClassFatal, false
	case *classified:
		return e.class, true
	case *notBefore:
		return ClassTransient, true
	case interface{ Unwrap() error }:
		return classOf(e.Unwrap())
	case interface{ Unwrap() []error }:
		worst, found := ClassTransient, false
		for _, part := range e.Unwrap() {
			// A part that nobody classified is an unknown error, hence fatal.
			worst, found = min(worst, ClassOf(part)), true
		}
		return worst, found
	}
	return ClassFatal, false
}

type notBefore struct{ t time.Time }

func (n *notBefore) Error() string {
	return fmt.Sprintf("not before %s", n.t.UTC().Format(time.RFC3339Nano))
}

// NotBefore is a handler's answer that a record is to be looked at again at t.
// It is no failure: the loop pauses the record's partition until then and polls
// the others.
func NotBefore(t time.Time) error { return &notBefore{t} }

// AsNotBefore returns the time that NotBefore put on the chain of err.
func AsNotBefore(err error) (time.Time, bool) {
	var n *notBefore
	if errors.As(err, &n) {
		return n.t, true
	}
	return time.Time{}, false
}
