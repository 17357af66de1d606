// Package config reads a service's settings from the environment into a struct
// and documents them from the same struct, so that neither can lie about the
// other. A field says everything about its variable:
//
//	Drain time.Duration `env:"DRAIN_TIMEOUT, default=10s" help:"how long the work in hand may take after a signal"`
//
// The env tag is go-envconfig's. A unit tag names what a bare number counts. A
// variable that is set but empty counts as not set: compose files and shells
// cannot leave one out.
package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"reflect"

	"github.com/sethvargo/go-envconfig"
)

// Secret is a value that nobody prints by accident: it formats, logs and
// marshals as an ellipsis. Convert it to string where it is used.
type Secret string

const hidden = "…"

// String is never the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString is never the secret.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// LogValue is never the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText is never the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Error says which variable is wrong, what it holds and what was expected.
type Error struct {
	Variable string
	Value    string
	Expected string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s is %q: expected %s", e.Variable, e.Value, e.Expected)
}

// Invalid is what a Validate method returns. A Secret given as value stays one.
func Invalid(variable string, value any, expected string) error {
	return &Error{variable, fmt.Sprint(value), expected}
}

// Loopback says whether a host is this machine, as a setting names it: localhost or an
// address on loopback.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

type validator interface{ Validate() error }

// Load fills a C from the lookuper, then runs Validate() error of C and of every
// struct in it that has one. All that is invalid is reported at once; a value
// that cannot be parsed is reported alone, as an *Error.
func Load[C any](ctx context.Context, from envconfig.Lookuper) (C, error) {
	var c C
	// The library's errors name the Go field; operators know the variable. What
	// it parses passes through here first.
	var variable, value string
	last := envconfig.MutatorFunc(func(_ context.Context, _, key, _, v string) (string, bool, error) {
		variable, value = key, v
		return v, false, nil
	})
	err := envconfig.ProcessWith(ctx, &envconfig.Config{
		Target: &c, Lookuper: emptyIsUnset{from}, Mutators: []envconfig.Mutator{last},
	})
	if err != nil {
		return c, explain(reflect.TypeFor[C](), variable, value, err)
	}
	var problems []error
	seen := map[string]bool{}
	visit(reflect.ValueOf(&c).Elem(), func(v reflect.Value) {
		checked, ok := v.Addr().Interface().(validator)
		if !ok {
			return
		}
		// A struct embedded in C also lends C its method: one problem, found twice.
		if err := checked.Validate(); err != nil && !seen[err.Error()] {
			seen[err.Error()] = true
			problems = append(problems, err)
		}
	})
	return c, errors.Join(problems...)
}

// explain turns the library's error into one about the variable.
func explain(t reflect.Type, variable, value string, err error) error {
	if errors.Is(err, envconfig.ErrMissingRequired) {
		for _, v := range variables(t) {
			// The library stops at the first one missing and says its name last.
			if v.Required && endsWithWord(err.Error(), v.Name) {
				return &Error{v.Name, "", v.expected() + "; it has no default"}
			}
		}
		return err
	}
	for _, v := range variables(t) {
		if v.Name != variable {
			continue
		}
		if v.Secret {
			value = hidden
		}
		return &Error{variable, value, v.expected()}
	}
	return err
}

func endsWithWord(s, word string) bool {
	return len(s) > len(word) && s[len(s)-len(word):] == word && s[len(s)-len(word)-1] == ' '
}

// Find returns the first T inside c, at any depth: how shared code picks its own
// settings out of a service's.
func Find[T any](c any) (T, bool) {
	var found T
	ok := false
	v := reflect.New(reflect.TypeOf(c))
	v.Elem().Set(reflect.ValueOf(c))
	visit(v.Elem(), func(v reflect.Value) {
		if t, is := v.Interface().(T); is && !ok {
			found, ok = t, true
		}
	})
	return found, ok
}

// visit calls do for a struct after the structs in it.
func visit(v reflect.Value, do func(reflect.Value)) {
	if v.Kind() != reflect.Struct {
		return
	}
	for i := range v.NumField() {
		if v.Type().Field(i).IsExported() {
			visit(v.Field(i), do)
		}
	}
	do(v)
}

type emptyIsUnset struct{ from envconfig.Lookuper }

func (e emptyIsUnset) Lookup(key string) (string, bool) {
	v, ok := e.from.Lookup(key)
	return v, ok && v != ""
}
