package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/hikyaku/hikyaku/services/internal/fault"
)

func TestClassSurvivesWrapping(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want fault.Class
	}{
		{"unknown errors are fatal", io.EOF, fault.ClassFatal},
		{"nil has no class that could be mistaken for a retry", nil, fault.ClassFatal},
		{"transient", fault.Transient(io.EOF), fault.ClassTransient},
		{"poison", fault.Poison(io.EOF), fault.ClassPoison},
		{"fatal", fault.Fatal(io.EOF), fault.ClassFatal},
		{"wrapped", fmt.Errorf("reading a: %w", fmt.Errorf("opening b: %w", fault.Poison(io.EOF))), fault.ClassPoison},
		{"the outermost class overrules", fault.Fatal(fmt.Errorf("asking for the 100th time: %w", fault.Transient(io.EOF))), fault.ClassFatal},
		{"outermost of two wrapped", fmt.Errorf("x: %w", fault.Transient(fault.Fatal(io.EOF))), fault.ClassTransient},
		{"the gravest of joined errors", errors.Join(fault.Transient(io.EOF), fault.Poison(io.EOF)), fault.ClassPoison},
		{"an unknown part of joined errors is fatal", errors.Join(fault.Transient(io.EOF), io.EOF), fault.ClassFatal},
		{"all transient", errors.Join(fault.Transient(io.EOF), fault.Transient(context.Canceled)), fault.ClassTransient},
		{"not before", fmt.Errorf("retrying: %w", fault.NotBefore(time.Unix(1, 0))), fault.ClassTransient},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := fault.ClassOf(c.err); got != c.want {
				t.Errorf("ClassOf(%v) = %v, want %v", c.err, got, c.want)
			}
		})
	}
}

func TestClassKeepsTheError(t *testing.T) {
	err := fault.Transient(fmt.Errorf("reading: %w", io.EOF))
	if !errors.Is(err, io.EOF) || err.Error() != "reading: EOF" {
		t.Errorf("got %v", err)
	}
	if fault.Transient(nil) != nil || fault.Poison(nil) != nil || fault.Fatal(nil) != nil {
		t.Error("a class turned nil into an error")
	}
}

func TestNotBeforeCarriesItsTime(t *testing.T) {
	at := time.Date(2026, 5, 6, 7, 8, 9, 1000, time.UTC)
	got, ok := fault.AsNotBefore(fmt.Errorf("message m: %w", fault.NotBefore(at)))
	if !ok || !got.Equal(at) {
		t.Errorf("got %v, %v", got, ok)
	}
	if _, ok := fault.AsNotBefore(fault.Transient(io.EOF)); ok {
		t.Error("a plain transient error has no time")
	}
}
