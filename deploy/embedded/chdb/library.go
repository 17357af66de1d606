package chdb

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
)

// ErrNoLibrary says that libchdb.so is not on this machine; the error that wraps it says what to run.
var ErrNoLibrary = errors.New("libchdb.so not found")

// libraryVersion is the release pinned in package.json; the engine's own version() has the same first two numbers.
const libraryVersion = "26.5.3"

// library holds the entry points of libchdb.so. A connection is a pointer to a handle, and every call takes the handle itself;
// both are C memory, never moved and never seen by the garbage collector.
type library struct {
	connect        func(argc int32, argv *unsafe.Pointer) *unsafe.Pointer
	closeConn      func(conn *unsafe.Pointer)
	query          func(conn unsafe.Pointer, q *byte, qlen uintptr, f *byte, flen uintptr, names *unsafe.Pointer, nlens *uintptr, vals *unsafe.Pointer, vlens *uintptr, n uintptr) unsafe.Pointer
	stream         func(conn unsafe.Pointer, q *byte, qlen uintptr, f *byte, flen uintptr, names *unsafe.Pointer, nlens *uintptr, vals *unsafe.Pointer, vlens *uintptr, n uintptr) unsafe.Pointer
	fetch          func(conn, stream unsafe.Pointer) unsafe.Pointer
	cancel         func(conn, stream unsafe.Pointer)
	destroy        func(result unsafe.Pointer)
	buffer         func(result unsafe.Pointer) unsafe.Pointer
	length         func(result unsafe.Pointer) uintptr
	rowsRead       func(result unsafe.Pointer) uint64
	storageRows    func(result unsafe.Pointer) uint64
	storageBytes   func(result unsafe.Pointer) uint64
	rowsWritten    func(result unsafe.Pointer) uint64
	bytesWritten   func(result unsafe.Pointer) uint64
	errorText      func(result unsafe.Pointer) string
	signalHandlers func(enabled int32)

	sigaction func(signal int32, act, old unsafe.Pointer) int32
}

// loadLibrary maps libchdb.so into the process, where it stays: the engine cannot be unloaded.
var loadLibrary = sync.OnceValues(func() (*library, error) {
	path, err := findLibrary()
	if err != nil {
		return nil, err
	}
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("loading %s: %w", path, err)
	}
	l := &library{}
	for name, fn := range map[string]any{
		"chdb_connect":                     &l.connect,
		"chdb_close_conn":                  &l.closeConn,
		"chdb_query_with_params_n":         &l.query,
		"chdb_stream_query_with_params_n":  &l.stream,
		"chdb_stream_fetch_result":         &l.fetch,
		"chdb_stream_cancel_query":         &l.cancel,
		"chdb_destroy_query_result":        &l.destroy,
		"chdb_result_buffer":               &l.buffer,
		"chdb_result_length":               &l.length,
		"chdb_result_rows_read":            &l.rowsRead,
		"chdb_result_storage_rows_read":    &l.storageRows,
		"chdb_result_storage_bytes_read":   &l.storageBytes,
		"chdb_result_rows_written":         &l.rowsWritten,
		"chdb_result_bytes_written":        &l.bytesWritten,
		"chdb_result_error":                &l.errorText,
		"chdb_set_signal_handlers_enabled": &l.signalHandlers,
		"sigaction":                        &l.sigaction, // libc's, which libchdb.so is linked with
	} {
		symbol, err := purego.Dlsym(handle, name)
		if err != nil {
			return nil, fmt.Errorf("%s lacks %s (wanted version %s): %w", path, name, libraryVersion, err)
		}
		purego.RegisterFunc(fn, symbol)
	}
	return l, nil
})

// boot makes the first connection, with which the engine starts, and leaves the signal handlers as they were. The engine would put its
// own in place of those with which Go turns a nil dereference into a panic; told not to, it sets them to their default instead, at
// that moment and in every further connect. So it is told so for its start only, the handlers are put back, and from then on, with its
// handlers allowed again but nothing left that installs them, connections touch none.
func (l *library) boot(argc int32, argv *unsafe.Pointer) *unsafe.Pointer {
	// Fatal faults, stops and traces: what the engine names; the others because nobody promises that the list stays.
	signals := []syscall.Signal{syscall.SIGABRT, syscall.SIGSEGV, syscall.SIGILL, syscall.SIGBUS, syscall.SIGSYS, syscall.SIGFPE,
		syscall.SIGTSTP, syscall.SIGTRAP, syscall.SIGPIPE, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGURG, syscall.SIGPROF}
	saved := make([][sigactionBytes]byte, len(signals))
	for i, s := range signals {
		l.sigaction(int32(s), nil, unsafe.Pointer(&saved[i]))
	}
	l.signalHandlers(0)
	conn := l.connect(argc, argv)
	l.signalHandlers(1)
	for i, s := range signals {
		l.sigaction(int32(s), unsafe.Pointer(&saved[i]), nil)
	}
	return conn
}

// sigactionBytes is larger than struct sigaction anywhere (152 bytes in glibc); its content is only carried.
const sigactionBytes = 256

// findLibrary returns the path of libchdb.so: LIBCHDB_PATH, else the npm package below deploy/embedded/chdb of the checkout that
// holds the working directory, else of the one that holds the executable.
func findLibrary() (string, error) {
	if path := os.Getenv("LIBCHDB_PATH"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%w: LIBCHDB_PATH: %w", ErrNoLibrary, err)
		}
		return path, nil
	}
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		starts = append(starts, filepath.Dir(exe))
	}
	for _, start := range starts {
		root, ok := checkout(start)
		if !ok {
			continue
		}
		path := filepath.Join(root, "deploy", "embedded", "chdb", "node_modules", "@chdb", "lib-"+platform(), "libchdb.so")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("looking for libchdb.so: %w", err)
		}
	}
	return "", fmt.Errorf("%w for %s: run `npm ci --prefix deploy/embedded/chdb` at the root of the checkout, or set LIBCHDB_PATH", ErrNoLibrary, platform())
}

// checkout walks up from dir to the directory that holds go.work.
func checkout(dir string) (string, bool) {
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}

// platform is the suffix of the npm package for this machine.
func platform() string {
	arch := runtime.GOARCH
	if arch == "amd64" {
		arch = "x64"
	}
	if runtime.GOOS == "linux" {
		return "linux-" + arch + "-gnu"
	}
	return runtime.GOOS + "-" + arch
}
