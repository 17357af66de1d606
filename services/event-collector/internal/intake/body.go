package intake

import (
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/bodies"
)

// Sizes of what is accepted, as Segment's. A batch is measured after it was
// unpacked.
const (
	MaxEventBytes = 32 << 10
	MaxBatchBytes = 500 << 10
)

// refusal is why a whole request is not looked at.
type refusal struct {
	status int
	Problem
	// after is when to come again, if that may help.
	after time.Duration
}

func (r *refusal) Error() string { return r.Reason }

func refuse(status int, code, reason string) *refusal {
	return &refusal{status: status, Problem: Problem{Code: code, Reason: reason}}
}

func busy(reason string) *refusal {
	r := refuse(http.StatusServiceUnavailable, "busy", reason)
	r.after = 5 * time.Second
	return r
}

// buffers are for bodies. A request has one only while it reads: what is kept is a copy
// of the body's own size.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// unpackers are 40 KiB each.
var unpackers sync.Pool

// readBody reads at most limit bytes, unpacked if need be.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request, limit int64, held *bodies.Body) (string, *refusal) {
	if r.ContentLength > limit {
		return "", tooLarge(limit)
	}
	packed := false
	switch encoding := r.Header.Get("Content-Encoding"); {
	case encoding == "", strings.EqualFold(encoding, "identity"):
	case strings.EqualFold(encoding, "gzip"):
		packed = true
	default:
		return "", refuse(http.StatusUnsupportedMediaType, "encoding", "the body's encoding is not gzip or identity")
	}
	return h.read(w, r, limit, packed, held)
}

func tooLarge(limit int64) *refusal {
	return refuse(http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the body is larger than %d bytes", limit))
}

func (h *Handler) read(w http.ResponseWriter, r *http.Request, limit int64, packed bool, held *bodies.Body) (string, *refusal) {
	from := io.Reader(r.Body)
	if r.ContentLength < 0 {
		from = http.MaxBytesReader(w, r.Body, limit) // which also ends the connection
	}
	if packed {
		z, _ := unpackers.Get().(*gzip.Reader)
		if z == nil {
			z = new(gzip.Reader)
		}
		defer unpackers.Put(z)
		if err := z.Reset(from); err != nil {
			return "", broken(err, limit)
		}
		from = z
	}
	kept := buffers.Get().(*[]byte)
	b := (*kept)[:0]
	defer func() { *kept = b[:0]; buffers.Put(kept) }()
	for {
		if int64(cap(b))-int64(len(b)) < 512 {
			grown := make([]byte, len(b), min(max(2*cap(b), 4<<10), int(limit)+512+1))
			copy(grown, b)
			b = grown
		}
		n, err := from.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		// One byte more than the limit tells a body that is too large from one that
		// is not, however well it was packed.
		if int64(len(b)) > limit {
			return "", tooLarge(limit)
		}
		if n > 0 && !held.Take(r.Context(), int64(n), h.AckTimeout/2) {
			return "", busy("too much is being taken in; try again")
		}
		if errors.Is(err, io.EOF) {
			return string(b), nil
		}
		if err != nil {
			return "", broken(err, limit)
		}
	}
}

func broken(err error, limit int64) *refusal {
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return tooLarge(limit)
	}
	if damaged := flate.CorruptInputError(0); errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.As(err, &damaged) {
		return refuse(http.StatusBadRequest, "encoding", "the body is not gzip, as Content-Encoding says, or something follows it")
	}
	return refuse(http.StatusBadRequest, "body", "the body could not be read to its end")
}
