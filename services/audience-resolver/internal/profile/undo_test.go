package profile_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/hikyaku/hikyaku/schemas/event"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/profile"
)

// person is a profile with what is remembered of it, kept as the person loop
// keeps them: as bytes.
type person struct {
	t interface {
		require.TestingT
		Helper()
	}
	profile event.Profile
	state   event.PersonState
	reads   int // of the state
}

func (p *person) store() {
	p.t.Helper()
	var profile event.Profile
	require.NoError(p.t, profile.DecodeAvro(p.profile.AppendAvro(nil)))
	var state event.PersonState
	require.NoError(p.t, state.DecodeAvro(p.state.AppendAvro(nil)))
	p.profile, p.state = profile, state
}

func (p *person) patch(patches ...*event.ProfilePatch) {
	p.t.Helper()
	for _, q := range patches {
		p.store() // what is changed shares nothing with what a test has put by
		c := profile.Apply(&p.profile, q)
		if c.Matters() {
			p.reads++
			profile.Remember(&p.profile, &p.state, q, &c)
		}
		p.store()
	}
}

func (p *person) undo(by string) profile.Undone {
	p.t.Helper()
	p.store()
	u := profile.Undo(&p.profile, &p.state, by)
	p.store()
	return u
}

// by makes a patch of a writer: minute is that of set_at, and of occurred_at
// unless the patch says otherwise.
func by(writer string, minute int, changes ...func(*event.ProfilePatch)) *event.ProfilePatch {
	return patch(minute, func(p *event.ProfilePatch) {
		p.SetBy = writer
		for _, c := range changes {
			c(p)
		}
	})
}

func occurred(minute int) func(*event.ProfilePatch) {
	return func(p *event.ProfilePatch) { p.OccurredAt = t0.Add(time.Duration(minute) * time.Minute) }
}

func plan(v string) func(*event.ProfilePatch) {
	return set("plan", event.String(v))
}

func unset(p *event.ProfilePatch) { p.Unset = []string{"plan"} }

func locale(v string) func(*event.ProfilePatch) {
	return func(p *event.ProfilePatch) { p.Locale = &v }
}

const (
	impA, impB, impC, impD, impE = "import:a", "import:b", "import:c", "import:d", "import:e"
	web                          = "api:web"
	link                         = "unsubscribe:m"
)

