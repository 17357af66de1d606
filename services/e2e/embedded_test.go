package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/deploy/embedded"
	"github.com/hikyaku/hikyaku/deploy/embedded/chdb"
)

// embeddedOptions makes this test's program an embedded stack: ClickHouse is one per
// process, and tests that each have their own may run side by side.
const embeddedOptions = "HIKYAKU_E2E_EMBEDDED"

// serving is what a test must know of an embedded stack.
type serving struct {
	Env                 map[string]string
	S3Folder, OutboxDir string
	NoLibrary, Failed   string // why there is none
}

// startEmbedded starts an embedded stack in a process of its own, which ends with the
// test, or with this process, however that ends.
func startEmbedded(t *testing.T, o embedded.Options) serving {
	t.Helper()
	options, err := json.Marshal(o)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), embeddedOptions+"="+string(options))
	var log bytes.Buffer
	cmd.Stderr = &log
	alive, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, alive.Close())
		require.NoError(t, cmd.Wait(), "the embedded stack ends cleanly:\n%s", &log)
	})
	var e serving
	require.NoError(t, json.NewDecoder(out).Decode(&e))
	if e.NoLibrary != "" {
		t.Skip(e.NoLibrary)
	}
	require.Empty(t, e.Failed)
	return e
}

// runEmbedded is that process: it serves until its input ends.
func runEmbedded(options string) int {
	say := func(e serving) { _ = json.NewEncoder(os.Stdout).Encode(e) }
	var o embedded.Options
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		say(serving{Failed: err.Error()})
		return 0
	}
	e, err := embedded.Start(context.Background(), o)
	switch {
	case errors.Is(err, chdb.ErrNoLibrary):
		say(serving{NoLibrary: err.Error()})
		return 0
	case err != nil:
		say(serving{Failed: err.Error()})
		return 0
	}
	say(serving{Env: e.Env(), S3Folder: e.S3Folder, OutboxDir: e.OutboxDir})
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := e.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
