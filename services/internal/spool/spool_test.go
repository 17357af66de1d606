package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

func at(i int) Entry {
	return Entry{Topic: topic.Events, Key: fmt.Sprintf("u%d", i%3), Record: &event.Event{EventID: fmt.Sprint(i), UserID: fmt.Sprintf("u%d", i%3), Name: "x",
		OccurredAt: time.Date(2026, 5, 17, 12, 0, 0, 0, time.UTC), ReceivedAt: time.Date(2026, 5, 17, 12, 0, 1, 0, time.UTC)}}
}

func open(t testing.TB, o Options) *Spool {
	t.Helper()
	if o.MaxBytes == 0 {
		o.MaxBytes = 64 << 20
	}
	s, err := Open(o)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func fill(t testing.TB, s *Spool, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		require.NoError(t, s.Append(t.Context(), at(i)))
	}
}

// ids reads on to the end.
func ids(t testing.TB, s *Spool) (out []string, last Batch) {
	t.Helper()
	for {
		b, err := s.Next()
		if errors.Is(err, ErrEmpty) {
			return out, last
		}
		require.NoError(t, err)
		for _, e := range b.Entries {
			out = append(out, e.Record.(*event.Event).EventID)
		}
		last = b
	}
}

func numbers(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	require.NoError(t, err)
	return found
}

func TestWhatWasAppendedIsReadInOrderAfterAKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, SegmentBytes: 1 << 10, Owner: "a"})
	require.True(t, s.Empty())
	require.False(t, s.Used())
	fill(t, s, 0, 40)
	require.Greater(t, len(segments(t, dir)), 2)
	st := s.Stats()
	require.EqualValues(t, 40, st.Records)
	require.WithinDuration(t, time.Now(), st.Oldest, time.Minute)
	b, err := s.Next()
	require.NoError(t, err)
	require.Equal(t, at(0), b.Entries[0])
	require.NoError(t, s.Advance(b))
	got, _ := ids(t, s)
	require.Equal(t, numbers(1, 40), got)
	s.Rewind()

	// Nothing is closed: as a kill leaves it, but for the lock, which goes with the process.
	require.NoError(t, s.unlock())
	again := open(t, Options{Dir: dir, SegmentBytes: 1 << 10, Owner: "b"})
	require.EqualValues(t, 39, again.Stats().Records)
	fill(t, again, 40, 45)
	got, last := ids(t, again)
	require.Equal(t, numbers(1, 45), got)
	require.NoError(t, again.Advance(last))
	require.True(t, again.Empty())
	require.Zero(t, again.Stats().Bytes)
	require.NoError(t, again.Close())
	require.Empty(t, segments(t, dir), "nobody's records stay longer than they must")

	third := open(t, Options{Dir: dir})
	require.True(t, third.Empty())
	require.True(t, third.Used())
	require.Regexp(t, "^a-", third.Name(), "whoever has it later")
	require.Equal(t, s.Name(), third.Name())
	require.NotEqual(t, s.Name(), open(t, Options{Dir: t.TempDir(), Owner: "a"}).Name())
	fill(t, third, 45, 47)
	got, _ = ids(t, third)
	require.Equal(t, numbers(45, 47), got)
}

func TestClosedIsUnlockedThoughAProcessIsBeingStarted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	inherited, err := syscall.Dup(int(s.lock.Fd()))
	require.NoError(t, err)
	defer syscall.Close(inherited)
	require.NoError(t, s.Close())
	require.NoError(t, open(t, Options{Dir: dir}).Close())
}

func TestWhoWaitsTogetherIsSyncedTogether(t *testing.T) {
	t.Parallel()
	syncs, hold := 0, make(chan struct{})
	s := open(t, Options{Dir: t.TempDir(), sync: func(f *os.File) error {
		if syncs++; syncs == 3 { // that of the segment, that of the first batch
			<-hold
		}
		return f.Sync()
	}})
	fill(t, s, 0, 1)
	var tickets []*Ticket
	for i := 1; i < 1000; i++ {
		e := []Entry{at(i)}
		b, err := Encode(nil, e)
		require.NoError(t, err)
		ticket, err := s.Add(e, b)
		require.NoError(t, err)
		tickets = append(tickets, ticket)
	}
	waiting, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // of two things that are so, select takes any
		require.ErrorIs(t, tickets[0].Wait(waiting), context.Canceled, "before it is synced nobody is told so")
	}
	require.EqualValues(t, 1, s.Stats().Records)
	require.False(t, s.Empty())
	close(hold)
	for _, ticket := range tickets {
		require.NoError(t, ticket.Wait(t.Context()))
	}
	require.LessOrEqual(t, syncs, 5)
	got, _ := ids(t, s)
	require.Equal(t, numbers(0, 1000), got)
}

