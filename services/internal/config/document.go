package config

import (
	"encoding"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// variable is what a field says about its environment variable.
type variable struct {
	Name, Default, Unit, Help string
	Required, Secret          bool
}

var (
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
	duration        = reflect.TypeFor[time.Duration]()
	secret          = reflect.TypeFor[Secret]()
)

// variables lists the variables of a struct in order of its fields.
func variables(t reflect.Type) []variable {
	var found []variable
	collect(t, "", &found)
	return found
}

func collect(t reflect.Type, prefix string, found *[]variable) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("env"), ",")
		name = strings.TrimSpace(name)
		if name == "" {
			below, _ := option(options, "prefix=")
			collect(f.Type, prefix+below, found)
			continue
		}
		v := variable{Name: prefix + name, Unit: f.Tag.Get("unit"), Help: f.Tag.Get("help"), Secret: f.Type == secret}
		v.Default, _ = option(options, "default=")
		_, v.Required = option(options, "required")
		if v.Unit == "" {
			v.Unit = unitOf(f.Type)
		}
		*found = append(*found, v)
	}
}

// option returns what follows the name of an option; a default takes the rest of
// the tag, commas included, and stands last.
func option(options, name string) (string, bool) {
	for rest := options; rest != ""; {
		part, after, _ := strings.Cut(rest, ",")
		trimmed := strings.TrimLeft(part, " ")
		if strings.HasPrefix(trimmed, "default=") {
			part, after = rest, ""
			trimmed = strings.TrimLeft(part, " ")
		}
		if value, ok := strings.CutPrefix(trimmed, name); ok {
			return value, true
		}
		rest = after
	}
	return "", false
}

// unitOf says what a value looks like when the field has no unit of its own.
func unitOf(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == duration:
		return "duration"
	case t == secret:
		return "secret"
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		return strings.ToLower(t.Name())
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "whole number"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list, separated by commas"
	}
	return "text"
}

// expected says what a value should have been.
func (v variable) expected() string {
	s := v.Unit
	switch s {
	case "duration":
		s = "a duration such as 500ms, 10s or 2h"
	case "true or false":
	default:
		s = "a value in the form: " + s
	}
	if v.Help != "" {
		s += " (" + v.Help + ")"
	}
	return s
}

func (v variable) shownDefault() string {
	switch {
	case v.Required:
		return "required"
	case v.Secret && v.Default != "":
		return hidden
	case v.Default == "":
		return "-"
	}
	return v.Default
}

// Help prints every variable of the struct c with its default, unit and meaning.
// Defaults of secrets are hidden.
func Help(w io.Writer, service string, c any) {
	fmt.Fprintf(w, "%s reads its settings from the environment. An empty variable counts as not set.\n\n", service)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VARIABLE\tDEFAULT\tUNIT\tMEANING")
	for _, v := range variables(reflect.TypeOf(c)) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", v.Name, v.shownDefault(), v.Unit, v.Help)
	}
	t.Flush()
}

// Documented is one service and the zero value of its settings.
type Documented struct {
	Service string
	Config  any
}

// Markdown documents the variables of several services: first those that several
// share, then each service's own. A variable whose default differs between
// services is listed with each.
func Markdown(w io.Writer, services []Documented) {
	users := map[variable][]string{}
	var order []variable
	for _, s := range services {
		for _, v := range variables(reflect.TypeOf(s.Config)) {
			if users[v] == nil {
				order = append(order, v)
			}
			if !slices.Contains(users[v], s.Service) {
				users[v] = append(users[v], s.Service)
			}
		}
	}
	fmt.Fprint(w, "# Configuration\n\nEvery service reads its settings from the environment; `-help` prints them too.\n"+
		"An empty variable counts as not set. Generated from the services' code; do not edit.\n\n")

	fmt.Fprint(w, "## Shared\n\n| variable | default | unit | meaning | read by |\n|---|---|---|---|---|\n")
	for _, v := range order {
		if by := users[v]; len(by) > 1 {
			readers := strings.Join(by, ", ")
			if len(by) == len(services) {
				readers = "all"
			}
			fmt.Fprintf(w, "%s %s |\n", v.row(), readers)
		}
	}
	for _, s := range services {
		own := ""
		for _, v := range order {
			if by := users[v]; len(by) == 1 && by[0] == s.Service {
				own += v.row() + "\n"
			}
		}
		if own != "" {
			fmt.Fprintf(w, "\n## %s\n\n| variable | default | unit | meaning |\n|---|---|---|---|\n%s", s.Service, own)
		}
	}
}

func (v variable) row() string {
	def := v.shownDefault()
	if def != "-" && def != "required" && def != hidden {
		def = "`" + def + "`"
	}
	cell := strings.NewReplacer("|", `\|`, "\n", " ", "<", `\<`)
	return fmt.Sprintf("| `%s` | %s | %s | %s |", v.Name, cell.Replace(def), cell.Replace(v.Unit), cell.Replace(v.Help))
}
