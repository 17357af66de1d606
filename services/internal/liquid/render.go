package liquid

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/osteele/liquid/expressions"
	"github.com/osteele/liquid/values"
)

// node is a part of a compiled template. Nodes do not change after parsing.
type node interface {
	render(r *run) error
}

// run is one rendering.
type run struct {
	t        *Template
	ctx      context.Context
	vars     map[string]any
	scope    expressions.Context // over vars; made when the first expression needs it
	out      []byte
	room     int // bytes that may still be written
	steps    int
	deadline time.Time // set at the first look at the clock
	cycles   map[string]int
}

var (
	errBreak    = errors.New("break")
	errContinue = errors.New("continue")
)

// lookEvery is how many steps lie between two looks at the clock.
const lookEvery = 512

// Append renders the template and appends it to dst; on an error it returns dst as it was. Errors are *Error, or what ctx says.
func (t *Template) Append(ctx context.Context, dst []byte, vars map[string]any) (out []byte, err error) {
	r := run{t: t, ctx: ctx, vars: vars, out: dst, room: t.engine.options.MaxOutputBytes}
	if t.writes {
		r.vars = make(map[string]any, len(vars)+4)
		maps.Copy(r.vars, vars)
	}
	// The library reports some mistakes of authors by panicking, and must not take a service with it by others.
	defer func() {
		if p := recover(); p != nil {
			out, err = dst, errorf(0, "a value has the wrong type for what is done with it")
		}
	}()
	if err := r.sequence(t.body); err != nil {
		return dst, err
	}
	return r.out, nil
}