// What is told of each field after patches and undos, as "value by writer".
func TestAnUndoLeavesWhatEverybodyElseSaid(t *testing.T) {
	t.Parallel()
	type step any // a patch, or the import that is undone
	for name, c := range map[string]struct {
		steps                          []step
		plan, address, consent, locale string
	}{
		"what was there comes back": {
			steps: []step{by(web, 1, plan("old"), address("old@x.test"), consent("subscribed"), locale("de")), by(impA, 2, plan("new"), address("new@x.test"), consent("unsubscribed"), locale("ja")), impA},
			plan:  "old by api:web", address: "old@x.test by api:web", consent: "subscribed by api:web", locale: "de by api:web"},
		"what was not there goes": {
			steps: []step{by(web, 1, set("age", event.Int(7))), by(impA, 2, plan("new"), address("new@x.test"), consent("subscribed"), locale("ja")), impA}},
		"what was changed again since stays": {
			steps: []step{by(web, 1, plan("old"), locale("de")), by(impA, 2, plan("new"), locale("ja")), by(web, 3, plan("newer"), locale("fr")), impA}, plan: "newer by api:web", locale: "fr by api:web"},
		"A, B, undo A, undo B": {
			steps: []step{by(web, 1, plan("old")), by(impA, 2, plan("a")), by(impB, 3, plan("b")), impA, impB}, plan: "old by api:web"},
		"A, B, undo B, undo A": {
			steps: []step{by(web, 1, plan("old")), by(impA, 2, plan("a")), by(impB, 3, plan("b")), impB, impA}, plan: "old by api:web"},
		"A, B, undo A": {
			steps: []step{by(web, 1, plan("old")), by(impA, 2, plan("a")), by(impB, 3, plan("b")), impA}, plan: "b by import:b"},
		"of three, the one in the middle": {
			steps: []step{by(impA, 1, plan("a")), by(impB, 2, plan("b")), by(impC, 3, plan("c")), impB, impC}, plan: "a by import:a"},
		"a later import says the same": {
			steps: []step{by(web, 1, plan("old"), locale("de")), by(impA, 2, plan("same"), locale("ja")), by(impB, 3, plan("same"), locale("ja")), impA}, plan: "same by import:b", locale: "ja by import:b"},
		"two imports in turns, undo the one on top": {
			steps: []step{by(impA, 1, plan("a1")), by(impB, 2, plan("b")), by(impA, 1, plan("a2")), impA}, plan: "b by import:b"},
		"two imports in turns, undo the one beneath": {
			steps: []step{by(impA, 1, plan("a1")), by(impB, 2, plan("b")), by(impA, 1, plan("a2")), impB}, plan: "a2 by import:a"},
		"two imports in turns, undo both": {
			steps: []step{by(web, 0, plan("old")), by(impA, 1, plan("a1")), by(impB, 2, plan("b")), by(impA, 1, plan("a2")), impB, impA}, plan: "old by api:web"},
		"several rows of one import": {
			steps: []step{by(web, 0, plan("old")), by(impA, 1, plan("a1")), by(impA, 1, plan("a2")), impA}, plan: "old by api:web"},
		"changed again between two rows of the import": {
			steps: []step{by(web, 0, plan("old")), by(impA, 1, plan("a1")), by(web, 2, plan("newer")), by(impA, 1, plan("a2")), impA}, plan: "newer by api:web"},
		"removed between two rows of the import": {
			steps: []step{by(web, 0, plan("old")), by(impA, 1, plan("a1")), by(web, 2, unset), by(impA, 1, plan("a2")), impA}},
		"an older address comes back over a newer one": {
			steps: []step{by(web, 1, address("old@x.test")), by(impA, 2, occurred(9), address("new@x.test")), impA}, address: "old@x.test by api:web"},
		"a removed address is removed again": {
			steps: []step{by(web, 1, address("")), by(impA, 2, address("new@x.test")), impA}, address: " by api:web"},
		"an import that came too late changed nothing": {
			steps: []step{by(web, 5, address("new@x.test"), consent("unsubscribed")), by(impA, 6, occurred(1), address("old@x.test"), consent("subscribed")), impA}, address: "new@x.test by api:web", consent: "unsubscribed by api:web"},
		"what came too late for the undone import alone is in force": {
			steps: []step{by(impA, 6, occurred(6), address("a@x.test")), by(impB, 7, occurred(5), address("b@x.test")), by(web, 8, occurred(4), address("w@x.test")), impA}, address: "b@x.test by import:b"},
		"and what came too late for both undone ones": {
			steps: []step{by(impA, 6, occurred(6), address("a@x.test")), by(web, 8, occurred(4), address("w@x.test")), by(impB, 7, occurred(5), address("b@x.test")), impB, impA}, address: "w@x.test by api:web"},
		"the same list twice, the first undone": {
			steps: []step{by(impA, 6, occurred(1), address("a@x.test"), consent("subscribed")), by(impB, 7, occurred(1), address("a@x.test"), consent("subscribed")), impA}, address: "a@x.test by import:b", consent: "subscribed by import:b"},

		"she unsubscribed after the import": {
			steps: []step{by(impA, 1, consent("subscribed")), by(link, 2, consent("unsubscribed")), impA}, consent: "unsubscribed by unsubscribe:m"},
		"she unsubscribed before the import, which says otherwise": {
			steps: []step{by(link, 1, consent("unsubscribed")), by(impA, 2, consent("subscribed")), impA}, consent: "unsubscribed by unsubscribe:m"},
		"she unsubscribed at the moment of the import": {
			steps: []step{by(link, 2, consent("unsubscribed")), by(impA, 2, consent("subscribed")), impA}, consent: "unsubscribed by unsubscribe:m"},
		"she unsubscribed at the moment of the import, and it came first": {
			steps: []step{by(impA, 2, consent("subscribed")), by(link, 2, consent("unsubscribed")), impA}, consent: "unsubscribed by unsubscribe:m"},
		"she unsubscribed before the import, and it came first": {
			steps: []step{by(impA, 2, consent("subscribed")), by(link, 3, occurred(1), consent("unsubscribed")), impA}, consent: "unsubscribed by unsubscribe:m"},
		"the import says unsubscribed at the same moment as she": {
			steps: []step{by(impA, 2, consent("unsubscribed")), by(link, 2, consent("unsubscribed")), impA}, consent: "unsubscribed by unsubscribe:m"},
		"the import alone unsubscribed her": {
			steps: []step{by(web, 1, consent("subscribed")), by(impA, 2, consent("unsubscribed")), impA}, consent: "subscribed by api:web"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &person{t: t}
			for _, s := range c.steps {
				switch s := s.(type) {
				case *event.ProfilePatch:
					p.patch(s)
				case string:
					p.undo(s)
					once := *p
					require.Equal(t, profile.Undone{}, p.undo(s), "undoing twice")
					require.Equal(t, once.profile, p.profile, "undoing twice")
					require.Equal(t, once.state, p.state, "undoing twice")
				}
			}
			var plan, address, consent, locale string
			for _, a := range p.profile.Attributes {
				if a.Name == "plan" {
					plan = a.Value.Text() + " by " + a.SetBy
				}
			}
			for _, a := range p.profile.Addresses {
				address = a.Address + " by " + a.SetBy
			}
			for _, a := range p.profile.Consents {
				consent = a.Consent + " by " + a.SetBy
			}
			if p.profile.LocaleSetBy != "" {
				locale = p.profile.Locale + " by " + p.profile.LocaleSetBy
			}
			require.Equal(t, []string{c.plan, c.address, c.consent, c.locale}, []string{plan, address, consent, locale})
		})
	}
}

