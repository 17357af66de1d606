// Package liquid is the one configured Liquid engine, for import expressions, message templates and previews.
//
// Syntax, operators and the way filters are called are those of osteele/liquid; the tree is rendered here, because that library neither
// escapes, nor limits, nor names what is undefined, and iterates maps in random order. The promise: the same source and the same
// variables give the same bytes on every machine; no clock, no random, no files, no environment. In HTML mode every value is escaped
// exactly once, also one that went through filters, loops and captures, unless its last filter is raw; what the template's author wrote
// between the braces' outside is never touched. A template that parses can still fail for one person, but it cannot panic, run on, or
// write without end.
//
// Tags: assign, capture, case, comment, cycle, for (with else, limit, offset, reversed), break, continue, if, raw, unless. Filters: see
// filters.go, which replaces the library's own. What surprises people:
//   - "" and 0 are true; only nil, false and what is missing are not. Compare with "" where a column may be empty.
//   - A comparison takes no filter: {% if a | size > 3 %} does not parse; assign first. `and` and `or` bind alike, from the left.
//   - 5 == "5" is false, and "5" < 6 is false too; numbers compare with numbers, strings with strings; times do not compare.
//   - Arithmetic keeps whole numbers whole, divides them downwards (7 | divided_by: 2 is 3) and reads numbers out of strings. A fraction
//     is a float64: 0.1 | plus: 0.2 is 0.30000000000000004; round it.
//   - Ranges and indexes take Go's int: pass whole numbers as int.
//   - A name with other letters than A–Z, a–z, 0–9, _ and - is reached as row['Any name'], when the caller passes row.
package liquid

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/osteele/liquid/expressions"
	"github.com/osteele/liquid/parser"
	"github.com/osteele/liquid/render"
)

// Mode says what the text of a template is.
type Mode uint8

const (
	// Text is plain: subjects, text parts, import expressions. Values are written as they are.
	Text Mode = iota
	// HTML escapes values.
	HTML
)

// Options are limits. Zero values stand for the defaults.
type Options struct {
	MaxSourceBytes int           // of a template; 1 MiB
	MaxOutputBytes int           // of one rendering, captures included, and of any one value a filter makes; 1 MiB
	MaxSteps       int           // tags, outputs and turns of loops in one rendering; 200,000
	MaxDepth       int           // of tags inside tags; 50
	Timeout        time.Duration // of one rendering; 1 s. The other limits are reached first unless the machine is very slow
}

// Engine parses templates. It may be used by many goroutines at once.
type Engine struct {
	options Options
	grammar render.Config
	filters [2]expressions.Config // by Mode
	names   []string              // of the filters
}

// New makes an engine.
func New(o Options) *Engine {
	for _, d := range []struct {
		value    *int
		fallback int
	}{{&o.MaxSourceBytes, 1 << 20}, {&o.MaxOutputBytes, 1 << 20}, {&o.MaxSteps, 200_000}, {&o.MaxDepth, 50}} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Second
	}
	e := &Engine{options: o, grammar: render.NewConfig()}
	e.grammar.AddBlock("capture")
	e.grammar.AddBlock("case").Clause("when").Clause("else")
	e.grammar.AddBlock("comment")
	e.grammar.AddBlock("for").Clause("else")
	e.grammar.AddBlock("if").Clause("else").Clause("elsif")
	e.grammar.AddBlock("raw")
	e.grammar.AddBlock("unless").Clause("else").Clause("elsif")
	for _, mode := range []Mode{Text, HTML} {
		for name, fn := range filters(mode, o.MaxOutputBytes) {
			e.filters[mode].AddFilter(name, fn)
			if mode == Text {
				e.names = append(e.names, name)
			}
		}
	}
	sort.Strings(e.names)
	return e
}

// Error is what is wrong with a template, or with its rendering for one set of variables. It never holds a variable's value.
type Error struct {
	Line     int    // in the template, from 1; 0 when the whole is meant
	Message  string // without the line
	Variable string // the variable that has no value, when that is the reason
}

// Error prints line and message.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Message
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Message)
}

// LineNumber is Line, for callers that do not know this type.
func (e *Error) LineNumber() int { return e.Line }

func errorf(line int, format string, a ...any) *Error {
	return &Error{Line: line, Message: fmt.Sprintf(format, a...)}
}

