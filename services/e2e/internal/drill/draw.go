package drill

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// The conditions of a process in the timeline.
const legend = "─ at work   ✗ killed or dead   ▒ back, not yet at work   z paused   ✝ ended of itself"

const width = 100

// strip draws one process: what it was doing in each of width moments; the worst
// condition within a moment is shown.
func strip(spells []spell, incidents []*incident, from, to time.Duration) string {
	rank := map[rune]int{' ': 0, '─': 1, '▒': 2, 'z': 3, '✝': 4, '✗': 5}
	line := []rune(strings.Repeat(" ", width))
	column := func(at time.Duration) int {
		if to <= from {
			return 0
		}
		return min(max(int(int64(width)*int64(at-from)/int64(to-from)), 0), width-1)
	}
	put := func(a, b time.Duration, what rune) {
		if b < from {
			return
		}
		for c := column(a); c <= column(b); c++ {
			if rank[what] > rank[line[c]] {
				line[c] = what
			}
		}
	}
	for n, s := range spells {
		end := to
		if n+1 < len(spells) {
			end = spells[n+1].from
		}
		if what, ok := map[byte]rune{'-': '─', 'p': 'z'}[s.what]; ok {
			put(s.from, end, what)
		}
	}
	for _, i := range incidents {
		if i.Restart == 0 {
			continue
		}
		if i.Back > 0 {
			put(i.Restart, i.Back, '▒')
		}
		switch i.Kind {
		case killed, crashed, stackDown:
			put(i.At, i.Restart, '✗')
		case ended:
			put(i.At, i.At, '✝')
		}
	}
	return string(line)
}

// timeline draws what was done to whom, and lists it.
func (d *drill) timeline(w io.Writer, from, to time.Duration) {
	fmt.Fprintf(w, "\n%-22s%-*s%s\n", "", width-8, clock(from), clock(to))
	all := slices.Clone(d.members)
	if d.stack != nil {
		all = append(all, d.stack)
	}
	for _, m := range all {
		var its []*incident
		for _, i := range d.incidents {
			if i.Service == m.service && i.Instance == m.instance {
				its = append(its, i)
			}
		}
		name := m.name()
		if m == d.stack {
			name = stackName
		}
		fmt.Fprintf(w, "%-22s%s\n", name, strip(m.spells, its, from, to))
	}
	fmt.Fprintf(w, "%-22s%s\n\n", "", legend)
	for _, i := range d.incidents {
		fmt.Fprintf(w, "  %s\n", i.sentence())
	}
}

// sentence tells what was done, how long it was away, and what it left.
func (i *incident) sentence() string {
	s := fmt.Sprintf("%8s  at %3.0f %%  %-20s %s", clock(i.At), 100*i.Share, i.name(), map[bool]kind{true: killed, false: i.Kind}[i.Kind == stackDown])
	switch i.Kind {
	case crashed:
		s += " at " + i.Point
	case ended:
		s += " of itself (" + i.Why + ")"
	case paused:
		if i.Restart > 0 {
			s += fmt.Sprintf(" for %.1f s", (i.Restart - i.At).Seconds())
		}
	}
	switch {
	case i.Again:
		s += ", and again before it was back"
	case i.Back > 0:
		s += fmt.Sprintf(", back at work after %.1f s", (i.Back - i.Restart).Seconds())
	case i.Restart > 0:
		s += ", NOT back at work as far as was seen"
	}
	if i.Kind == stackDown && i.Left > 0 {
		s += fmt.Sprintf("; %d left uncertain by senders that lost their place in the group", i.Left)
	}
	if i.ofSender() && i.Kind != ended {
		s += fmt.Sprintf("; %d messages claimed without an outcome, %d left uncertain", i.Claimed, i.Left)
	}
	return s
}

// ledger prints what became of everybody, and the balance in words.
func (d *drill) ledger(w io.Writer, v *verdict) {
	s := d.sheet
	fmt.Fprintf(w, "\n%10s  people in the audience\n", thousands(s.Audience))
	var excluded int64
	for _, reason := range slices.Sorted(maps.Keys(s.Excluded)) {
		excluded += s.Excluded[reason]
	}
	fmt.Fprintf(w, "%10s  excluded", thousands(excluded))
	for _, reason := range slices.Sorted(maps.Keys(s.Excluded)) {
		fmt.Fprintf(w, "; %s %s", strings.ReplaceAll(reason, "_", " "), thousands(s.Excluded[reason]))
	}
	fmt.Fprintf(w, "\n%10s  requested, of which\n", thousands(s.Requested))
	for _, c := range []struct {
		name string
		n    int64
	}{{"accepted", s.Accepted}, {"rejected", s.Rejected}, {"failed", s.Failed}, {"uncertain", s.Uncertain}, {"expired", s.Expired},
		{"cancelled", s.Cancelled}, {"parked", s.Parked}, {"waiting", s.Waiting}} {
		if c.n > 0 || c.name == "accepted" || c.name == "uncertain" {
			fmt.Fprintf(w, "%14s%10s  %s\n", "", thousands(c.n), c.name)
		}
	}
	if d.index != "" {
		fmt.Fprintf(w, "%10s  mails at the mail server, at most %d for one person (counted by a program that shares no code)\n", thousands(int64(d.mails)), v.CopiesMax)
	} else {
		fmt.Fprintf(w, "            The mail went to %s; without --index nobody here can count copies.\n", d.getenv("SMTP_ADDR"))
	}
	fmt.Fprintf(w, "%10s  joined over HTTP, %s unsubscribed, %s clicked meanwhile\n\n", thousands(int64(len(d.crowd.joined))), thousands(int64(len(d.crowd.unsubscribed))), thousands(d.crowd.clicked.Load()))
	if s.Balanced {
		fmt.Fprintf(w, "Balanced: %s people = %s excluded + %s requested, and the resolver and ClickHouse, each counting by its own way, agree in every class.\n",
			thousands(s.Audience), thousands(excluded), thousands(s.Requested))
	} else {
		fmt.Fprintf(w, "NOT balanced: %s.\n", differences(s.Difference))
	}
	if d.policy == atLeastOnce {
		fmt.Fprintf(w, "At least once: %d copies were repeated; %d messages were claimed and without an outcome when senders died, and no more may be.\n", v.Repeats, v.RepeatsAllowed)
	}
	for _, b := range v.Broken {
		fmt.Fprintf(w, "BROKEN: %s\n", b)
	}
	if len(v.Broken) == 0 {
		fmt.Fprintln(w, "Every bar held.")
	}
}

// thousands writes a number as people read it: 12,345.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
