package smtp

import (
	"errors"
	"fmt"
	"strings"
)

// Reply is a server's answer. Text holds its lines joined by line feeds,
// without the code.
type Reply struct {
	Code int
	Text string
}

// Enhanced returns the status of RFC 3463 at the beginning of the text, if it
// is there and agrees with the code's class; where they disagree the code is right.
func (r Reply) Enhanced() string {
	word, _, _ := strings.Cut(r.Text, " ")
	word, _, _ = strings.Cut(word, "\n")
	parts := strings.Split(word, ".")
	if len(parts) != 3 || len(word) > 9 {
		return ""
	}
	for _, p := range parts {
		if p == "" || strings.Trim(p, "0123456789") != "" {
			return ""
		}
	}
	if len(parts[0]) != 1 || int(parts[0][0]-'0') != r.Code/100 {
		return ""
	}
	return word
}

// Status is the enhanced status, or the three digits where there is none.
func (r Reply) Status() string {
	if e := r.Enhanced(); e != "" {
		return e
	}
	return fmt.Sprintf("%03d", r.Code)
}

// String is the reply in one line, cut to 300 bytes.
func (r Reply) String() string {
	s := fmt.Sprintf("%03d %s", r.Code, strings.ReplaceAll(r.Text, "\n", " / "))
	return strings.ToValidUTF8(s[:min(len(s), 300)], "?")
}

// ID is the server's own name for the accepted message, as far as its words
// give one: "queued as X" of Postfix and Exim's "id=X", or the one word left
// beside "Ok", as SES writes it; else empty.
func (r Reply) ID() string {
	words := strings.Fields(strings.TrimPrefix(r.Text, r.Enhanced()))
	for i, w := range words {
		if strings.EqualFold(w, "as") && i > 0 && strings.EqualFold(words[i-1], "queued") && i+1 < len(words) {
			return cut(words[i+1])
		}
		if id, ok := strings.CutPrefix(w, "id="); ok {
			return cut(id)
		}
	}
	if len(words) == 2 && strings.EqualFold(strings.TrimSuffix(words[0], ":"), "ok") {
		return cut(words[1])
	}
	return ""
}

func cut(s string) string { return strings.ToValidUTF8(s[:min(len(s), 200)], "?") }

// Stage is how far a message had come.
type Stage string

// The stages, in order.
const (
	StageConnect  Stage = "connect"
	StageGreeting Stage = "greeting"
	StageHello    Stage = "hello"
	StageTLS      Stage = "tls"
	StageAuth     Stage = "auth"
	StageMail     Stage = "mail"
	StageRcpt     Stage = "rcpt"
	StageData     Stage = "data"
	StageBody     Stage = "body" // writing the message
	StageEnd      Stage = "end"  // waiting for the reply to its last line
)

// Error says why a message was not, or not certainly, handed over. Either Reply
// is set, the server's refusal, or Err, what happened to the connection.
type Error struct {
	Stage Stage
	Reply Reply
	Err   error
	// MayBeAccepted: the last line was written and no answer came.
	MayBeAccepted bool
	// Local: refused by us, from what the server had announced.
	Local bool

	broken bool
}

func refused(stage Stage, r Reply) *Error { return &Error{Stage: stage, Reply: r} }

func local(code int, enhanced, text string) *Error {
	return &Error{Stage: StageMail, Reply: Reply{code, enhanced + " " + text}, Local: true}
}

// Error is one line. It may be logged: an address that the server repeats in its
// answer is left out.
func (e *Error) Error() string {
	switch {
	case e.Err != nil && e.MayBeAccepted:
		return fmt.Sprintf("smtp %s: no answer to the last line: %v", e.Stage, e.Err)
	case e.Err != nil:
		return fmt.Sprintf("smtp %s: %v", e.Stage, e.Err)
	}
	words := strings.Fields(e.Reply.String())
	for i, w := range words {
		if strings.Contains(w, "@") {
			words[i] = "(address)"
		}
	}
	return fmt.Sprintf("smtp %s: %s", e.Stage, strings.Join(words, " "))
}

// Unwrap returns what happened to the connection, or nil.
func (e *Error) Unwrap() error { return e.Err }

// Usable reports whether the connection can take another message.
func (e *Error) Usable() bool { return e.Err == nil && !e.broken }

// Verdict is what an attempt that did not end in acceptance means.
type Verdict uint8

// The verdicts.
const (
	// Final: refused for good.
	Final Verdict = iota
	// Temporary: refused for now; another attempt may do.
	Temporary
	// Away: the server refuses or cannot be reached whatever the message is.
	// No recipient has failed and no attempt is used up.
	Away
	// Unknown: asked, and never heard back.
	Unknown
)

// Judge classifies an error of Dial or Send.
func Judge(err error) Verdict {
	var e *Error
	if !errors.As(err, &e) {
		return Away
	}
	if e.MayBeAccepted {
		return Unknown
	}
	switch e.Stage {
	case StageConnect, StageGreeting, StageHello, StageTLS, StageAuth:
		return Away
	}
	switch code := e.Reply.Code; {
	case code == 421 && e.Stage == StageMail,
		// "454 4.7.0 Throttling failure" and missing or wrong credentials are
		// about us, not about whoever the message is for.
		code == 454, code == 530, code == 534, code == 535, code == 538:
		return Away
	case code/100 == 5:
		return Final
	}
	return Temporary // 4xx, or a connection lost before the last line
}