// Whoever was known before is, to the last field, who she was.
func TestTheProfileIsAsItWasBeforeTheImport(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		p := &person{t: t}
		for _, q := range h.patches {
			if q.SetBy != impC {
				p.patch(q)
			}
		}
		if p.profile.UserID == "" {
			return
		}
		before := *p
		undone := false
		for _, q := range h.patches {
			if q.SetBy == impC {
				p.patch(q)
				undone = true
			}
		}
		p.undo(impC)
		require.Equal(t, before.profile, p.profile)
		if undone {
			require.Equal(t, profile.Layers(&before.state), profile.Layers(&p.state))
		}
	})
}

type drawn struct {
	patches []*event.ProfilePatch
	// exact is false where a patch may change something, or not, for the sake of an
	// import that is undone: then created_at and updated_at are not what they would be.
	exact bool
}

// drawHistory makes patches in order of arrival. Imports run side by side, so
// that the set_at of their patches, their beginning, is not in that order; the
// set_at of all others is. Few occurred_at, so that there are ties.
func drawHistory(t *rapid.T) drawn {
	h := drawn{exact: true}
	begun := map[string]int{impA: 0, impB: 1, impC: 2, impD: 3, impE: 4}
	n := rapid.IntRange(1, 20).Draw(t, "patches")
	for i := range n {
		writer := rapid.SampledFrom([]string{impA, impB, impC, impD, impE, web, link}).Draw(t, "writer")
		at, ok := begun[writer]
		if !ok {
			at = i + len(begun)
		}
		var changes []func(*event.ProfilePatch)
		kinds := []string{"plan", "locale", "plan and locale"}
		if rapid.Bool().Draw(t, "whatever others did") {
			kinds = append(kinds, "address", "consent")
			if !ok {
				kinds = append(kinds, "unset")
			}
		}
		switch kind := rapid.SampledFrom(kinds).Draw(t, "kind"); kind {
		case "address":
			h.exact = false
			// Of three that say one, another, and the one again of one moment, an undo of
			// the second leaves in force what it should, but by the third.
			moment, said := rapid.IntRange(0, 4).Draw(t, "occurred"), "a@x.test"
			if moment > 2 {
				said = fmt.Sprint(i, "@x.test")
			}
			changes = append(changes, address(rapid.SampledFrom([]string{"", said, said}).Draw(t, "address")), occurred(moment))
		case "consent":
			h.exact = false
			changes = append(changes, consent(rapid.SampledFrom([]string{"subscribed", "unsubscribed"}).Draw(t, "consent")), occurred(rapid.IntRange(0, 4).Draw(t, "occurred")))
		case "unset":
			h.exact = false
			changes = append(changes, unset, set("other", event.Int(int64(i))))
		default:
			v := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "value")
			if strings.Contains(kind, "plan") {
				changes = append(changes, plan(v))
			}
			if strings.Contains(kind, "locale") {
				if !ok {
					v = fmt.Sprint(i) // saying the same again would change nothing but for an import between
				}
				changes = append(changes, locale(v))
			}
		}
		h.patches = append(h.patches, by(writer, at, changes...))
	}
	return h
}