func (r *run) sequence(nodes []node) error {
	for _, n := range nodes {
		if err := r.step(); err != nil {
			return err
		}
		if err := n.render(r); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) step() error {
	r.steps++
	if r.steps > r.t.engine.options.MaxSteps {
		return errorf(0, "more than %d steps", r.t.engine.options.MaxSteps)
	}
	if r.steps%lookEvery != 0 {
		return nil
	}
	if err := r.ctx.Err(); err != nil {
		return fmt.Errorf("rendering: %w", err)
	}
	now := time.Now()
	if r.deadline.IsZero() {
		r.deadline = now.Add(r.t.engine.options.Timeout)
	} else if now.After(r.deadline) {
		return errorf(0, "longer than %s", r.t.engine.options.Timeout)
	}
	return nil
}

// take reserves n bytes of output.
func (r *run) take(n int) error {
	if r.room -= n; r.room < 0 {
		return errorf(0, "more than %d bytes", r.t.engine.options.MaxOutputBytes)
	}
	return nil
}

// value evaluates an expression.
func (r *run) value(e *expr) (any, error) {
	if e.plain != nil {
		if v, ok := lookup(r.vars, e.plain); ok {
			return v, nil
		}
	}
	v, err := r.evaluate(e.eval)
	if err != nil {
		return nil, &Error{Line: e.line, Message: fmt.Sprintf("%s in %s", explain(err), e.text)}
	}
	return v, nil
}

func (r *run) evaluate(e expressions.Expression) (any, error) {
	if r.scope == nil {
		r.scope = expressions.NewContext(r.vars, r.t.engine.filters[r.t.mode])
	}
	return e.Evaluate(r.scope)
}

// explain makes a sentence of an evaluation's error, without the values that the library puts into some.
func explain(err error) string {
	var failed expressions.FilterError
	var wrongType values.TypeError
	var own *filterError
	switch {
	case errors.As(err, &failed):
		if errors.As(failed.Err, &own) {
			return fmt.Sprintf("filter %s %s", failed.FilterName, own.message)
		}
		var arguments *values.CallParityError
		if errors.As(failed.Err, &arguments) {
			return fmt.Sprintf("filter %s takes %d arguments, not %d", failed.FilterName, arguments.NumParams, arguments.NumArgs)
		}
		return fmt.Sprintf("filter %s failed", failed.FilterName)
	case errors.As(err, &wrongType):
		return "a value has the wrong type"
	}
	return "evaluation failed"
}

// lookup walks plain maps; ok is false where only the library knows what a property means.
func lookup(vars map[string]any, path []string) (v any, ok bool) {
	v = vars[path[0]]
	for _, p := range path[1:] {
		m, isMap := v.(map[string]any)
		if !isMap {
			return nil, v == nil
		}
		next, has := m[p]
		if !has && p == "size" {
			return nil, false
		}
		v = next
	}
	switch v.(type) {
	case nil, string, int, int64, float64, bool, time.Time, markup, []any, map[string]any:
		return v, true
	}
	return nil, false
}

type textNode string

func (n textNode) render(r *run) error {
	if err := r.take(len(n)); err != nil {
		return err
	}
	r.out = append(r.out, n...)
	return nil
}

// need is a variable that must have a value before a strict template writes what is made of it.
type need struct {
	eval expressions.Expression
	text string
}

type outputNode struct {
	*expr
	needs []need
}

func (n *outputNode) render(r *run) error {
	for _, need := range n.needs {
		v, err := r.evaluate(need.eval)
		if err != nil {
			return errorf(n.line, "%s in %s", explain(err), n.text)
		}
		if v == nil {
			return n.undefined(need.text)
		}
	}
	v, err := r.value(n.expr)
	if err != nil {
		return err
	}
	if v == nil && r.t.strict {
		return n.undefined(n.text)
	}
	before := len(r.out)
	r.out = appendValue(r.out, v, r.t.mode)
	if err := r.take(len(r.out) - before); err != nil {
		return errorf(n.line, "%s", err)
	}
	return nil
}

func (n *outputNode) undefined(name string) error {
	return &Error{Line: n.line, Message: fmt.Sprintf("%s has no value", name), Variable: name}
}

type assignNode struct {
	name  string
	value *expr
}

func (n *assignNode) render(r *run) error {
	v, err := r.value(n.value)
	if err != nil {
		return err
	}
	r.vars[n.name] = v
	return nil
}

type captureNode struct {
	name string
	body []node
}

// In HTML mode what a capture holds is already escaped, and says so by its type.
func (n *captureNode) render(r *run) error {
	outer := r.out
	r.out = nil
	err := r.sequence(n.body)
	captured := string(r.out)
	r.out = outer
	if err != nil {
		if err == errBreak || err == errContinue { // sentinels of this package, never wrapped
			r.capture(n.name, captured)
		}
		return err
	}
	r.capture(n.name, captured)
	return nil
}

func (r *run) capture(name, captured string) {
	if r.t.mode == HTML {
		r.vars[name] = markup{captured}
	} else {
		r.vars[name] = captured
	}
}

type branch struct {
	test   *expr // nil is else
	negate bool
	body   []node
}

type ifNode struct{ branches []branch }

func (n *ifNode) render(r *run) error {
	for _, b := range n.branches {
		if b.test != nil {
			v, err := r.value(b.test)
			if err != nil {
				return err
			}
			if (v != nil && v != false) == b.negate {
				continue
			}
		}
		return r.sequence(b.body)
	}
	return nil
}

type when struct {
	values    []*expr
	otherwise bool
	body      []node
}

type caseNode struct {
	subject *expr
	whens   []when
}

func (n *caseNode) render(r *run) error {
	subject, err := r.value(n.subject)
	if err != nil {
		return err
	}
	for _, w := range n.whens {
		if w.otherwise {
			return r.sequence(w.body)
		}
		for _, e := range w.values {
			v, err := r.value(e)
			if err != nil {
				return err
			}
			if values.ValueOf(subject).Equal(values.ValueOf(v)) {
				return r.sequence(w.body)
			}
		}
	}
	return nil
}

type forNode struct {
	variable      string
	list          *expr
	limit, offset expressions.Expression
	reversed      bool
	body          []node
	otherwise     []node
}

func (n *forNode) render(r *run) error {
	v, err := r.value(n.list)
	if err != nil {
		return err
	}
	count, at := iterate(v)
	from := 0
	for _, m := range []struct {
		e    expressions.Expression
		name string
	}{{n.offset, "offset"}, {n.limit, "limit"}} {
		if m.e == nil {
			continue
		}
		v, err := r.evaluate(m.e)
		if err != nil {
			return errorf(n.list.line, "%s in %s of the for", explain(err), m.name)
		}
		num, err := number(v)
		if err != nil || !num.whole || num.int < 0 {
			return errorf(n.list.line, "%s of the for is not a whole number", m.name)
		}
		if m.name == "offset" {
			from = min(num.int, count)
			count -= from
		} else {
			count = min(count, num.int)
		}
	}
	if count <= 0 {
		return r.sequence(n.otherwise)
	}
	outerLoop, outerItem := r.vars["forloop"], r.vars[n.variable]
	defer func() { r.vars["forloop"], r.vars[n.variable] = outerLoop, outerItem }()
	// One map for all turns: nothing can keep it but the body.
	loop := map[string]any{"length": count}
	r.vars["forloop"] = loop
	for i := range count {
		if err := r.step(); err != nil {
			return err
		}
		position := i
		if n.reversed {
			position = count - 1 - i
		}
		loop["first"], loop["last"] = i == 0, i == count-1
		loop["index"], loop["index0"] = i+1, i
		loop["rindex"], loop["rindex0"] = count-i, count-i-1
		r.vars[n.variable] = at(from + position)
		switch err := r.sequence(n.body); err { // sentinels of this package, never wrapped
		case nil, errContinue:
		case errBreak:
			return nil
		default:
			return err
		}
	}
	return nil
}

type cycleNode struct {
	key   string
	texts []string
}

func (n *cycleNode) render(r *run) error {
	if r.cycles == nil {
		r.cycles = map[string]int{}
	}
	turn := r.cycles[n.key]
	r.cycles[n.key] = turn + 1
	return textNode(n.texts[turn%len(n.texts)]).render(r)
}

type jumpNode struct{ err error }

func (n jumpNode) render(*run) error { return n.err }
