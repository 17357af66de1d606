package main

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/topic"
)

// What lies between the marks in schemas/README.md is written here.
const (
	tableBegins = "<!-- topics: generated -->\n"
	tableEnds   = "<!-- topics: end -->\n"
)

// readme replaces the topic table.
func readme(old []byte) ([]byte, error) {
	before, rest, ok := bytes.Cut(old, []byte(tableBegins))
	_, after, ended := bytes.Cut(rest, []byte(tableEnds))
	if !ok || !ended {
		return nil, fmt.Errorf("README.md lacks %q … %q", tableBegins, tableEnds)
	}
	return slices.Concat(before, []byte(tableBegins), topicTable(), []byte(tableEnds), after), nil
}

func topicTable() []byte {
	var b bytes.Buffer
	b.WriteString("| topic | record | key | partitions | kept | written by | read by group | read whole by |\n|---|---|---|---|---|---|---|---|\n")
	for _, t := range topic.Catalogue() {
		partitions := "1"
		if t.Person {
			partitions = "P"
		}
		var groups []string
		for _, g := range t.Readers {
			groups = append(groups, string(g))
		}
		list := func(names []string) string { return cmp.Or(strings.Join(names, ", "), "—") }
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n", t.Name, t.Record, t.Key, partitions, kept(t), list(t.Writers), list(groups), list(t.TableOf))
	}
	return b.Bytes()
}

func kept(t topic.Topic) string {
	const day = 24 * time.Hour
	switch {
	case t.Cleanup == topic.Compact:
		return "compacted"
	case t.Retain >= day && t.Retain%day == 0:
		return fmt.Sprintf("%d days", t.Retain/day)
	case t.Retain%time.Hour == 0:
		return fmt.Sprintf("%d h", t.Retain/time.Hour)
	}
	return t.Retain.String()
}
