package liquid

import (
	"regexp"
	"strings"
	"unicode"

	"github.com/osteele/liquid/expressions"
	"github.com/osteele/liquid/parser"
)

type compiler struct {
	engine   *Engine
	template *Template
	bound    map[string]bool // names that the template itself sets, so far
	loops    int             // for tags around this place
}

// expr is a compiled expression with what its text says about it.
type expr struct {
	eval  expressions.Expression
	plain []string // when the whole expression is one path without computed indexes: its parts
	scan  scan
	line  int
	text  string
}

// sequence compiles the nodes of a body. White space that {%- and -%} cut is cut here, once: only the author's text, never a value.
func (c *compiler) sequence(children []parser.ASTNode, depth int) ([]node, error) {
	if depth > c.engine.options.MaxDepth {
		return nil, errorf(0, "tags are nested more than %d deep", c.engine.options.MaxDepth)
	}
	nodes := make([]node, 0, len(children))
	for i, child := range children {
		var n node
		var err error
		switch child := child.(type) {
		case *parser.ASTText:
			s := child.Source
			if i > 0 && isTrim(children[i-1], parser.Right) {
				s = strings.TrimLeftFunc(s, unicode.IsSpace)
			}
			if i+1 < len(children) && isTrim(children[i+1], parser.Left) {
				s = strings.TrimRightFunc(s, unicode.IsSpace)
			}
			if s != "" {
				n = textNode(s)
			}
		case *parser.ASTRaw:
			if s := strings.Join(child.Slices, ""); s != "" {
				n = textNode(s)
			}
		case *parser.ASTTrim:
		case *parser.ASTObject:
			n, err = c.output(child)
		case *parser.ASTTag:
			n, err = c.tag(child.Token)
		case *parser.ASTBlock:
			n, err = c.block(child, depth)
		default:
			err = errorf(0, "unknown syntax %T", child)
		}
		if err != nil {
			return nil, err
		}
		if n != nil {
			nodes = append(nodes, n)
		}
	}
	return nodes, nil
}

func isTrim(n parser.ASTNode, d parser.TrimDirection) bool {
	t, ok := n.(*parser.ASTTrim)
	return ok && t.TrimDirection == d
}

// expression compiles src and records what it reads.
func (c *compiler) expression(src string, line int) (*expr, error) {
	e, err := parseExpression(src)
	if err != nil {
		return nil, errorf(line, "%s", err)
	}
	return c.wrap(e, src, line, false)
}

func (c *compiler) wrap(e expressions.Expression, src string, line int, loop bool) (*expr, error) {
	s := scanExpression(src, loop)
	for _, f := range s.filters {
		if !contains(c.engine.names, f) {
			return nil, errorf(line, "unknown filter %q", f)
		}
	}
	if s.dateWord {
		return nil, errorf(line, "the date of now is not the same when a message is rendered again; use a variable, such as requested_at")
	}
	for _, p := range s.paths {
		name := p.parts[0]
		if c.bound[name] {
			continue
		}
		if name == "blank" || name == "empty" {
			return nil, errorf(line, `%q is not a value here; compare with "" or nil`, name)
		}
		c.template.reads[strings.Join(p.parts, "\x00")] = p.parts
	}
	out := &expr{eval: e, scan: s, line: line, text: strings.TrimSpace(src)}
	if len(s.paths) == 1 && s.paths[0].whole && len(s.filters) == 0 && !s.operator && !s.literals && s.paths[0].text == out.text {
		out.plain = s.paths[0].parts
	}
	return out, nil
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

func (c *compiler) output(o *parser.ASTObject) (node, error) {
	line := o.SourceLoc.LineNo
	e, err := c.wrap(o.Expr, o.Args, line, false)
	if err != nil {
		return nil, err
	}
	for i, f := range e.scan.filters {
		if f == "raw" && i < len(e.scan.filters)-1 {
			return nil, errorf(line, "raw comes last: what other filters make of it is escaped")
		}
	}
	n := &outputNode{expr: e}
	// Of an expression with operators the value is a boolean, and nothing in it needs a value.
	if c.template.strict && e.plain == nil && !e.scan.operator {
		for _, p := range e.scan.paths {
			if p.of == "default" || p.of == "" && e.scan.first == "default" {
				continue
			}
			check, err := parseExpression(p.text)
			if err != nil {
				return nil, errorf(line, "%s", err)
			}
			n.needs = append(n.needs, need{check, p.text})
		}
	}
	return n, nil
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*\??$`)

func (c *compiler) tag(tok parser.Token) (node, error) {
	line := tok.SourceLoc.LineNo
	switch tok.Name {
	case "assign":
		stmt, err := parseStatement(expressions.AssignStatementSelector, tok.Args)
		if err != nil || stmt.Assignment.ValueFn == nil {
			return nil, errorf(line, "syntax error in %s; expected {%% assign name = value %%}", tok.Source)
		}
		_, value, _ := strings.Cut(tok.Args, "=")
		e, err := c.wrap(stmt.Assignment.ValueFn, value, line, false)
		if err != nil {
			return nil, err
		}
		c.bound[stmt.Assignment.Variable] = true
		c.template.writes = true
		return &assignNode{stmt.Assignment.Variable, e}, nil
	case "cycle":
		stmt, err := parseStatement(expressions.CycleStatementSelector, tok.Args)
		if err != nil || len(stmt.Cycle.Values) == 0 {
			return nil, errorf(line, "syntax error in %s; expected {%% cycle 'one', 'two' %%}", tok.Source)
		}
		key := stmt.Cycle.Group
		if key == "" {
			key = "\x00" + strings.Join(stmt.Cycle.Values, "\x00")
		}
		return &cycleNode{key, stmt.Cycle.Values}, nil
	case "break", "continue":
		if c.loops == 0 {
			return nil, errorf(line, "%s outside of a for", tok.Name)
		}
		if tok.Name == "break" {
			return jumpNode{errBreak}, nil
		}
		return jumpNode{errContinue}, nil
	}
	return nil, errorf(line, "unknown tag %q", tok.Name)
}

func (c *compiler) block(b *parser.ASTBlock, depth int) (node, error) {
	line := b.SourceLoc.LineNo
	switch b.Name {
	case "if", "unless":
		return c.conditional(b, depth)
	case "case":
		return c.choice(b, depth)
	case "for":
		return c.loop(b, depth)
	case "capture":
		name := strings.Trim(b.Args, `'" `)
		if !identifier.MatchString(name) {
			return nil, errorf(line, "syntax error in %s; expected {%% capture name %%}", b.Source)
		}
		body, err := c.sequence(b.Body, depth+1)
		if err != nil {
			return nil, err
		}
		c.bound[name] = true
		c.template.writes = true
		return &captureNode{name, body}, nil
	}
	return nil, errorf(line, "unknown tag %q", b.Name)
}

