package collector

import (
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheConnectionAtRestForLongestIsClosed(t *testing.T) {
	t.Parallel()
	c := newConns(2)
	var ours, theirs [4]net.Conn
	for i := range ours {
		ours[i], theirs[i] = net.Pipe()
	}
	closed := func() (out [4]bool) {
		for i := range theirs {
			_ = ours[i].SetReadDeadline(time.Unix(1, 0)) // which a closed pipe refuses
			_, err := ours[i].Read(make([]byte, 1))
			out[i] = !errors.Is(err, os.ErrDeadlineExceeded)
		}
		return out
	}
	c.changed(theirs[0], http.StateNew)
	c.changed(theirs[1], http.StateNew)
	c.changed(theirs[0], http.StateActive)
	require.Equal(t, [4]bool{}, closed())
	c.changed(theirs[2], http.StateNew)
	require.Equal(t, [4]bool{1: true}, closed(), "one begins a request, the other said nothing")
	c.changed(theirs[1], http.StateClosed)
	c.changed(theirs[2], http.StateClosed)
	c.changed(theirs[3], http.StateNew)
	require.Equal(t, [4]bool{1: true}, closed())
	require.Len(t, c.open, 2)
	require.Equal(t, 2, c.rest.Len())
}
