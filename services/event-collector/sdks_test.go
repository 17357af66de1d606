package collector

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

func TestLibrariesOfOthersWorkWithTheHostChanged(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("testdata", "sdks")
	for _, library := range []string{"@segment/analytics-node", "@rudderstack/rudder-sdk-node"} {
		if _, err := os.Stat(filepath.Join(dir, "node_modules", library)); err != nil {
			t.Skipf("%s is not installed: npm ci --prefix services/event-collector/testdata/sdks", library)
		}
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("node is not installed; Segment's library needs 20 or later")
	}
	s := startIntake(t, nil).started()
	cmd := exec.CommandContext(t.Context(), node, "send.js", s.base, "k1")
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	began := time.Now()
	out, err := cmd.Output()
	require.NoError(t, err)
	require.JSONEq(t, `{"failed":[]}`, string(out))

	type seen struct{ Name, Properties string }
	events := map[string][]seen{}
	ended := time.Now()
	for _, r := range s.All(t, topic.Events) {
		var e event.Event
		s.Decode(t, r, &e)
		require.NotEmpty(t, e.EventID)
		require.Equal(t, "api:web", e.Source)
		properties := map[string]event.Value{}
		for _, p := range e.Properties {
			properties[p.Name] = p.Value
		}
		text, err := json.Marshal(properties)
		require.NoError(t, err)
		events[e.UserID] = append(events[e.UserID], seen{e.Name, string(text)})
		at := e.OccurredAt
		if e.Name == "Order Completed" {
			at = at.Add(time.Minute)
		}
		// Their clock is this machine's; they tell it to the millisecond, twice.
		require.False(t, at.Before(began.Add(-time.Second)) || at.After(ended), "%s at %s", e.Name, e.OccurredAt)
	}
	require.ElementsMatch(t, []seen{
		{"Order Completed", `{"gift":true,"items":[{"n":1,"sku":"tea"}],"note":"飛脚 \"quoted\"\n","total":30.5}`}, {"page", `{"category":"Shop","name":"Home","url":"https://shop.example/"}`},
		{"screen", `{"name":"Cart"}`}, {"group", `{"employees":12,"group_id":"acme"}`},
	}, events["segment"])
	require.ElementsMatch(t, []seen{
		{"Order Completed", `{"total":7}`}, {"page", `{"name":"Home","url":"https://shop.example/"}`}, {"screen", `{"name":"Cart"}`}, {"group", `{"employees":12,"group_id":"acme"}`},
	}, events["rudderstack"])
	for _, library := range []string{"segment", "rudderstack"} {
		require.Equal(t, []seen{{"Looked", "{}"}}, events[library+"-anonymous"])
	}

	plans, accounts := map[string]string{}, map[string]string{}
	for _, r := range s.All(t, topic.ProfileUpdates) {
		var p event.ProfilePatch
		if s.Decode(t, r, &p); p.AccountID != nil {
			accounts[p.UserID] = *p.AccountID
		}
		if plan, ok := event.Lookup(p.Set, "plan"); ok {
			plans[p.UserID] = plan.Text()
			require.Equal(t, []event.AddressPatch{{Channel: "email", Address: p.UserID + "@example.test"}}, p.Addresses)
		}
	}
	require.Equal(t, map[string]string{"segment": "gold", "rudderstack": "silver"}, plans)
	require.Equal(t, map[string]string{"segment": "acme", "rudderstack": "acme"}, accounts)

	parked := map[string]string{}
	for _, r := range s.All(t, topic.DeadLetters(topic.Collector)) {
		var d event.DeadLetter
		s.Decode(t, r, &d)
		parked[d.UserID] = d.Reason
	}
	require.Len(t, parked, 2)
	for _, reason := range parked {
		require.Contains(t, reason, "alias is not taken in")
	}
}