func (c *compiler) conditional(b *parser.ASTBlock, depth int) (node, error) {
	n := &ifNode{}
	add := func(args string, line int, negate bool, children []parser.ASTNode) error {
		br := branch{negate: negate}
		var err error
		if args != "" {
			if br.test, err = c.expression(args, line); err != nil {
				return err
			}
		}
		if br.body, err = c.sequence(children, depth+1); err != nil {
			return err
		}
		n.branches = append(n.branches, br)
		return nil
	}
	if b.Args == "" {
		return nil, errorf(b.SourceLoc.LineNo, "{%% %s %%} tests nothing", b.Name)
	}
	if err := add(b.Args, b.SourceLoc.LineNo, b.Name == "unless", b.Body); err != nil {
		return nil, err
	}
	for i, clause := range b.Clauses {
		line := clause.SourceLoc.LineNo
		switch {
		case clause.Name == "else" && clause.Args != "":
			return nil, errorf(line, "else tests nothing; use elsif")
		case clause.Name == "else" && i < len(b.Clauses)-1:
			return nil, errorf(line, "else comes last")
		case clause.Name == "elsif" && clause.Args == "":
			return nil, errorf(line, "{%% elsif %%} tests nothing")
		}
		if err := add(clause.Args, line, false, clause.Body); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (c *compiler) choice(b *parser.ASTBlock, depth int) (node, error) {
	subject, err := c.expression(b.Args, b.SourceLoc.LineNo)
	if err != nil {
		return nil, err
	}
	n := &caseNode{subject: subject}
	for i, clause := range b.Clauses {
		line := clause.SourceLoc.LineNo
		w := when{otherwise: clause.Name == "else"}
		if w.otherwise && i < len(b.Clauses)-1 {
			return nil, errorf(line, "else comes last")
		}
		if !w.otherwise {
			stmt, err := parseStatement(expressions.WhenStatementSelector, clause.Args)
			if err != nil {
				return nil, errorf(line, "%s", err)
			}
			for _, value := range stmt.When.Exprs {
				e, err := c.wrap(value, clause.Args, line, false)
				if err != nil {
					return nil, err
				}
				e.plain = nil // the text is that of all values
				w.values = append(w.values, e)
			}
		}
		if w.body, err = c.sequence(clause.Body, depth+1); err != nil {
			return nil, err
		}
		n.whens = append(n.whens, w)
	}
	return n, nil
}

func (c *compiler) loop(b *parser.ASTBlock, depth int) (node, error) {
	line := b.SourceLoc.LineNo
	stmt, err := parseStatement(expressions.LoopStatementSelector, b.Args)
	if err != nil || stmt.Loop.Expr == nil {
		return nil, errorf(line, "syntax error in %s; expected {%% for item in list %%}", b.Source)
	}
	if stmt.Loop.Cols != nil {
		return nil, errorf(line, "a for has no cols")
	}
	_, rest, _ := strings.Cut(strings.TrimSpace(b.Args), " ")
	rest = strings.TrimPrefix(strings.TrimSpace(rest), "in")
	list, err := c.wrap(stmt.Loop.Expr, rest, line, true)
	if err != nil {
		return nil, err
	}
	list.plain = nil // the text is that of the modifiers as well
	n := &forNode{variable: stmt.Loop.Variable, list: list, limit: stmt.Loop.Limit, offset: stmt.Loop.Offset, reversed: stmt.Loop.Reversed}
	before := map[string]bool{stmt.Loop.Variable: c.bound[stmt.Loop.Variable], "forloop": c.bound["forloop"]}
	for name := range before {
		c.bound[name] = true
	}
	c.template.writes = true
	c.loops++
	n.body, err = c.sequence(b.Body, depth+1)
	c.loops--
	for name, was := range before {
		c.bound[name] = was
	}
	if err != nil {
		return nil, err
	}
	for i, clause := range b.Clauses {
		if i > 0 {
			return nil, errorf(clause.SourceLoc.LineNo, "a for has one else")
		}
		if n.otherwise, err = c.sequence(clause.Body, depth+1); err != nil {
			return nil, err
		}
	}
	return n, nil
}