func TestManyWritersLoseNothing(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Dir: t.TempDir(), SegmentBytes: 4 << 10})
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			for i := range 20 {
				if err := s.Append(t.Context(), at(w*100+i), at(w*100+i+50)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen, drained := map[string]int{}, 0
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for ended := false; ; {
		b, err := s.Next()
		if errors.Is(err, ErrEmpty) {
			if ended {
				break
			}
			select {
			case <-s.Committed():
			case <-done:
				ended = true
			}
			continue
		}
		require.NoError(t, err)
		for _, e := range b.Entries {
			seen[e.Record.(*event.Event).EventID]++
		}
		drained += len(b.Entries)
		require.NoError(t, s.Advance(b))
	}
	require.Len(t, seen, 640)
	require.Equal(t, 640, drained)
	require.True(t, s.Empty())
}

func TestATornEndWasNeverAcknowledgedAndIsSetAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	fill(t, s, 0, 3)
	require.NoError(t, s.Close())
	path := segments(t, dir)[0]
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	h, err := parseHeader(whole)
	require.NoError(t, err)
	size := headerBytes + h.length
	for cut := 1; cut < size; cut += 7 {
		dir := filepath.Join(t.TempDir(), "spool")
		require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Dir(path))))
		name := filepath.Join(dir, filepath.Base(path))
		require.NoError(t, os.Truncate(name, int64(len(whole)-cut)))
		s := open(t, Options{Dir: dir})
		require.EqualValues(t, 2, s.Stats().Records)
		fill(t, s, 7, 8)
		got, _ := ids(t, s)
		require.Equal(t, []string{"0", "1", "7"}, got)
		aside, err := filepath.Glob(name + ".torn-*")
		require.NoError(t, err)
		require.Len(t, aside, 1)
		require.NoError(t, s.Close())
		open(t, Options{Dir: dir}) // and it is in order
	}
}

func TestDamageIsNotPassedOver(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	s := open(t, Options{Dir: base, SegmentBytes: 600})
	fill(t, s, 0, 20)
	require.NoError(t, s.Close())
	files := segments(t, base)
	require.Greater(t, len(files), 2)
	for name, damage := range map[string]func(t *testing.T, files []string){
		"a bit in the first batch of the last segment": func(t *testing.T, files []string) { flip(t, files[len(files)-1], 40) },
		"its length":                        func(t *testing.T, files []string) { flip(t, files[len(files)-1], 4) },
		"a bit of an earlier segment":       func(t *testing.T, files []string) { flip(t, files[0], 40) },
		"the end of an earlier segment":     func(t *testing.T, files []string) { cut(t, files[0]) },
		"a segment that is gone":            func(t *testing.T, files []string) { require.NoError(t, os.Remove(files[1])) },
		"a header of an earlier segment":    func(t *testing.T, files []string) { flip(t, files[0], 0) },
		"the number of records in a header": func(t *testing.T, files []string) { flip(t, files[0], 11) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "spool")
			require.NoError(t, os.CopyFS(dir, os.DirFS(base)))
			damage(t, segments(t, dir))
			s, err := Open(Options{Dir: dir, MaxBytes: 1 << 20})
			for err == nil {
				_, err = s.Next()
			}
			var corrupt *CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Equal(t, dir, filepath.Dir(corrupt.File), "the file is named")
			if s != nil {
				require.NoError(t, s.Close())
			}

			// An operator may decide to do without what is damaged.
			rest := open(t, Options{Dir: dir, Salvage: true})
			left := rest.Stats().Records
			got, last := ids(t, rest)
			require.Len(t, got, int(left))
			require.Less(t, len(got), 20)
			require.GreaterOrEqual(t, len(got), 10)
			require.True(t, slices.IsSortedFunc(got, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }))
			require.NoError(t, rest.Advance(last))
			require.True(t, rest.Empty())
		})
	}
}

func flip(t *testing.T, file string, at int64) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	b[at] ^= 4
	require.NoError(t, os.WriteFile(file, b, 0o600))
}

func cut(t *testing.T, file string) {
	t.Helper()
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(file, info.Size()-1))
}

