package sender

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"

	"github.com/hikyaku/hikyaku/services/sender/internal/smtp"
)

func TestBeforeCall(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { x := now.Add(d); return &x }
	for _, c := range []struct {
		name string
		m    event.Message
		stop string
		want decision
	}{
		{"due", event.Message{ExpiresAt: *at(time.Second)}, "", decision{}},
		{"without expiry", event.Message{}, "", decision{}},
		{"expires now", event.Message{ExpiresAt: now}, "", decision{outcome: "expired", reason: "expired"}},
		{"not yet", event.Message{ExpiresAt: *at(time.Hour), NotBefore: at(time.Second)}, "", decision{wait: true}},
		{"due now", event.Message{NotBefore: at(0)}, "", decision{}},
		{"expired before it is due", event.Message{ExpiresAt: *at(-1), NotBefore: at(time.Second)}, "", decision{outcome: "expired", reason: "expired"}},
		{"cancelled before it is due", event.Message{NotBefore: at(time.Second)}, "run_cancelled", decision{outcome: "cancelled", reason: "run_cancelled"}},
		{"cancelled and expired", event.Message{ExpiresAt: *at(-1)}, "unsubscribed", decision{outcome: "cancelled", reason: "unsubscribed"}},
	} {
		require.Equal(t, c.want, beforeCall(&c.m, c.stop, now), c.name)
	}
}

func TestAfterCall(t *testing.T) {
	t.Parallel()
	out := &output{attempts: 3}
	lost := &smtp.Error{Stage: smtp.StageRcpt, Err: errors.New("reset")}
	silent := &smtp.Error{Stage: smtp.StageEnd, Err: errors.New("timeout"), MayBeAccepted: true}
	reply := func(stage smtp.Stage, code int, text string) error {
		return &smtp.Error{Stage: stage, Reply: smtp.Reply{Code: code, Text: text}}
	}
	for _, c := range []struct {
		name    string
		policy  string
		attempt int32
		err     error
		want    decision // without detail
	}{
		{"accepted", "", 1, nil, decision{outcome: "accepted", id: "X"}},
		{"refused", "", 1, reply(smtp.StageRcpt, 550, "5.1.1 no"), decision{outcome: "failed", reason: "5.1.1", refused: true}},
		{"later", "", 1, reply(smtp.StageEnd, 451, "no"), decision{outcome: "deferred", reason: "451", retry: true}},
		{"later, last attempt", "", 3, reply(smtp.StageEnd, 451, "no"), decision{outcome: "failed", reason: "retries_exhausted"}},
		{"lost before the message", "", 2, lost, decision{outcome: "deferred", reason: "connection_lost", retry: true}},
		{"silent", "at_most_once", 1, silent, decision{outcome: "uncertain", reason: "no_answer"}},
		{"silent, unknown policy", "?", 1, silent, decision{outcome: "uncertain", reason: "no_answer"}},
		{"silent, at least once", "at_least_once", 1, silent, decision{outcome: "deferred", reason: "no_answer", retry: true, unanswered: true}},
		{"silent, at least once, last attempt", "at_least_once", 3, silent, decision{outcome: "uncertain", reason: "no_answer"}},
		{"away", "", 1, &smtp.Error{Stage: smtp.StageConnect, Err: errors.New("refused")}, decision{away: true}},
		{"throttled", "", 1, reply(smtp.StageEnd, 454, "4.7.0 slow down"), decision{away: true}},
		{"not from smtp", "", 1, errors.New("?"), decision{away: true}},
	} {
		got := out.afterCall(&event.Message{Policy: c.policy, Attempt: c.attempt}, smtp.Reply{Code: 250, Text: "Ok X"}, c.err)
		got.detail = ""
		require.Equal(t, c.want, got, c.name)
	}
}

func TestPauseDoublesWithinAQuarterAndIsDerived(t *testing.T) {
	t.Parallel()
	spread := map[time.Duration]bool{}
	for i := range 200 {
		id := identity.Hash(string(rune(i)))
		for attempt, want := range map[int32]time.Duration{1: 30 * time.Second, 2: time.Minute, 4: 4 * time.Minute, 30: time.Hour} {
			got := pause(30*time.Second, id, attempt)
			require.GreaterOrEqual(t, got, want*3/4)
			require.Less(t, got, want*5/4)
			require.Equal(t, got, pause(30*time.Second, id, attempt))
		}
		spread[pause(30*time.Second, id, 1)] = true
	}
	require.Greater(t, len(spread), 190)
}
