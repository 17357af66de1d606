package filter

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// Duration is a length of time written as a whole number and one unit: 90s, 30m, 12h, 3d (72 hours), 2w. It is never negative.
type Duration time.Duration

// DurationPattern is what ParseDuration accepts, for JSON Schemas.
const DurationPattern = `^[1-9][0-9]{0,8}[smhdw]$`

// maxDuration bounds windows at a hundred years, well inside time.Duration.
const maxDuration = 36500 * 24 * time.Hour

var durationPattern = regexp.MustCompile(DurationPattern)

var units = []struct {
	name byte
	d    time.Duration
}{{'w', 7 * 24 * time.Hour}, {'d', 24 * time.Hour}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}

// ParseDuration reads a duration of at least one second and at most a hundred years.
func ParseDuration(s string) (Duration, error) {
	if !durationPattern.MatchString(s) {
		return 0, fmt.Errorf("%q is not a duration", s)
	}
	n, err := strconv.ParseInt(s[:len(s)-1], 10, 64)
	if err != nil {
		return 0, err
	}
	for _, u := range units {
		if u.name == s[len(s)-1] {
			if n > int64(maxDuration/u.d) {
				return 0, fmt.Errorf("%s is longer than a hundred years", s)
			}
			return Duration(time.Duration(n) * u.d), nil
		}
	}
	return 0, fmt.Errorf("%q has no unit", s)
}

// Duration converts to the standard type.
func (d Duration) Duration() time.Duration { return time.Duration(d) }

// String writes the duration in the largest unit that divides it, but never in weeks: 3d, 14d, 90m.
func (d Duration) String() string {
	for _, u := range units[1:] {
		if d != 0 && time.Duration(d)%u.d == 0 {
			return strconv.FormatInt(int64(time.Duration(d)/u.d), 10) + string(u.name)
		}
	}
	return time.Duration(d).String()
}

// MarshalJSON writes the duration as String does.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads what ParseDuration reads.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	parsed, err := ParseDuration(s)
	*d = parsed
	return err
}

// ParseTime reads an instant: a date, which is UTC midnight, or RFC 3339 with a zone. It is kept to the microsecond, in UTC.
func ParseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		if t, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return time.Time{}, fmt.Errorf("%q is not a date such as 2011-06-01, nor a time with a zone such as 2011-06-01T09:00:00+09:00", s)
		}
	}
	t = t.UTC().Truncate(time.Microsecond)
	if t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}, fmt.Errorf("%q lies outside the years 1 to 9999", s)
	}
	return t, nil
}

// FormatTime writes an instant as ParseTime reads it: midnights as dates.
func FormatTime(t time.Time) string {
	t = t.UTC()
	if t.Equal(t.Truncate(24 * time.Hour)) {
		return t.Format(time.DateOnly)
	}
	return t.Format(time.RFC3339Nano)
}
