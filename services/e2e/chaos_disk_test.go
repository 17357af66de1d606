package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// smallDisk is a file system of its own of so many MiB.
func smallDisk(t *testing.T, mebibytes int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mebibytes)); err != nil {
		t.Skipf("a small disk cannot be mounted here, which takes root: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, 0)) })
	return dir
}

// fill writes a file until nothing more fits; removing it makes room.
func fill(t *testing.T, dir string) (filler string) {
	t.Helper()
	filler = filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	require.NoError(t, err)
	defer f.Close()
	for block := make([]byte, 64<<10); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else {
			require.NoError(t, err)
		}
	}
	return filler
}

// child is a member that is a process of its own, for tests that end it.
func (s *stack) child(service string, instance int, env ...string) *member {
	t := s.t
	t.Helper()
	dir, err := programs()
	require.NoError(t, err)
	m := &member{s: s, name: fmt.Sprintf("%s-%d", service, instance), telemetry: freeAddr(t)}
	m.supervise(5*time.Second, func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, filepath.Join(dir, service))
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = 15 * time.Second
		cmd.Stderr = io.Writer(m)
		for k, v := range s.env {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
		cmd.Env = append(append(cmd.Env, fmt.Sprintf("INSTANCE=%d", instance), "TELEMETRY_ADDR="+m.telemetry, "LOG_LEVEL=info"), env...)
		return cmd.Run()
	})
	return m
}

// A resolver whose disk is full ends, is started again, says what it waits for,
// and goes on when there is room: what it could not store is in Kafka.
func TestADiskThatIsFullLosesNothing(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t, 128)
	s := startStack(t)
	s.provision()
	all := map[string]*member{}
	for _, service := range serviceNames {
		if service != topic.Resolver {
			all[service] = s.member(service, 0)
		}
	}
	all[topic.Resolver] = s.child(topic.Resolver, 0, "HIKYAKU_DATA="+disk)
	s.saysWell(everybody(all)...)
	s.define("")
	people := makePopulation(500)

	filler := fill(t, disk)
	require.NoError(t, os.MkdirAll(filepath.Join(s.folder, "imports", "people"), 0o755))
	// Enough that the store must write it down.
	rows := people.rows
	for _, row := range children(5000) {
		row[3] = strings.Repeat(row[3]+" ", 400)
		rows = append(rows, row)
	}
	s.write("list.csv", rows)
	s.eventually("the resolver ends", func() bool { return len(all[topic.Resolver].ended()) > 0 })
	s.saysSoon([]string{"audience-resolver-0, person store, since", "no space left on device"}, everybody(all)...)
	s.whileAway(outage(t, time.Second), func() {})
	for _, err := range all[topic.Resolver].ended() {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 1, exit.ExitCode(), "a restart is what helps")
	}
	require.NotZero(t, all[topic.Resolver].lines("level=ERROR", "no space left on device"))
	require.NoError(t, os.Remove(filler))

	s.imported("list.csv", len(rows))
	s.requireBalance(people, s.run("greeting"))
	s.requireOneMailEach(people.accepted())
	s.saysWell(everybody(all)...)
	ended := len(all[topic.Resolver].ended())
	require.NotZero(t, all[topic.Resolver].lines("component is ready again", `component="person store"`))
	require.Less(t, ended, 20)
}