func TestABoundIsABound(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Dir: t.TempDir(), MaxBytes: 4 << 10, SegmentBytes: 1 << 10})
	kept := 0
	for {
		err := s.Append(t.Context(), at(kept))
		if err != nil {
			require.ErrorIs(t, err, ErrFull)
			break
		}
		kept++
	}
	require.Greater(t, kept, 10)
	require.LessOrEqual(t, s.Stats().Bytes, int64(4<<10))
	got, last := ids(t, s)
	require.Equal(t, numbers(0, kept), got)
	require.NoError(t, s.Advance(last))
	require.Eventually(t, func() bool { return s.Append(t.Context(), at(kept)) == nil }, time.Minute, time.Millisecond, "what is drained makes room")
}

func TestADiskThatFailsIsNeverAnsweredAndMends(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fails := 0
	s := open(t, Options{Dir: dir, sync: func(f *os.File) error {
		if fails > 0 {
			fails--
			return errors.New("no space left")
		}
		return f.Sync()
	}})
	fill(t, s, 0, 3)
	for _, times := range []int{1, 2, 3} { // of the batch; and then of what mends it
		fails = times
		for range times {
			require.ErrorContains(t, s.Append(t.Context(), at(99)), "no space left")
		}
		require.NoError(t, s.Append(t.Context(), at(2+times)))
	}
	got, _ := ids(t, s)
	require.Equal(t, numbers(0, 6), got, "what was refused is not there")
	require.NoError(t, s.Close())
	again := open(t, Options{Dir: dir})
	got, _ = ids(t, again)
	require.Equal(t, numbers(0, 6), got)
}

func TestTwoProcessesNeverUseOneSpool(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, Options{Dir: dir, Label: "a"})
	_, err := Open(Options{Dir: dir, Label: "a"})
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, s.Close())
	_, err = Open(Options{Dir: dir, Label: "b"})
	require.ErrorContains(t, err, `it holds records of "a"`)
	open(t, Options{Dir: dir, Label: "a"})
}

func TestAMarkThatIsDamagedCostsCopiesAndNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	fill(t, s, 0, 5)
	b, err := s.Next()
	require.NoError(t, err)
	require.NoError(t, s.Advance(b))
	require.NoError(t, s.Close())
	flip(t, filepath.Join(dir, "mark"), 0)
	got, _ := ids(t, open(t, Options{Dir: dir}))
	require.Equal(t, numbers(0, 5), got)
}

func TestARecordThatKafkaWouldNotTakeIsNotSpooled(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Dir: t.TempDir()})
	e := at(1)
	e.Key = string(make([]byte, topic.MaxRecordBytes))
	require.ErrorIs(t, s.Append(t.Context(), e), ErrTooLarge)
	require.True(t, s.Empty())
}

// TestKilledWhileItAppends kills a process that appends, again and again: whatever it has said
// to be kept is there, in order.
func TestKilledWhileItAppends(t *testing.T) {
	t.Parallel()
	const variable = "HIKYAKU_SPOOL_CHILD"
	if dir := os.Getenv(variable); dir != "" {
		s := open(t, Options{Dir: dir, SegmentBytes: 8 << 10})
		first := int(s.Stats().Records)
		for i := first; ; i++ {
			require.NoError(t, s.Append(t.Context(), at(i)))
			fmt.Println("kept", i)
		}
	}
	dir := t.TempDir()
	kept := -1
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKilledWhileItAppends$")
		cmd.Env = append(os.Environ(), variable+"="+dir)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		for until := kept + 40; kept < until; {
			var n int
			if _, err := fmt.Fscanf(out, "kept %d\n", &n); err == nil {
				kept = n
			}
		}
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
	s := open(t, Options{Dir: dir, SegmentBytes: 8 << 10})
	got, _ := ids(t, s)
	require.GreaterOrEqual(t, len(got), kept+1)
	require.Equal(t, numbers(0, len(got)), got)
}

func FuzzASegmentOfAnyBytesIsReadOrRefused(f *testing.F) {
	dir := f.TempDir()
	s := open(f, Options{Dir: dir})
	fill(f, s, 0, 3)
	require.NoError(f, s.Close())
	path := segments(f, dir)[0]
	whole, err := os.ReadFile(path)
	require.NoError(f, err)
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte(magic))
	f.Add([]byte{})
	good := map[string]bool{"0": true, "1": true, "2": true}
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Dir: dir})
		var corrupt *CorruptError
		if errors.As(err, &corrupt) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for {
			batch, err := s.Next()
			if errors.Is(err, ErrEmpty) || errors.As(err, &corrupt) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range batch.Entries {
				if ev, ok := e.Record.(*event.Event); !ok || !good[ev.EventID] {
					t.Fatalf("%+v was never appended", e)
				}
			}
		}
	})
}