// Undos at any time, in any order: the profile is what it would be had the
// patches of those imports never come.
func TestAnUndoIsAsIfTheImportHadNeverBeen(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		h := drawHistory(t)
		p := &person{t: t}
		undone := rapid.Permutation([]string{impA, impB, impC, impD, impE}).Draw(t, "undone")[:rapid.IntRange(1, 5).Draw(t, "undos")]
		last := map[string]int{}
		for i, q := range h.patches {
			last[q.SetBy] = i
		}
		after := map[int][]string{} // undos, by the patch that they follow
		for _, u := range undone {
			i, came := last[u]
			if !came {
				continue
			}
			i = rapid.IntRange(i, len(h.patches)-1).Draw(t, "after")
			after[i] = append(after[i], u)
		}
		want := &person{t: t}
		for i, q := range h.patches {
			p.patch(q)
			for _, u := range after[i] {
				p.undo(u)
			}
			if !slices.Contains(undone, q.SetBy) {
				want.patch(q)
			}
		}
		if want.profile.UserID == "" {
			require.Equal(t, event.Profile{UserID: "u", CreatedAt: p.profile.CreatedAt, UpdatedAt: p.profile.UpdatedAt, Deleted: true}, p.profile)
			require.True(t, profile.Empty(&p.state))
			return
		}
		got, wanted := p.profile, want.profile
		if !h.exact {
			got.UpdatedAt, got.SettledFrom, got.SettledUntil = wanted.UpdatedAt, wanted.SettledFrom, wanted.SettledUntil
		}
		got.CreatedAt, got.CreatedBy = wanted.CreatedAt, wanted.CreatedBy
		require.Equal(t, wanted, got)
	})
}

// More imports than are remembered: those that are can be undone all the same, and
// the fields are what they would be without them.
func TestAnUndoIsExactAboveForgottenImports(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const remembered = 16
		n := rapid.IntRange(remembered+1, remembered+8).Draw(t, "imports")
		undone := rapid.SliceOfNDistinct(rapid.IntRange(n-remembered, n-1), 1, remembered, rapid.ID).Draw(t, "undone")
		p, want := &person{t: t}, &person{t: t}
		value := rapid.SampledFrom([]string{"x", "x", "x", "y"})
		for i := range n {
			changes := []func(*event.ProfilePatch){plan(value.Draw(t, "plan")), locale(value.Draw(t, "locale"))}
			if rapid.Bool().Draw(t, "consent") {
				changes = append(changes, consent(rapid.SampledFrom([]string{"subscribed", "unsubscribed"}).Draw(t, "consent")))
			}
			if rapid.Bool().Draw(t, "by the file's time") {
				changes = append(changes, address("x"), occurred(-rapid.IntRange(1, 3).Draw(t, "occurred")))
			} else {
				changes = append(changes, address(value.Draw(t, "address")))
			}
			patches := []*event.ProfilePatch{by(fmt.Sprint("import:", i), i, changes...)}
			if rapid.IntRange(0, 9).Draw(t, "somebody else") == 0 {
				patches = append(patches, by(web, i, changes...))
			}
			p.patch(patches...)
			if slices.Contains(undone, i) {
				patches = patches[1:]
			}
			want.patch(patches...)
		}
		for _, i := range undone {
			require.False(t, p.undo(fmt.Sprint("import:", i)).Forgotten)
		}
		require.Equal(t, fields(&want.profile), fields(&p.profile))
	})
}

