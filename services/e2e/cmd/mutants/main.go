// Command mutants asks of every invariant whether a test would notice its loss:
// it switches off the line that enforces it, in an overlay that leaves the tree as
// it is, runs the test that is to fail, and expects it to. Each test must pass
// without the mutant first.
//
//	mutants [-run TEXT] [-v]
//
// Exit codes: 0 every mutant was noticed; 1 one survived, or its text is not in
// its file any more, or nothing was tried; 2 wrong usage.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

// testTimeout ends a test that a mutant has made wait for ever: that is noticing,
// too.
const testTimeout = 4 * time.Minute

func main() {
	only := flag.String("run", "", "try only mutants whose invariant, file or test contains this text")
	verbose := flag.Bool("v", false, "print what the tests say")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, verbose bool) error {
	root, err := command.AboveHere()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	tried, bad := 0, 0
	sound := map[string]string{} // by module, package and test: how it is without a mutant
	for _, m := range mutants() {
		if !strings.Contains(m.invariant+" "+m.file+" "+m.test, only) {
			continue
		}
		began := time.Now()
		verdict := try(ctx, root, dir, m, sound, verbose)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		tried++
		if verdict != noticed {
			bad++
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%.0f s\n", m.invariant, verdict, m.breaks, m.test, time.Since(began).Seconds())
		table.Flush() // one line at a time: the whole takes minutes
	}
	switch {
	case tried == 0:
		return fmt.Errorf("no mutant has %q in its invariant, file or test", only)
	case bad > 0:
		return fmt.Errorf("%d of %d mutants were not noticed", bad, tried)
	}
	fmt.Printf("all %d mutants were noticed\n", tried)
	return nil
}

// The verdicts. All but the first are failures of this program's purpose.
const (
	noticed  = "noticed"
	survived = "SURVIVED"
)

// try returns what became of one mutant.
func try(ctx context.Context, root, dir string, m mutant, sound map[string]string, verbose bool) string {
	overlay, err := m.write(root, dir)
	if err != nil {
		return "STALE: " + err.Error()
	}
	key := m.module + " " + m.pkg + " " + m.test
	if _, known := sound[key]; !known {
		sound[key] = m.ask(ctx, root, "", verbose)
	}
	if sound[key] != survived {
		return "TEST FAILS WITHOUT IT: " + sound[key]
	}
	return m.ask(ctx, root, overlay, verbose)
}

// write makes the overlay with the mutant and returns its path.
func (m mutant) write(root, dir string) (string, error) {
	path := filepath.Join(root, filepath.FromSlash(m.file))
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	mutated, err := m.apply(string(text))
	if err != nil {
		return "", err
	}
	changed := filepath.Join(dir, "mutated.go")
	if err := os.WriteFile(changed, []byte(mutated), 0o600); err != nil {
		return "", err
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, replace, 0o600)
}

// apply replaces the old text, which must be there exactly once.
func (m mutant) apply(text string) (string, error) {
	if n := strings.Count(text, m.old); n != 1 {
		return "", fmt.Errorf("%s has %q %d times, not once", m.file, m.old, n)
	}
	return strings.Replace(text, m.old, m.new, 1), nil
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: |^panic: |^fatal error: `)

// ask runs the test, over the overlay if there is one, and returns what it says: a
// mutant that does not compile, or a test that was skipped, proves nothing.
func (m mutant) ask(ctx context.Context, root, overlay string, verbose bool) string {
	args := []string{"test", "-count=1", "-v", "-vet=off", "-timeout", testTimeout.String(), "-run", "^" + m.test + "$"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, m.pkg)...)
	cmd.Dir = filepath.Join(root, filepath.FromSlash(m.module))
	out, err := cmd.CombinedOutput()
	if verbose {
		os.Stdout.Write(out)
	}
	text := string(out)
	var exit *exec.ExitError
	switch {
	case strings.Contains(text, "[build failed]") || strings.Contains(text, "[setup failed]"):
		return "DOES NOT COMPILE"
	case err == nil && !strings.Contains(text, "--- PASS: "+m.test):
		return "NOT RUN (skipped, or there is no such test)"
	case err == nil:
		return survived
	case errors.As(err, &exit) && failed.MatchString(text):
		return noticed
	}
	return "NOT RUN: " + err.Error()
}
