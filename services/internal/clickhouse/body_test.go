package clickhouse

import (
	"errors"
	"testing"
)

// The transport may go on reading a request's body after the request has failed.
func TestNothingOfTheColumnsIsSentOnceTheInsertIsOver(t *testing.T) {
	c := NewText()
	c.Append("before")
	b := &body{rest: block([]string{"c"}, []Column{c})}
	p := make([]byte, 4)
	if n, err := b.Read(p); n != 4 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	b.end()
	c.Reset()
	c.Append("behind")
	if n, err := b.Read(p); n != 0 || !errors.Is(err, errBodyEnded) {
		t.Errorf("read %d, %v: not an end that would make the body look whole", n, err)
	}
}
