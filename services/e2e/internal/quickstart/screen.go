package quickstart

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// screen is what people see: numbered steps with the time each took, a live
// line while something goes on, and lines in between.
type screen struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool // the live line is drawn over and over
	live     bool // the cursor stands behind it

	number, total int
	began         time.Time
	said          time.Time // when progress was last printed where it cannot be drawn
}

const indent = "        "

func newScreen(w io.Writer, steps int) *screen {
	s := &screen{w: w, total: steps}
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil {
			s.terminal = info.Mode()&os.ModeCharDevice != 0
		}
	}
	return s
}

// step begins the next step.
func (s *screen) step(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	s.began, s.said = time.Now(), time.Now()
	s.print(fmt.Sprintf("[%2d/%d] %s", s.number, s.total, fmt.Sprintf(format, a...)))
}

// done ends the step with what came of it.
func (s *screen) done(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print(fmt.Sprintf("%s%s (%s)", indent, fmt.Sprintf(format, a...), seconds(time.Since(s.began))))
}

// line says something within a step.
func (s *screen) line(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print(indent + fmt.Sprintf(format, a...))
}

// text prints what a program wrote, as it is.
func (s *screen) text(t string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range strings.Lines(t) {
		s.print(strings.TrimRight(indent+strings.TrimRight(l, "\n"), " "))
	}
}

// progress shows how far something is: drawn over itself on a terminal, a line
// every few seconds elsewhere.
func (s *screen) progress(t string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.terminal:
		fmt.Fprintf(s.w, "\r%s%s\x1b[K", indent, t)
		s.live = true
	case time.Since(s.said) > 5*time.Second:
		s.said = time.Now()
		fmt.Fprintln(s.w, indent+t)
	}
}

func (s *screen) print(t string) {
	if s.live {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.live = false
	}
	fmt.Fprintln(s.w, t)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// bar draws done of total.
func bar(done, total int64) string {
	const width = 30
	full := 0
	if total > 0 {
		full = int(min(done, total) * width / total)
	}
	return "[" + strings.Repeat("█", full) + strings.Repeat("░", width-full) + "]"
}

// thousands writes a number as people read it: 12,345.
func thousands[N int | int64](n N) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
