package console

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/text/encoding/charmap"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
)

const guestsSpec = `kind: ImportSpec
id: guests
source: {prefix: imports/guests/, format: csv}
user_id: {column: id, trim: true}
profile:
  addresses: {email: {column: mail}}
  consents: {email: {column: ok}}
  attributes: {visits: {column: visits, type: int}, city: {column: city}}
segment: {id: tasters, attributes: {city: {column: city}}}
max_rejects: 50%
`

const guestsCSV = `id,mail,ok,visits,city
same,same@example.test,subscribed,1,Kyoto
new, new@example.test,,2,Nara
same,,,,Kyoto
moved,moved@example.test,,3,Osaka
bad,bad@example.test,,three,Kyoto
bad,bad@example.test,perhaps,3,Kyoto
,nobody@example.test,,3,Kyoto
`

func TestPlanSaysWhatAnImportWouldChange(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	dir := files(t, map[string]string{"guests.yaml": guestsSpec, "guests.csv": guestsCSV})
	s.ok("apply", "-f", filepath.Join(dir, "guests.yaml"))
	s.insert("profile_rows", row{"user_id": "same", "revision": int64(1), "attr_int": map[string]int64{"visits": 1, "more": 2}, "attr_string": map[string]string{"city": "Kyoto"},
		"addresses": map[string]string{"email": "same@example.test"}, "consents": map[string]string{"email": "subscribed"}})
	s.insert("profile_rows", row{"user_id": "moved", "revision": int64(1), "attr_int": map[string]int64{"visits": 3}, "attr_string": map[string]string{"city": "Kyoto"},
		"addresses": map[string]string{"email": "moved@example.test"}})
	s.inSegment("tasters", identity.Hash("an import"), "{}", "same", "leaves")

	plan := s.ok("import", "plan", filepath.Join(dir, "guests.csv"), "--spec", "guests", "--json").one(t)
	require.Equal(t, map[string]any{"listed": 3.0, "new": 1.0, "changed": 1.0, "same": 1.0}, plan["people"])
	require.Equal(t, map[string]any{"segment_id": "tasters", "mode": "replace", "joins": 2.0, "stays": 1.0, "leaves": 1.0}, plan["segment"])
	for name, want := range map[string]float64{"rows": 7, "rejected": 3, "profile_updates": 4, "segment_members": 4, "events": 0} {
		require.Equal(t, want, plan[name], name)
	}
	require.Equal(t, []any{
		map[string]any{"column": "visits", "reason": "not a whole number of 64 bits", "rows": 1.0, "first_line": 6.0},
		map[string]any{"column": "ok", "reason": "the consent is neither subscribed nor unsubscribed", "rows": 1.0, "first_line": 7.0},
		map[string]any{"column": "id", "reason": "the row has no user_id", "rows": 1.0, "first_line": 8.0},
	}, plan["rejected_by"])
	require.Len(t, plan["samples"], 3)

	a := s.ok("import", "plan", filepath.Join(dir, "guests.csv"), "--spec", "guests")
	require.Contains(t, a.out, "guests.csv by guests: 7 rows, 3 rejected; 4 profile updates, 4 segment members, 0 events\n"+
		"3 people: 1 are new, 1 would change, 1 would stay as they are\nsegment tasters (replace): 2 would join, 1 stay, 1 leave\n")
	require.Contains(t, a.out, "line 3: new\n  profile.city = Nara\n  profile.visits = 2\n  member.city = Nara\n  address.email =  new@example.test\n")
}

// A list that adds keeps whom it does not name; one that removes adds nobody.
func TestAPlanCountsTheMembersByWhatTheFileDoesToThem(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	whole, removed := identity.Hash("whole"), identity.Hash("removed")
	for user, imports := range map[string][]identity.ID{"same": {whole}, "leaves": {whole}, "gone": {whole, removed}, "moved": {removed}} {
		for _, id := range imports {
			s.insert("segment_member_rows", row{"segment_id": "tasters", "import_id": id, "user_id": user, "attributes": "{}"})
		}
	}
	s.point("tasters", definitions.Segment{Imports: []identity.ID{whole, removed}, Removes: []identity.ID{removed}})
	dir := files(t, map[string]string{"guests.csv": guestsCSV})
	for mode, want := range map[string]string{
		"replace": "4 profile updates, 4 segment members, 0 events\n3 people: 3 are new, 0 would change, 0 would stay as they are\nsegment tasters (replace): 2 would join, 1 stay, 1 leave\n",
		"add":     "4 profile updates, 4 segment members, 0 events\n3 people: 3 are new, 0 would change, 0 would stay as they are\nsegment tasters (add): 2 would join, 2 stay, 0 leave\n",
		"remove":  "4 profile updates, 4 removals from the segment, 0 events\n3 people: 3 are new, 0 would change, 0 would stay as they are\nsegment tasters (remove): 0 would join, 1 stay, 1 leave\n",
	} {
		spec := filepath.Join(dir, mode+".yaml")
		require.NoError(t, os.WriteFile(spec, []byte(strings.Replace(guestsSpec, "segment: {id: tasters, attributes: {city: {column: city}}}", "segment: {id: tasters, mode: "+mode+"}", 1)), 0o600))
		require.Contains(t, s.ok("import", "plan", filepath.Join(dir, "guests.csv"), "--spec-file", spec).out, want, mode)
	}
}

