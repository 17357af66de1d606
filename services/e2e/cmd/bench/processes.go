package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// place is where a benchmark works: the programs are in bin, dir is its own.
type place struct {
	root, bin, dir string
	children       *children
}

// newPlace builds all programs, and the tests that are given as binary and package.
func newPlace(ctx context.Context, root string, tests map[string]string) (*place, error) {
	p := &place{root: root, bin: filepath.Join(root, "bin")}
	if err := buildAll(ctx, root, p.bin); err != nil {
		return nil, err
	}
	for name, pkg := range tests {
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(p.bin, name), pkg)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("building: %w\n%s", err, out)
		}
	}
	var err error
	if p.dir, err = os.MkdirTemp("", "hikyaku-bench-"); err != nil {
		return nil, err
	}
	p.children = &children{dir: p.dir, env: map[string]string{}}
	return p, nil
}

// leave ends what runs, and removes the directory unless it is to be kept.
func (p *place) leave(keep bool) {
	p.children.stop()
	if keep {
		fmt.Fprintln(os.Stderr, "working directory:", p.dir)
		return
	}
	os.RemoveAll(p.dir)
}

// profilesIn makes the directory that profiles are asked for in, if they are.
func profilesIn(dir string) (string, error) {
	if dir == "" {
		return "", nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// child is one program under measurement.
type child struct {
	name  string
	kind  string // the program's part in the pipeline, the same for all instances
	cmd   *exec.Cmd
	log   *os.File
	ended chan struct{}
	used  cpu
}

// children are all of them; they die with this process.
type children struct {
	dir  string
	env  map[string]string
	mu   sync.Mutex
	list []*child
}

// start runs a program. Its name is its kind, and with several of a kind a dash
// and a number.
func (c *children) start(name, program string, env map[string]string, args ...string) (*child, error) {
	log, err := os.Create(filepath.Join(c.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, log, log
	cmd.Env = os.Environ()
	for _, m := range []map[string]string{c.env, env} {
		for k, v := range m {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p := &child{name: name, kind: filepath.Base(program), cmd: cmd, log: log, ended: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.ended) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, p)
	return p, nil
}

// run runs one of our programs to its end and returns what it printed.
func (c *children) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = c.dir, os.Environ()
	for k, v := range c.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return append(out, errs.Bytes()...), err
	}
	return out, nil
}

// startStack starts the embedded stack without the parts that elsewhere names by their
// variables, and returns the address of each part, and of its profiles as "embedded".
func (c *children) startStack(ctx context.Context, bin, data string, elsewhere map[string]string) (map[string]string, error) {
	addr := map[string]string{}
	for _, name := range []string{"kafka", "registry", "clickhouse", "s3", "embedded"} {
		a, err := freeAddr()
		if err != nil {
			return nil, err
		}
		addr[name] = a
	}
	stack, err := c.start("embedded", filepath.Join(bin, "embedded"), elsewhere,
		"-data", data, "-kafka", addr["kafka"], "-registry", addr["registry"], "-clickhouse", addr["clickhouse"], "-s3", addr["s3"], "-profiles", addr["embedded"])
	if err != nil {
		return nil, err
	}
	return addr, c.await(ctx, "the embedded stack", 2*time.Minute, func() bool {
		log, _ := os.ReadFile(stack.log.Name())
		return bytes.Contains(log, []byte("\nready"))
	})
}

// stop ends all, the last started first.
func (c *children) stop() {
	for i := len(c.list) - 1; i >= 0; i-- {
		c.end(c.list[i])
	}
}

func (c *children) end(p *child) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	p.log.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = slices.DeleteFunc(c.list, func(o *child) bool { return o == p })
}

// dead names a program that has ended before its time, with its last words.
func (c *children) dead() error {
	for _, p := range c.list {
		select {
		case <-p.ended:
			log, _ := os.ReadFile(p.log.Name())
			return fmt.Errorf("%s has ended: %s", p.name, bytes.TrimSpace(log[max(0, len(log)-600):]))
		default:
		}
	}
	return nil
}

// await waits until done, or until a program dies.
func (c *children) await(ctx context.Context, what string, limit time.Duration, done func() bool) error {
	for end := time.Now().Add(limit); !done(); {
		if err := c.dead(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("waited %s for %s", limit, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// cpu is what a process has used.
type cpu struct{ user, system time.Duration }

func (c cpu) since(before cpu) cpu { return cpu{c.user - before.user, c.system - before.system} }

func cpuTime(pid int) cpu {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return cpu{}
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return cpu{}
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	const tick = time.Second / 100 // USER_HZ on every Linux that Go runs on
	return cpu{time.Duration(user) * tick, time.Duration(system) * tick}
}

// rssMiB is what a process holds in memory, mapped files included.
func rssMiB(pid int) float64 { return statusMiB(pid, "VmRSS:") }

// peakMiB is the most that it has held since it began.
func peakMiB(pid int) float64 { return statusMiB(pid, "VmHWM:") }

func statusMiB(pid int, field string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(status), "\n") {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024
		}
	}
	return 0
}

// watchMemory follows the sum of all processes' memory until stop is called,
// which returns its peak and that of each kind.
func (c *children) watchMemory() (stop func() (peak float64, each map[string]float64)) {
	var peak float64
	each := map[string]float64{}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			sum, kinds := 0.0, map[string]float64{}
			c.mu.Lock()
			list := c.list
			c.mu.Unlock()
			for _, p := range list {
				m := rssMiB(p.cmd.Process.Pid)
				kinds[p.kind] += m
				sum += m
			}
			for kind, m := range kinds {
				each[kind] = max(each[kind], m)
			}
			peak = max(peak, sum)
			select {
			case <-quit:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() (float64, map[string]float64) { close(quit); <-done; return peak, each }
}

// freeAddr is an address nobody listens on, below the ports that systems give to
// whoever connects: it is still free when the program that is told to use it does.
func freeAddr() (string, error) {
	const first, last = 20_000, 32_000
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+rand.IntN(last-first)))); err == nil {
			defer l.Close()
			return l.Addr().String(), nil
		}
	}
	return "", err
}
