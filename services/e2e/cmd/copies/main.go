// Command copies counts how often each person got a mail, from nothing but what
// the mail server wrote down. It is the drill's witness and shares no code with
// what it judges: the standard library only, which a test asserts.
//
//	copies [--from BYTE] INDEX
//
// INDEX is the index.tsv of an outbox (time, envelope sender, recipient,
// Message-ID, file, offset, length), of which the recipient counts, or any file
// with one recipient per line. --from leaves out what was there before.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
)

// result is the one line on stdout.
type result struct {
	Mails      int     `json:"mails"`
	Recipients int     `json:"recipients"`
	CopiesMax  int     `json:"copies_max"`
	Twice      []twice `json:"twice"` // who got more than one, most first
}

type twice struct {
	Recipient string `json:"recipient"`
	Copies    int    `json:"copies"`
	// MessageIDs are the distinct ones among the copies; empty where the file has none.
	MessageIDs []string `json:"message_ids"`
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("copies", flag.ContinueOnError)
	flags.SetOutput(stderr)
	from := flags.Int64("from", 0, "leave out the first so many `bytes`")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 {
		fmt.Fprintln(stderr, "usage: copies [--from BYTE] INDEX")
		return 2
	}
	f, err := os.Open(flags.Arg(0))
	if err != nil {
		fmt.Fprintln(stderr, "copies:", err)
		return 3
	}
	defer f.Close()
	if _, err := f.Seek(*from, io.SeekStart); err != nil {
		fmt.Fprintln(stderr, "copies:", err)
		return 3
	}
	r, err := count(f)
	if err != nil {
		fmt.Fprintln(stderr, "copies:", err)
		return 3
	}
	if err := json.NewEncoder(stdout).Encode(r); err != nil {
		return 3
	}
	return 0
}

// count reads whole lines; a last one that is still being written is left out.
func count(in io.Reader) (*result, error) {
	copies := map[string]int{}
	ids := map[string]map[string]bool{}
	r := &result{Twice: []twice{}}
	lines := bufio.NewReaderSize(in, 1<<16)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		recipient, id := line, ""
		if fields := strings.Split(line, "\t"); len(fields) >= 4 {
			recipient, id = fields[2], fields[3]
		}
		recipient = strings.ToLower(strings.Trim(strings.TrimSpace(recipient), "<>"))
		if recipient == "" {
			continue
		}
		r.Mails++
		copies[recipient]++
		if id != "" {
			if ids[recipient] == nil {
				ids[recipient] = map[string]bool{}
			}
			ids[recipient][id] = true
		}
	}
	r.Recipients = len(copies)
	for recipient, n := range copies {
		r.CopiesMax = max(r.CopiesMax, n)
		if n > 1 {
			t := twice{Recipient: recipient, Copies: n, MessageIDs: []string{}}
			for id := range ids[recipient] {
				t.MessageIDs = append(t.MessageIDs, id)
			}
			sort.Strings(t.MessageIDs)
			r.Twice = append(r.Twice, t)
		}
	}
	sort.Slice(r.Twice, func(i, j int) bool {
		a, b := r.Twice[i], r.Twice[j]
		return a.Copies > b.Copies || a.Copies == b.Copies && a.Recipient < b.Recipient
	})
	return r, nil
}
