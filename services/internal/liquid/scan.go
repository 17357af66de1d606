package liquid

import (
	"errors"
	"fmt"
	"strings"

	"github.com/osteele/liquid/expressions"
)

// scan reads an expression's words. The library parses expressions into closures, which can be called and not asked; what they read, which
// filters they use and whether they are one plain path has to be seen from their text. The text has been parsed, so it is well-formed.
type scan struct {
	paths    []path
	filters  []string
	operator bool   // a comparison, and, or, contains
	literals bool   // a literal or a range stands in it
	last     string // the last filter
	first    string // the first filter after the first path
	dateWord bool   // 'now' or 'today' stands before the filter date
}

// path is a variable with its properties.
type path struct {
	parts []string // the name, then what is known of the properties
	whole bool     // parts is all of it; otherwise an index is computed
	text  string   // as written
	of    string   // the filter it is an argument of
}

func isWordStart(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isWord(c byte) bool { return isWordStart(c) || c >= '0' && c <= '9' || c == '-' }

func wordEnd(src string, i int) int {
	for i < len(src) && isWord(src[i]) {
		i++
	}
	if i < len(src) && src[i] == '?' {
		i++
	}
	return i
}

// scanExpression reads src; loop is set for what follows `in` of a for tag, where limit:, offset: and reversed are no variables.
func scanExpression(src string, loop bool) scan {
	var s scan
	s.read(src, loop)
	return s
}

func (s *scan) read(src string, loop bool) {
	afterPipe, word := false, ""
	for i := 0; i < len(src); {
		c := src[i]
		switch {
		case c == '"' || c == '\'':
			end := strings.IndexByte(src[i+1:], c)
			if end < 0 {
				return
			}
			s.literals = true
			word = src[i+1 : i+1+end]
			i += end + 2
			continue
		case c == '|':
			afterPipe = true
			i++
			continue
		case isWordStart(c):
			end := wordEnd(src, i)
			name := src[i:end]
			keyword := end < len(src) && src[end] == ':'
			switch {
			case afterPipe:
				s.filters = append(s.filters, name)
				s.last = name
				if s.first == "" && len(s.paths) <= 1 {
					s.first = name
				}
				if name == "date" && (word == "now" || word == "today") {
					s.dateWord = true
				}
			case keyword || loop && name == "reversed":
			case name == "and" || name == "or" || name == "contains":
				s.operator = true
			case name == "true" || name == "false" || name == "nil" || name == "in":
				s.literals = true
			default:
				end = s.path(src, i, end)
			}
			afterPipe, word = false, ""
			i = end
			continue
		case c == '=' || c == '!' || c == '<' || c == '>':
			s.operator = true
		case c >= '0' && c <= '9' || c == '(':
			s.literals = true
		}
		i++
	}
}

// path reads the variable that begins at start and its properties, and returns where it ends.
func (s *scan) path(src string, start, end int) int {
	p := path{parts: []string{src[start:end]}, whole: true, of: s.last}
	i := end
	for i < len(src) {
		switch {
		case src[i] == '.' && i+1 < len(src) && isWordStart(src[i+1]):
			next := wordEnd(src, i+1)
			if p.whole {
				p.parts = append(p.parts, src[i+1:next])
			}
			i = next
			continue
		case src[i] == '[':
			closing := closingBracket(src, i)
			if closing < 0 {
				break
			}
			index := strings.TrimSpace(src[i+1 : closing])
			if n := len(index); p.whole && n >= 2 && (index[0] == '"' || index[0] == '\'') && strings.IndexByte(index[1:], index[0]) == n-2 {
				p.parts = append(p.parts, index[1:n-1])
			} else {
				p.whole = false
				inner := scanExpression(index, false)
				s.paths = append(s.paths, inner.paths...)
			}
			i = closing + 1
			continue
		}
		break
	}
	p.text = src[start:i]
	s.paths = append(s.paths, p)
	return i
}

func closingBracket(src string, open int) int {
	depth := 0
	for i := open; i < len(src); i++ {
		switch src[i] {
		case '"', '\'':
			end := strings.IndexByte(src[i+1:], src[i])
			if end < 0 {
				return -1
			}
			i += end + 1
		case '[':
			depth++
		case ']':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// parseExpression and parseStatement shield from panics of the library's parser, which numbers beyond 64 bits cause.
func parseExpression(src string) (e expressions.Expression, err error) {
	defer shield(&err)
	return expressions.Parse(src)
}

func parseStatement(selector, src string) (s *expressions.Statement, err error) {
	defer shield(&err)
	return expressions.ParseStatement(selector, src)
}

func shield(err *error) {
	if r := recover(); r != nil {
		if e, ok := r.(error); ok {
			*err = fmt.Errorf("syntax error: %w", e)
		} else {
			*err = errors.New("syntax error")
		}
	}
}
