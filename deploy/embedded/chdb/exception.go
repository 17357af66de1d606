package chdb

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// Exception is an error of the engine, in ClickHouse's own words.
type Exception struct {
	Code int    // ClickHouse's error code, such as 60 for an unknown table
	Text string // Code: 60. DB::Exception: … (UNKNOWN_TABLE)
}

func (e *Exception) Error() string { return e.Text }

const (
	codeSyntax         = 62
	codeNotImplemented = 48
	codeReadonly       = 164
	codeUnknown        = 1002
	codeBadArguments   = 36
	codeTooLarge       = 62 // "Max query size exceeded" is a syntax error in ClickHouse too
)

var exceptionStart = regexp.MustCompile(`Code: (\d+)\. DB::[A-Za-z]*Exception`)

func parseException(text string) *Exception {
	m := exceptionStart.FindStringSubmatchIndex(text)
	if m == nil {
		return &Exception{Code: codeUnknown, Text: "Code: 1002. DB::Exception: " + strings.TrimSpace(text) + ". (UNKNOWN_EXCEPTION)"}
	}
	code, err := strconv.Atoi(text[m[2]:m[3]])
	if err != nil {
		code = codeUnknown
	}
	return &Exception{Code: code, Text: strings.TrimSpace(text[m[0]:])}
}

func exception(code int, name, text string) *Exception {
	return &Exception{Code: code, Text: "Code: " + strconv.Itoa(code) + ". DB::Exception: " + text + ". (" + name + ")"}
}

// status is the HTTP status a ClickHouse server gives for the code; 500 where it has no better one.
func (e *Exception) status() int {
	switch e.Code {
	case 26, 27, 28, 33, 36, 38, 41, 42, 43, 53, 62, 69, 70, 72, 117, 131, 190, 457:
		return http.StatusBadRequest
	case 46, 47, 50, 56, 60, 73, 81, 115:
		return http.StatusNotFound
	case codeNotImplemented:
		return http.StatusNotImplemented
	case 159:
		return http.StatusRequestTimeout
	}
	return http.StatusInternalServerError
}