func fields(p *event.Profile) []any {
	return []any{p.Attributes, p.Addresses, p.Consents, p.Locale, p.LocaleSetBy}
}

// When a person became known and changed last is told by those who are left.
func TestAPersonIsKnownAsLongAsSomebodyKnowsHer(t *testing.T) {
	t.Parallel()
	minute := func(m int) time.Time { return t0.Add(time.Duration(m) * time.Minute) }
	for name, c := range map[string]struct {
		patches          []*event.ProfilePatch
		undo             []string
		created, updated int
		deleted          bool
	}{
		"one import, undone":                  {[]*event.ProfilePatch{by(impA, 1, plan("a"))}, []string{impA}, 1, 1, true},
		"two imports, both undone":            {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(impB, 2, plan("b"))}, []string{impA, impB}, 2, 2, true},
		"two imports, undone backwards":       {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(impB, 2, plan("b"))}, []string{impB, impA}, 1, 1, true},
		"two imports, the first undone":       {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(impB, 2, plan("b"))}, []string{impA}, 2, 2, false},
		"two imports, the second undone":      {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(impB, 2, plan("b"))}, []string{impB}, 1, 1, false},
		"two imports of different attributes": {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(impB, 2, set("age", event.Int(7)))}, []string{impA}, 2, 2, false},
		"changed by somebody else since":      {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(web, 5, set("age", event.Int(7)))}, []string{impA}, 5, 5, false},
		"changed before the later import":     {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(web, 2, plan("w")), by(impB, 3, plan("b"))}, []string{impA, impB}, 2, 2, false},
		"changed between two imports":         {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(web, 2, plan("w")), by(impB, 3, plan("b"))}, []string{impA}, 2, 3, false},
		"an import forgotten before another":  {[]*event.ProfilePatch{by(web, 0, plan("w")), by(impA, 1, plan("a")), by(impB, 15*day, plan("b"))}, []string{impB}, 0, 1, false},
		"emptied by somebody else since":      {[]*event.ProfilePatch{by(impA, 1, plan("a")), by(web, 5, unset)}, []string{impA}, 5, 5, false},
		"what she said came too late":         {[]*event.ProfilePatch{by(impA, 1, consent("subscribed")), by(link, 5, occurred(0), consent("unsubscribed"))}, []string{impA}, 5, 5, false},
		"a later one that began earlier":      {[]*event.ProfilePatch{by(web, 0, plan("w")), by(impB, 2, plan("b")), by(impA, 1, plan("a"))}, []string{impB}, 0, 1, false},
		"an import that did not change her":   {[]*event.ProfilePatch{by(impA, 1, plan("a"))}, []string{impB}, 1, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &person{t: t}
			p.patch(c.patches...)
			for _, u := range c.undo {
				p.undo(u)
			}
			require.Equal(t, []any{minute(c.created), minute(c.updated), c.deleted}, []any{p.profile.CreatedAt, p.profile.UpdatedAt, p.profile.Deleted})
			if c.deleted {
				require.Empty(t, p.profile.Attributes)
				require.True(t, profile.Empty(&p.state))
			}
		})
	}
}