// Template is a parsed template. It may be rendered by many goroutines at once.
type Template struct {
	engine  *Engine
	mode    Mode
	strict  bool
	body    []node
	writes  bool // assigns, captures or loops, and so needs variables of its own
	reads   map[string][]string
	srcSize int
}

// ParseExpression parses the Liquid text of an import spec: plain, and what is missing is nothing. The value is the whole text rendered.
func (e *Engine) ParseExpression(src string) (*Template, error) { return e.Parse(src, Text, false) }

// Parse parses a template. With strict, writing a variable that is missing or nil is an error when rendering, unless its first filter is
// `default`; testing one with {% if %} is not. Errors are *Error.
func (e *Engine) Parse(src string, mode Mode, strict bool) (*Template, error) {
	t := &Template{engine: e, mode: mode, strict: strict, reads: map[string][]string{}, srcSize: len(src)}
	if len(src) > e.options.MaxSourceBytes {
		return nil, errorf(0, "%d bytes; a template has at most %d", len(src), e.options.MaxSourceBytes)
	}
	if !utf8.ValidString(src) {
		return nil, errorf(0, "not UTF-8 text")
	}
	start := parser.SourceLoc{LineNo: 1} // the library counts from 0 unless told
	if err := e.checkTokens(parser.Scan(src, start, nil)); err != nil {
		return nil, err
	}
	root, perr := e.grammar.Parse(src, start)
	if perr != nil {
		return nil, fromParser(perr)
	}
	c := &compiler{engine: e, template: t, bound: map[string]bool{}}
	body, err := c.sequence(root.(*parser.ASTSeq).Children, 0)
	if err != nil {
		return nil, err
	}
	t.body = body
	return t, nil
}

// Check reports whether a text parses; it is what definition.Options.ParseTemplate asks for.
func (e *Engine) Check(src string, html, strict bool) error {
	mode := Text
	if html {
		mode = HTML
	}
	_, err := e.Parse(src, mode, strict)
	return err
}

// checkTokens refuses what the library would pass over in silence: braces and comments that do not end, and numbers that make it panic.
func (e *Engine) checkTokens(tokens []parser.Token) error {
	inside, insideLine := "", 0
	for _, tok := range tokens {
		line := tok.SourceLoc.LineNo
		switch {
		case inside != "":
			if tok.Type == parser.TagTokenType && tok.Name == "end"+inside {
				inside = ""
			}
		case tok.Type == parser.TagTokenType && (tok.Name == "comment" || tok.Name == "raw"):
			inside, insideLine = tok.Name, line
		case tok.Type == parser.TextTokenType:
			for _, open := range []string{"{{", "{%"} {
				if i := strings.Index(tok.Source, open); i >= 0 {
					return errorf(line+strings.Count(tok.Source[:i], "\n"), "%s is empty, does not end, or goes over a line's end", open)
				}
			}
		case tok.Type == parser.ObjTokenType:
			if _, err := parseExpression(tok.Args); err != nil {
				return errorf(line, "%s in %s", err, tok.Source)
			}
		}
	}
	if inside != "" {
		return errorf(insideLine, "{%% %s %%} does not end", inside)
	}
	return nil
}

func fromParser(err parser.Error) *Error {
	message := strings.TrimPrefix(err.Error(), fmt.Sprintf("Liquid error (line %d): ", err.LineNumber()))
	if end, _, ok := strings.Cut(message, " not inside "); ok && strings.HasPrefix(end, "end") {
		message = fmt.Sprintf("{%% %s %%} where no {%% %s %%} is open", end, strings.TrimPrefix(end, "end"))
	}
	return &Error{Line: err.LineNumber(), Message: message}
}

// Variables lists the paths the template reads and does not itself set, sorted: {"name"}, {"row", "Any name"}. A path ends where an
// index is computed.
func (t *Template) Variables() [][]string {
	keys := make([]string, 0, len(t.reads))
	for k := range t.reads {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	out := make([][]string, len(keys))
	for i, k := range keys {
		out[i] = t.reads[k]
	}
	return out
}

// Render renders the template. The variables are strings, ints, floats, booleans, times, and lists and map[string]any of such; they are
// not changed.
func (t *Template) Render(ctx context.Context, vars map[string]any) (string, error) {
	b, err := t.Append(ctx, make([]byte, 0, t.srcSize+t.srcSize/8+64), vars)
	if err != nil {
		return "", err
	}
	return string(b), nil
}
