package clickhouse

import (
	"bytes"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

// Relation is a table or a view as the migrations leave it.
type Relation struct {
	Name, Comment string
	View          bool
	Columns       []Column
}

// Column is a column of a relation; Type is as ClickHouse was told.
type Column struct{ Name, Type, Comment string }

var (
	createRelation = regexp.MustCompile(`(?s)^CREATE (OR REPLACE )?(TABLE|VIEW)(?: IF NOT EXISTS)? (\w+)\s*(.*)$`)
	columnLine     = regexp.MustCompile(`(?s)^(\w+)\s+(.+?)(?: CODEC\(\w+\(\d+\)\))? COMMENT '((?:[^']|'')*)'(?: CODEC\(.*\))?$`)
	lastComment    = regexp.MustCompile(`(?s)COMMENT '((?:[^']|'')*)'\s*$`)
	addColumn      = regexp.MustCompile(`(?s)^ADD COLUMN IF NOT EXISTS (.*?)(?: AFTER (\w+))?$`)
	commentColumn  = regexp.MustCompile(`(?s)^COMMENT COLUMN (\w+) '((?:[^']|'')*)'$`)
	modifyComment  = regexp.MustCompile(`(?s)^MODIFY COMMENT '((?:[^']|'')*)'$`)
	alterRelation  = regexp.MustCompile(`(?s)^ALTER TABLE (\w+) (.*)$`)
	aside          = regexp.MustCompile(`(?m)(^|\s)--.*$`)
)

// Relations reads the migrations, in order of their names. Materialized views only
// fill tables and are left out.
func Relations() ([]Relation, error) {
	files, err := fs.Glob(FS, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("looking for migrations: %w", err)
	}
	var all []Relation
	for _, file := range files {
		text, err := fs.ReadFile(FS, file)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		for _, statement := range split(aside.ReplaceAllString(string(text), ""), ';') {
			if all, err = apply(all, strings.TrimSpace(statement)); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	slices.SortFunc(all, func(a, b Relation) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

func apply(all []Relation, statement string) ([]Relation, error) {
	at := func(name string) int { return slices.IndexFunc(all, func(r Relation) bool { return r.Name == name }) }
	if m := createRelation.FindStringSubmatch(statement); m != nil {
		r := Relation{Name: m[3], View: m[2] == "VIEW", Comment: unquote(lastComment.FindStringSubmatch(statement))}
		if strings.HasPrefix(m[4], "(") {
			for _, line := range split(m[4][1:closing(m[4])], ',') {
				c := columnLine.FindStringSubmatch(strings.TrimSpace(line))
				if c == nil {
					return nil, fmt.Errorf("%s: cannot read the column %q", r.Name, line)
				}
				r.Columns = append(r.Columns, Column{c[1], typeOf(c[2]), strings.ReplaceAll(c[3], "''", "'")})
			}
		}
		if i := at(r.Name); i >= 0 {
			all[i] = r
			return all, nil
		}
		return append(all, r), nil
	}
	m := alterRelation.FindStringSubmatch(statement)
	if m == nil {
		return all, nil
	}
	i := at(m[1])
	if i < 0 {
		return all, nil // a materialized view
	}
	for _, change := range split(m[2], ',') {
		change = strings.TrimSpace(change)
		if c := addColumn.FindStringSubmatch(change); c != nil {
			line := columnLine.FindStringSubmatch(c[1])
			if line == nil {
				return nil, fmt.Errorf("%s: cannot read the column %q", m[1], c[1])
			}
			column := Column{line[1], typeOf(line[2]), strings.ReplaceAll(line[3], "''", "'")}
			after := slices.IndexFunc(all[i].Columns, func(o Column) bool { return o.Name == c[2] }) + 1
			if after == 0 {
				after = len(all[i].Columns)
			}
			all[i].Columns = slices.Insert(all[i].Columns, after, column)
		}
		if c := commentColumn.FindStringSubmatch(change); c != nil {
			for n := range all[i].Columns {
				if all[i].Columns[n].Name == c[1] {
					all[i].Columns[n].Comment = strings.ReplaceAll(c[2], "''", "'")
				}
			}
		}
		if c := modifyComment.FindStringSubmatch(change); c != nil {
			all[i].Comment = unquote(c)
		}
	}
	return all, nil
}

func unquote(match []string) string {
	if match == nil {
		return ""
	}
	return strings.ReplaceAll(match[1], "''", "'")
}

// typeOf leaves out how a value is made.
func typeOf(text string) string {
	for _, word := range []string{" MATERIALIZED ", " DEFAULT "} {
		text, _, _ = strings.Cut(text, word)
	}
	return strings.TrimSpace(text)
}

// split cuts at separators that stand in no string and no brackets.
func split(text string, separator byte) (parts []string) {
	depth, quoted, from := 0, false, 0
	for i := range len(text) {
		switch c := text[i]; {
		case c == '\'':
			quoted = !quoted
		case quoted:
		case c == '(' || c == '[' || c == '{':
			depth++
		case c == ')' || c == ']' || c == '}':
			depth--
		case c == separator && depth == 0:
			parts, from = append(parts, text[from:i]), i+1
		}
	}
	return append(parts, text[from:])
}

// closing is where the bracket closes that the text begins with.
func closing(text string) int {
	depth, quoted := 0, false
	for i := range len(text) {
		switch c := text[i]; {
		case c == '\'':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return len(text)
}

// Dictionary is the page docs/data-dictionary.md.
func Dictionary() ([]byte, error) {
	all, err := Relations()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString("# Data dictionary\n\n<!-- Written by go generate work from schemas/clickhouse; do not edit. -->\n\nEvery view and table in ClickHouse, with its columns, as `DESCRIBE TABLE` explains them. [analytics.md](analytics.md) says how they hang together. Read the views; the\ntables behind them hold copies.\n\n## Views\n\n")
	list := func(views bool) {
		for _, r := range all {
			if r.View == views {
				fmt.Fprintf(&b, "- [%s](#%s): %s\n", r.Name, r.Name, escape(r.Comment))
			}
		}
	}
	list(true)
	b.WriteString("\n## Tables\n\n")
	list(false)
	for _, views := range []bool{true, false} {
		for _, r := range all {
			if r.View != views {
				continue
			}
			fmt.Fprintf(&b, "\n### %s\n\n%s\n", r.Name, escape(r.Comment))
			if len(r.Columns) == 0 {
				continue
			}
			b.WriteString("\n| column | type | |\n|---|---|---|\n")
			for _, c := range r.Columns {
				fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", c.Name, strings.ReplaceAll(c.Type, "|", "\\|"), escape(c.Comment))
			}
		}
	}
	return b.Bytes(), nil
}

func escape(text string) string {
	return strings.NewReplacer("|", "\\|", "<", "&lt;", "\n", " ").Replace(text)
}
