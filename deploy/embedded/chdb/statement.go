package chdb

import (
	"bytes"
	"strings"
)

// kind is how a statement has to be run.
type kind int

const (
	kindOther   kind = iota // changes something, or nothing is known of it
	kindSelect              // answers rows and can be streamed
	kindRead                // answers rows, at once: SHOW, DESCRIBE, EXPLAIN, EXISTS
	kindInsert              // is followed by data
	kindSession             // SET, USE, temporary tables: changes its session
	kindEmpty               // nothing but space and comments
)

// statement is what has to be known of a query to run it. The engine does the real parsing.
type statement struct {
	kind   kind
	format string // of the answer, or of the data; empty if not named
	// For kindInsert: where FROM INFILE goes, where FORMAT or VALUES begins, where the data begins.
	sourceAt, formatAt, dataAt int
	multiple                   bool // something follows a semicolon
	sync                       int  // for a DROP: where its closing SYNC begins; 0 if it has none
	totals                     bool // asks for a second result, which streams lose
	localFile                  bool // reads or writes a file beside the engine, which on a server only a client does
}

// token is a word, a quoted identifier, a literal or one byte of punctuation.
type token struct {
	text       string // upper case; empty for what is quoted
	start, end int
	depth      int
}

// inspect reads the beginning of a query: all of it, or as much as holds an INSERT up to its data.
func inspect(q []byte) statement {
	var (
		st     statement
		prev   token
		first  string
		second string
		words  int
		semi   bool
		from   bool // the word before was FROM
		into   bool
	)
	pendingFormat := "" // FORMAT name, if nothing but SETTINGS follows
	settingsSeen := false
	depth := 0
	for i := 0; ; {
		t, ok := next(q, i, depth)
		if !ok {
			break
		}
		i = t.end
		switch t.text {
		case "(", "[", "{":
			depth++
		case ")", "]", "}":
			depth--
		}
		if semi && t.text != ";" {
			st.multiple = true
			break
		}
		words++
		switch words {
		case 1:
			first = t.text
		case 2:
			second = t.text
		}
		if t.depth != 0 {
			continue
		}
		switch {
		case t.text == ";":
			semi = true
		case first == "DROP" && t.text == "SYNC":
			st.sync = t.start
		case first == "INSERT" && st.sourceAt == 0 && t.text == "SETTINGS":
			st.sourceAt = t.start
		case first == "INSERT" && t.text == "VALUES":
			st.insert(t.start, t.end, "Values")
			return st
		case first == "INSERT" && prev.text == "FORMAT" && t.text != "":
			st.insert(prev.start, dataStart(q, t.end), string(q[t.start:t.end]))
			return st
		case first == "INSERT" && (t.text == "SELECT" || t.text == "WITH"):
			first = "INSERT SELECT"
		case t.text == "SETTINGS":
			settingsSeen = true
		case prev.text == "FORMAT" && t.text != "" && isWord(t.text[0]):
			pendingFormat, settingsSeen = string(q[t.start:t.end]), false
		case !settingsSeen:
			pendingFormat = "" // FORMAT was a name, not the clause
		}
		st.totals = st.totals || prev.text == "WITH" && t.text == "TOTALS"
		st.localFile = st.localFile || from && t.text == "INFILE" || into && t.text == "OUTFILE"
		from, into = t.text == "FROM", t.text == "INTO"
		prev = t
	}
	st.format = pendingFormat
	switch first {
	case "":
		if words == 0 {
			st.kind = kindEmpty
		}
	case "SELECT", "WITH", "FROM", "(":
		st.kind = kindSelect
	case "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS":
		st.kind = kindRead
	case "SET", "USE":
		st.kind = kindSession
	case "CREATE":
		if second == "TEMPORARY" {
			st.kind = kindSession
		}
	}
	return st
}

func (st *statement) insert(formatAt, dataAt int, format string) {
	st.kind, st.formatAt, st.dataAt, st.format = kindInsert, formatAt, dataAt, format
	if st.sourceAt == 0 {
		st.sourceAt = formatAt
	}
}

// dataStart skips the spaces after the name of the format and one line end, as ClickHouse does.
func dataStart(q []byte, i int) int {
	for i < len(q) && (q[i] == ' ' || q[i] == '\t' || q[i] == '\f') {
		i++
	}
	if i < len(q) && q[i] == '\r' {
		i++
	}
	if i < len(q) && q[i] == '\n' {
		i++
	}
	return i
}

// next returns the token at or after i. What is not closed reaches to the end.
func next(q []byte, i, depth int) (token, bool) {
	for i < len(q) {
		rest := q[i:]
		switch c := q[i]; {
		case c <= ' ':
			i++
		case bytes.HasPrefix(rest, []byte("--")) || c == '#' && len(rest) > 1 && (rest[1] == ' ' || rest[1] == '!'):
			i += until(rest, "\n")
		case bytes.HasPrefix(rest, []byte("/*")):
			i += 2 + until(rest[2:], "*/")
		case c == '\'' || c == '"' || c == '`':
			return token{start: i, end: i + quoted(rest), depth: depth}, true
		case c == '$' && heredoc(rest) > 0:
			return token{start: i, end: i + heredoc(rest), depth: depth}, true
		case isWord(c):
			n := 1
			for n < len(rest) && isWord(rest[n]) {
				n++
			}
			return token{text: strings.ToUpper(string(rest[:n])), start: i, end: i + n, depth: depth}, true
		default:
			return token{text: string(c), start: i, end: i + 1, depth: depth}, true
		}
	}
	return token{}, false
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// until counts the bytes up to and with end.
func until(q []byte, end string) int {
	if n := bytes.Index(q, []byte(end)); n >= 0 {
		return n + len(end)
	}
	return len(q)
}

// quoted counts the bytes of a literal or quoted name; a backslash or doubling escapes the quote.
func quoted(q []byte) int {
	for i := 1; i < len(q); i++ {
		switch {
		case q[i] == '\\':
			i++
		case q[i] == q[0] && i+1 < len(q) && q[i+1] == q[0]:
			i++
		case q[i] == q[0]:
			return i + 1
		}
	}
	return len(q)
}

// heredoc counts the bytes of $tag$…$tag$; 0 if q does not begin with one.
func heredoc(q []byte) int {
	n := 1
	for n < len(q) && isWord(q[n]) {
		n++
	}
	if n == len(q) || q[n] != '$' {
		return 0
	}
	tag := string(q[:n+1])
	return len(tag) + until(q[len(tag):], tag)
}