func TestAPatchMakesADeletedPersonKnownAgain(t *testing.T) {
	t.Parallel()
	for _, writer := range []string{impB, web} {
		p, fresh := &person{t: t}, &person{t: t}
		p.patch(by(impA, 1, plan("a"), address("a@x.test")))
		p.undo(impA)
		again := by(writer, 5, locale("de"))
		p.patch(again)
		fresh.patch(again)
		require.Equal(t, fresh.profile, p.profile)
		p.patch(by(impC, 6, locale("ja")))
		p.undo(impC)
		require.Equal(t, fresh.profile, p.profile)
	}
}

// A first import of people nobody knew asks for nothing and keeps nothing, and
// neither do people whom no import changes.
func TestWhatReplacesNothingRemembersNothing(t *testing.T) {
	t.Parallel()
	p := &person{t: t}
	p.patch(by(impA, 1, plan("a"), address("a@x.test"), locale("de")), by(impA, 1, plan("a2"), set("age", event.Int(7)), address("a2@x.test")), by(impA, 1, address("a2@x.test")))
	require.Zero(t, p.reads)
	p.patch(by(web, 2, set("seen", event.Bool(true))))
	require.Zero(t, p.reads)
	p = &person{t: t}
	p.patch(by(web, 1, plan("a")), by(web, 2, plan("b"), consent("subscribed")), by(link, 3, consent("unsubscribed")))
	require.Zero(t, p.reads)
}

// What nobody can take back hides what is beneath it for ever.
func TestWhatNoUndoNeedsIsNotKept(t *testing.T) {
	t.Parallel()
	p := &person{t: t}
	p.patch(by(web, 1, plan("old")), by(impA, 2, plan("a")), by(impB, 3, plan("b")))
	require.Len(t, p.state.Replaced, 2)
	p.patch(by(impA, 2, plan("a")), by(impB, 3, plan("b")), by(impB, 3, plan("b2")))
	require.Len(t, p.state.Replaced, 2, "one layer of a writer")
	p.patch(by(web, 4, plan("new")))
	require.Empty(t, p.state.Replaced)

	p = &person{t: t}
	same := []func(*event.ProfilePatch){address("a@x.test"), occurred(-1)}
	p.patch(by(impA, 1, same...), by(impB, 2, same...), by(impC, day, same...), by(impD, day, address("d@x.test")))
	require.Len(t, profile.Layers(&p.state), 3)
	p.patch(by(impE, 14*day+2, plan("new")))
	require.Len(t, profile.Layers(&p.state), 1, "of those that say the same, the first that came, which is not undone any more")
}

// The list of every night says of most people what it said before. What is kept
// of them grows by the import, not by what it says.
func TestAnImportThatSaysTheSameAddsOnlyItself(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		when    func(night int) func(*event.ProfilePatch)
		entries int // once the first is no longer undone
	}{
		"at the time of the import": {occurred, 4},
		"at a time of the file's":   {func(int) func(*event.ProfilePatch) { return occurred(-1) }, 2}, // only the first changed address and consent
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &person{t: t}
			p.patch(by(web, -9, plan("gold"), locale("de"), address("ann@example.test"), consent("subscribed")))
			entries, size := 0, 0
			for i := range 40 {
				p.patch(by(fmt.Sprint("import:", i), i, plan("gold"), locale("de"), address("ann@example.test"), consent("subscribed"), c.when(i)))
				bytes := len(p.state.AppendAvro(nil))
				switch {
				case i == 2:
					entries = len(p.state.Replaced)
				case i > 2 && i < 16:
					require.Len(t, p.state.Replaced, entries)
					require.LessOrEqual(t, bytes-size, 9+len("import:10")+2*entries)
				case i > 16:
					require.Len(t, p.state.Replaced, c.entries)
					require.Len(t, p.state.Imports, 17, "with the one beneath them")
				}
				size = bytes
			}
		})
	}
}

