package clickhouse

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// Code returns ClickHouse's number for an error that the server gave, such as 60
// (UNKNOWN_TABLE), wherever it is on the chain.
func Code(err error) (int32, bool) {
	var e *clickhouse.Exception
	if errors.As(err, &e) {
		return e.Code, true
	}
	return 0, false
}

// passing are the server's errors that waiting mends; all others come back the
// same the next time.
func passing(code int32) bool {
	switch code {
	case 159, // TIMEOUT_EXCEEDED
		160, // TOO_SLOW
		164, // READONLY: a replica that is being restored
		202, // TOO_MANY_SIMULTANEOUS_QUERIES
		203, // NO_FREE_CONNECTION
		209, // SOCKET_TIMEOUT
		210, // NETWORK_ERROR
		225, // NO_ZOOKEEPER
		236, // ABORTED: the server is stopping
		241, // MEMORY_LIMIT_EXCEEDED
		242, // TABLE_IS_READ_ONLY
		243, // NOT_ENOUGH_SPACE
		252, // TOO_MANY_PARTS
		279, // ALL_CONNECTION_TRIES_FAILED
		285, // TOO_FEW_LIVE_REPLICAS
		286, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
		319, // UNKNOWN_STATUS_OF_INSERT: insert again
		394, // QUERY_WAS_CANCELLED
		439, // CANNOT_SCHEDULE_TASK
		519, // ALL_REPLICAS_LOST
		999: // KEEPER_EXCEPTION
		return true
	}
	return false
}

// classify wraps an error with what was being done and its class. Our own
// cancellation has no class of the server's: it is returned as ctx's error.
func classify(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
	}
	wrapped := fmt.Errorf("%s: %w", doing, err)
	if errors.Is(err, sql.ErrNoRows) {
		return wrapped
	}
	if code, ok := Code(err); ok {
		if passing(code) {
			return fault.Transient(wrapped)
		}
		return fault.Fatal(wrapped)
	}
	if away(err) {
		return fault.Transient(wrapped)
	}
	return fault.Fatal(wrapped)
}

// away reports whether the server could not be reached, or was lost on the way.
func away(err error) bool {
	var answer *clickhouse.HTTPError
	if errors.As(err, &answer) {
		// Not ClickHouse but what stands before it.
		switch answer.StatusCode {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
	}
	var network net.Error
	return errors.As(err, &network) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, context.DeadlineExceeded) || // the driver's own: ours was looked at first
		errors.Is(err, clickhouse.ErrAcquireConnTimeout) || errors.Is(err, clickhouse.ErrConnectionClosed)
}