func TestAPlanNeedsNothingButTheFileAndTheSpec(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write([]byte(guestsCSV))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	dir := files(t, map[string]string{"guests.yaml": guestsSpec, "two.yaml": guestsSpec + "---\n" + "kind: ImportSpec\nid: other\nsource: {prefix: p/, format: csv}\nuser_id: {column: id}\nsegment: {id: x}\n",
		"guests.csv.gz": b.String(), "cut.csv.gz": b.String()[:b.Len()-10], "bad.csv": guestsCSV + "x,x,x\nx,x,x\n", "wrong.csv": "id;mail\n"})
	s := &stage{t: t, env: map[string]string{"KAFKA_BROKERS": "127.0.0.1:1", "CLICKHOUSE_URL": "http://127.0.0.1:1"}}
	at := func(name string) string { return filepath.Join(dir, name) }
	plan := s.ok("import", "plan", at("guests.csv.gz"), "--spec-file", at("guests.yaml"), "--offline", "--json").one(t)
	require.Equal(t, 7.0, plan["rows"])
	require.NotContains(t, plan, "people")
	require.NotContains(t, plan, "segment")

	for name, want := range map[string]string{
		"cut.csv.gz": "the import would fail: the gzip data are cut off", "bad.csv": "the import would fail: 5 of 9 rows were rejected; max_rejects in the import spec allows 50%",
		"wrong.csv": `the import would fail: the header lacks the column "id" that the spec names`,
	} {
		a := s.hikyaku("import", "plan", at(name), "--spec-file", at("guests.yaml"), "--offline")
		require.Equal(t, exitBroken, a.code, name)
		require.Contains(t, a.err, want)
	}
	require.Equal(t, exitUsage, s.hikyaku("import", "plan", at("none.csv"), "--spec-file", at("guests.yaml"), "--offline").code)
	require.Equal(t, exitUsage, s.hikyaku("import", "plan", at("bad.csv"), "--spec", "x", "--spec-file", at("guests.yaml")).code)

	// Without a spec: one is guessed, and what it says can be planned by.
	guessed := s.ok("import", "plan", at("bad.csv")).out
	require.Contains(t, guessed, "id: bad\nsource: {prefix: imports/bad/, format: csv}\nuser_id: {column: id}")
	require.NoError(t, os.WriteFile(at("guessed.yaml"), []byte(guessed), 0o600))
	require.Equal(t, 9.0, s.ok("import", "plan", at("bad.csv"), "--spec-file", at("guessed.yaml"), "--offline", "--json").one(t)["rows"])
	require.Equal(t, guessed, s.ok("import", "plan", at("bad.csv"), "--json").one(t)["spec"])
	require.Equal(t, exitUsage, s.hikyaku("import", "plan", at("none.csv")).code)
	require.Contains(t, s.hikyaku("import", "plan", at("bad.csv"), "--spec-file", at("two.yaml"), "--offline").err, "holds 2 import specs")
}

// The page is what the command says.
func TestThePageBringYourOwnFileIsTrue(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/bring-your-own-file.md")
	require.NoError(t, err)
	blocks := strings.Split(string(page), "```")
	text, err := charmap.Windows1252.NewEncoder().String(strings.TrimPrefix(blocks[1], "\n"))
	require.NoError(t, err)
	dir := files(t, map[string]string{"Guest list 2026.csv": text, "guests.yaml": strings.TrimPrefix(blocks[3], "yaml\n"), "campaign.yaml": ""})
	path := filepath.Join(dir, "Guest list 2026.csv")
	s := newStage(t)
	require.Equal(t, strings.TrimPrefix(blocks[3], "yaml\n"), s.ok("import", "plan", path).out)
	shown := blocks[5][strings.Index(blocks[5], "Guest list 2026.csv by"):strings.Index(blocks[5], "…")]
	require.Contains(t, s.ok("import", "plan", path, "--spec-file", filepath.Join(dir, "guests.yaml")).out, shown)
	for n, block := range blocks {
		if definitions, ok := strings.CutPrefix(block, "yaml\n"); ok {
			file := filepath.Join(dir, "applied.yaml")
			require.NoError(t, os.WriteFile(file, []byte(definitions), 0o600))
			require.NotEmpty(t, s.ok("apply", "-f", file).out, "block %d", n)
		}
	}
}

func TestASegmentFileOfPinpointIsPlannedWithoutASpec(t *testing.T) {
	t.Parallel()
	s := &stage{t: t, env: map[string]string{"KAFKA_BROKERS": "127.0.0.1:1", "CLICKHOUSE_URL": "http://127.0.0.1:1"}}
	for _, name := range []string{"part-0.csv", "part-1.json"} {
		file := filepath.Join("../../examples/pinpoint/tasters", name)
		a := s.ok("import", "plan", file, "--offline", "--json")
		require.Contains(t, a.err, "imported without an import spec")
		plan := a.one(t)
		require.Equal(t, "builtin:pinpoint", plan["spec"])
		require.Equal(t, map[string]any{"rows": 4.0, "rejected": 0.0, "profile_updates": 4.0}, map[string]any{"rows": plan["rows"], "rejected": plan["rejected"], "profile_updates": plan["profile_updates"]}, name)
		require.Contains(t, plan["not_taken"], "EffectiveDate")
		require.Equal(t, plan, s.ok("import", "plan", file, "--offline", "--json", "--spec", "builtin:pinpoint").one(t))
		text := s.ok("import", "plan", file, "--offline").out
		require.Contains(t, text, "nothing is made of: ApplicationId; ")
		require.Equal(t, name == "part-0.csv", strings.Contains(text, "address.email = ben@example.test\n  consent.email = unsubscribed\n"))
	}
	dir := files(t, map[string]string{"none.csv": "id,Address\n1,a@b\n"})
	require.Contains(t, s.ok("import", "plan", filepath.Join(dir, "none.csv")).out, "kind: ImportSpec")
}
