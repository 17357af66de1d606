package state_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/state"
)

func open(t *testing.T, dir string) *state.Store {
	t.Helper()
	s, err := state.Open(dir, 8<<20, func(err error) { panic(err) })
	require.NoError(t, err)
	return s
}

func change(partition int32, offset int64, key, value string) state.Change {
	c := state.Change{Topic: topic.Profiles, Partition: partition, Offset: offset, Key: []byte(key)}
	if value != "" {
		c.Value = []byte(value)
	}
	return c
}

func get(t *testing.T, s *state.Store, partition int32, key string) string {
	t.Helper()
	v, err := s.Get(topic.Profiles, partition, []byte(key))
	require.NoError(t, err)
	return string(v)
}

// Records and marks move together and survive a restart.
func TestStoreFollowsTheChangelog(t *testing.T) {
	t.Parallel()
	dir, now := t.TempDir(), time.Now().UTC().Truncate(time.Microsecond)
	s := open(t, dir)
	require.NoError(t, s.Apply([]state.Change{change(3, 10, "alice", "1"), change(3, 11, "bob", "1"), change(3, 12, "alice", "2"), change(7, 5, "carol", "1"), change(3, 13, "bob", "")}, now))
	require.NoError(t, s.Close())

	s = open(t, dir)
	defer s.Close()
	require.Equal(t, "2", get(t, s, 3, "alice"))
	require.Empty(t, get(t, s, 3, "bob"), "a tombstone removes")
	require.Empty(t, get(t, s, 7, "alice"), "partitions are apart")
	m, err := s.Mark(topic.Profiles, 3)
	require.NoError(t, err)
	require.Equal(t, state.Mark{Offset: 14, WrittenAt: now}, m)
	m, err = s.Mark(topic.PersonState, 3)
	require.NoError(t, err)
	require.Zero(t, m)
	require.NoError(t, s.Advance(topic.Profiles, 3, 20, now))
	m, err = s.Mark(topic.Profiles, 3)
	require.NoError(t, err)
	require.EqualValues(t, 20, m.Offset)
}

func TestForgettingOnePartitionLeavesTheOthers(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	defer s.Close()
	for p := range int32(4) {
		for i := range 100 {
			require.NoError(t, s.Apply([]state.Change{change(p, int64(i), fmt.Sprint(i), "x")}, time.Now()))
		}
	}
	require.NoError(t, s.Forget(2))
	for p := range int32(4) {
		want := "x"
		if p == 2 {
			want = ""
		}
		require.Equal(t, want, get(t, s, p, "42"))
		m, err := s.Mark(topic.Profiles, p)
		require.NoError(t, err)
		require.Equal(t, p == 2, m == state.Mark{})
	}
}