// Imports that are kept for their values alone do not become more than an entry
// can name, and nothing is lost by it.
func TestAnImportOverManyOthersIsUndone(t *testing.T) {
	t.Parallel()
	p, want := &person{t: t}, &person{t: t}
	p.patch(by(web, 0, plan("gold")))
	want.patch(by(web, 0, plan("gold")))
	for i := range 200 {
		name := fmt.Sprint("field ", i)
		short := by(fmt.Sprint("import:", i), i, set(name, event.Int(1)))
		p.patch(short, by("import:long", 1000, set(name, event.Int(2))))
		want.patch(short)
		require.LessOrEqual(t, len(p.state.Imports), 60)
	}
	require.True(t, p.undo("import:long").Changed)
	require.Equal(t, fields(&want.profile), fields(&p.profile))
}

const day = 24 * 60

// An import that is too old, or one too many, is part of what was there: it is
// left alone, and later ones are undone to it.
func TestForgottenImportsAreLeftAlone(t *testing.T) {
	t.Parallel()
	p := &person{t: t}
	p.patch(by(impA, 0, plan("a")), by(impB, day, plan("b")), by(impC, 14*day, plan("c")))
	require.Nil(t, p.state.Forgotten, "14 days")
	p.patch(by("import:d", 14*day+1, plan("d")))
	require.Equal(t, t0, *p.state.Forgotten)
	before := p.profile
	require.Equal(t, profile.Undone{Forgotten: true}, p.undo(impA), "its value comes back when the others are undone")
	require.Equal(t, before, p.profile)
	for _, u := range []string{"import:d", impC, impB} {
		require.True(t, p.undo(u).Changed)
	}
	require.Equal(t, "import:a", p.profile.Attributes[0].SetBy)
	require.Equal(t, profile.Undone{Forgotten: true}, p.undo(impA))
	require.Equal(t, []any{false, t0, t0}, []any{p.profile.Deleted, p.profile.CreatedAt, p.profile.UpdatedAt})

	// A row of it that comes now is as little undone.
	p.patch(by(impA, 0, plan("late")))
	require.Equal(t, profile.Undone{Forgotten: true}, p.undo(impA))
	require.Equal(t, event.String("late"), p.profile.Attributes[0].Value)
	p.patch(by(impC, 14*day, plan("c")))
	require.True(t, p.undo(impC).Changed)
	require.Equal(t, event.String("late"), p.profile.Attributes[0].Value)
}

// However often a person is imported, what is remembered fits into a record.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	t.Parallel()
	p := &person{t: t}
	const n = 40
	for i := range n {
		p.patch(by(fmt.Sprint("import:", i), i, set("text", event.String(fmt.Sprint(i, strings.Repeat("x", 20_000))))))
	}
	require.LessOrEqual(t, len(p.state.AppendAvro(nil)), profile.MaxBytes)
	require.Greater(t, len(p.state.AppendAvro(nil)), profile.MaxBytes-45_000, "it is not dropped for nothing")
	oldest := int(p.state.Forgotten.Sub(t0).Minutes())
	for i := n - 1; i > oldest; i-- {
		require.True(t, p.undo(fmt.Sprint("import:", i)).Changed)
	}
	require.True(t, strings.HasPrefix(p.profile.Attributes[0].Value.Text(), fmt.Sprint(oldest, "x")))
	require.Equal(t, profile.Undone{Forgotten: true}, p.undo(fmt.Sprint("import:", oldest)))
}

func TestTheLastSixteenImportsOfAPersonCanBeUndone(t *testing.T) {
	t.Parallel()
	p := &person{t: t}
	for i := range 20 {
		p.patch(by(fmt.Sprint("import:", i), i, plan(fmt.Sprint(i))))
	}
	for i := 4; i < 20; i++ {
		require.True(t, p.undo(fmt.Sprint("import:", i)).Changed)
	}
	require.Equal(t, "3", p.profile.Attributes[0].Value.Text())
	require.Equal(t, profile.Undone{Forgotten: true}, p.undo("import:3"))
	require.False(t, p.profile.Deleted)
}
