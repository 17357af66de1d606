package guess

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/hikyaku/hikyaku/schemas/definition"
)

// column is what is known of one.
type column struct {
	name     string
	values   []string // not empty, without white space around
	distinct int
	spaces   bool // some values have white space around
	emails   int

	kind    string // a definition.Type
	layout  string
	comma   bool
	doubt   string // what a reader should know
	another string // a second layout that fits as well
}

var (
	wholeNumber  = regexp.MustCompile(`^-?(0|[1-9][0-9]{0,17})$`)
	decimalPoint = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)
	decimalComma = regexp.MustCompile(`^-?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(\.[0-9]{3})+)(,[0-9]+)?$`)
	truth        = regexp.MustCompile(`^(?i:true|false|yes|no)$`)
	email        = regexp.MustCompile(`^[^@\s,;]+@[^@\s,;]+\.[^@\s,;]+$`)
)

// layouts that files have, the likelier first.
var layouts = []string{
	time.RFC3339, "2006-01-02", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006/01/02", "2006/01/02 15:04:05", "2006/1/2", "2006/1/2 15:04",
	"02.01.2006", "2.1.2006", "02.01.2006 15:04", "02/01/2006", "01/02/2006", "2/1/2006", "1/2/2006", "02/01/2006 15:04", "01/02/2006 15:04", "20060102", "2006年1月2日",
}

func lookAt(name string, index int, sample [][]string) *column {
	c := &column{name: name, kind: definition.TypeString}
	distinct := map[string]bool{}
	for _, fields := range sample {
		v := strings.TrimSpace(fields[index])
		c.spaces = c.spaces || v != fields[index]
		if v == "" {
			continue
		}
		c.values = append(c.values, v)
		distinct[v] = true
		if email.MatchString(v) {
			c.emails++
		}
	}
	c.distinct = len(distinct)
	c.guessType()
	return c
}

// guessType takes a type that every value has; nearly every one is a doubt.
func (c *column) guessType() {
	if len(c.values) == 0 {
		c.doubt = "empty in the rows that were looked at"
		return
	}
	try := func(fits func(string) bool) bool {
		n := 0
		for _, v := range c.values {
			if fits(v) {
				n++
			}
		}
		if n < len(c.values) && n*100 >= len(c.values)*95 {
			c.doubt = fmt.Sprintf("%d of %d values are no %%s, so it stays text", len(c.values)-n, len(c.values))
		}
		return n == len(c.values)
	}
	times := slices.Clone(layouts)
	times = slices.DeleteFunc(times, func(layout string) bool {
		return slices.ContainsFunc(c.values, func(v string) bool {
			t, err := time.Parse(layout, v)
			return err != nil || t.Year() < 1900 || t.Year() > 2200
		})
	})
	for _, kind := range []struct {
		kind, word string
		fits       func(string) bool
	}{
		{definition.TypeInt, "whole number", wholeNumber.MatchString}, {definition.TypeDecimal, "decimal number", decimalPoint.MatchString},
		{definition.TypeDecimal, "decimal number", decimalComma.MatchString}, {definition.TypeBool, "true or false", truth.MatchString},
	} {
		if len(times) > 0 && times[0] != "20060102" { // eight digits may be a number
			break
		}
		before := c.doubt
		if try(kind.fits) {
			c.kind, c.doubt = kind.kind, ""
			c.comma = kind.kind == definition.TypeDecimal && slices.ContainsFunc(c.values, func(v string) bool { return strings.Contains(v, ",") })
			return
		}
		if before != "" {
			c.doubt = before
		} else {
			c.doubt = strings.Replace(c.doubt, "%s", kind.word, 1)
		}
	}
	if len(times) > 0 {
		c.kind, c.layout, c.doubt = definition.TypeTime, times[0], ""
		for _, other := range times[1:] {
			if a, b := sampleTime(times[0], c.values), sampleTime(other, c.values); !a.Equal(b) {
				c.another = other
				break
			}
		}
	}
}

// sampleTime tells two layouts apart: the first value that they read differently.
func sampleTime(layout string, values []string) time.Time {
	var sum int64
	for _, v := range values {
		if t, err := time.Parse(layout, v); err == nil {
			sum = sum*31 + t.Unix()
		}
	}
	return time.Unix(sum, 0)
}

// squeezed is a name as it is compared: letters and digits in lower case.
func squeezed(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, name)
}

// Names that mean something, the surest first.
var (
	idNames = []string{"userid", "customerid", "memberid", "contactid", "subscriberid", "accountid", "personid", "customerno", "customernumber", "memberno", "user", "customer", "member",
		"uid", "uuid", "id", "会員番号", "会員id", "顧客番号", "顧客id", "ユーザーid", "会員", "kundennummer", "kundennr", "kundenid"}
	localeNames = []string{"locale", "language", "lang", "言語", "sprache"}
	zoneNames   = []string{"timezone", "tz", "タイムゾーン"}
)

func find(columns []*column, names []string, fits func(*column) bool) *column {
	for _, n := range names {
		for _, c := range columns {
			if squeezed(c.name) == n && fits(c) {
				return c
			}
		}
	}
	return nil
}

// named are the columns that a spec can name.
func named(header []string, sample [][]string) []*column {
	columns := make([]*column, 0, len(header))
	for i, name := range header {
		if strings.TrimSpace(name) != "" && !strings.ContainsRune(name, 0) && slices.Index(header, name) == i && !slices.Contains(header[i+1:], name) {
			columns = append(columns, lookAt(name, i, sample))
		}
	}
	return columns
}

// write writes the spec.
func write(id string, src definition.Source, columns []*column, sample [][]string) string {
	full := func(c *column) bool { return len(c.values)*100 >= len(sample)*99 }
	var mail *column
	for _, c := range columns {
		if c.emails > 0 && c.emails*10 >= len(c.values)*9 && (mail == nil || c.emails > mail.emails) {
			mail = c
		}
	}
	person := find(columns, idNames, func(c *column) bool { return len(c.values)*2 >= len(sample) })
	why := "its name says so"
	if person != nil && !full(person) {
		why += fmt.Sprintf("; %d of %d rows have none and would be rejected", len(sample)-len(person.values), len(sample))
	}
	if person == nil && mail != nil && full(mail) {
		person, why = mail, "there is no column that looks like an id, so a person is an e-mail address"
	}
	if person == nil {
		for _, c := range columns {
			if full(c) && c.distinct == len(c.values) {
				person, why = c, "every row has another value in it; please check"
				break
			}
		}
	}
	if person == nil {
		person, why = columns[0], "no column looks like an id: please choose"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Guessed from the first %d rows. Please read it, and see what it would do with hikyaku import plan FILE --spec-file THIS.\n", len(sample))
	fmt.Fprintf(&b, "kind: ImportSpec\nid: %s\nsource: {prefix: imports/%s/, format: %s", id, id, src.Format)
	if src.Format == definition.FormatCSV && src.Delimiter != "," {
		fmt.Fprintf(&b, ", delimiter: %s", quoted(src.Delimiter))
	}
	if src.Encoding != "" {
		fmt.Fprintf(&b, ", encoding: %s", src.Encoding)
	}
	b.WriteString("}\n")
	fmt.Fprintf(&b, "user_id: %s # %s\n", reference(person, false), why)
	profile := strings.Builder{}
	if mail != nil {
		fmt.Fprintf(&profile, "  addresses: {email: %s} # %d of %d values look like one\n", reference(mail, false), mail.emails, len(mail.values))
	}
	locale := find(columns, localeNames, func(*column) bool { return true })
	if locale != nil {
		fmt.Fprintf(&profile, "  locale: %s\n", reference(locale, false))
	}
	zone := find(columns, zoneNames, func(c *column) bool {
		return len(c.values) > 0 && !slices.ContainsFunc(c.values, func(v string) bool { _, err := time.LoadLocation(v); return err != nil || v == "Local" })
	})
	if zone != nil {
		fmt.Fprintf(&profile, "  time_zone: %s\n", reference(zone, false))
	}
	when := slices.IndexFunc(columns, func(c *column) bool { return c.kind == definition.TypeTime && full(c) })
	if several := person.distinct*10 < len(person.values)*9; several && when >= 0 {
		if profile.Len() > 0 {
			b.WriteString("profile:\n" + profile.String())
		}
		fmt.Fprintf(&b, "event: # because %d rows are about %d people and have a time; if they say what a person is like, make attributes of a profile of them\n", len(person.values), person.distinct)
		fmt.Fprintf(&b, "  name: %s\n  occurred_at: %s%s\n", quoted(id), reference(columns[when], true), ambiguity(columns[when]))
		values(&b, "properties", columns, person, mail, locale, zone, columns[when])
		return b.String()
	}
	values(&profile, "attributes", columns, person, mail, locale, zone)
	if profile.Len() == 0 {
		fmt.Fprintf(&profile, "  attributes: {%s: %s}\n", quoted(valueName(person.name)), reference(person, false))
	}
	b.WriteString("profile:\n" + profile.String())
	return b.String()
}

// ambiguity is the comment behind a time that could be another.
func ambiguity(c *column) string {
	if c.another == "" {
		return ""
	}
	return fmt.Sprintf(" # or is it %s? The values fit both", c.another)
}

func values(b *strings.Builder, what string, columns []*column, without ...*column) {
	first := true
	used := map[string]bool{}
	for _, c := range columns {
		if slices.Contains(without, c) {
			continue
		}
		if first {
			b.WriteString("  " + what + ":\n")
			first = false
		}
		name := valueName(c.name)
		for base, n := name, 2; used[name]; n++ {
			name = base + "_" + strconv.Itoa(n)
		}
		used[name] = true
		fmt.Fprintf(b, "    %s: %s", quoted(name), reference(c, true))
		b.WriteString(ambiguity(c))
		if c.doubt != "" {
			b.WriteString(" # " + c.doubt)
		}
		b.WriteByte('\n')
	}
}

// reference is where a value comes from.
func reference(c *column, typed bool) string {
	out := "{column: " + quoted(c.name)
	if typed && c.kind != definition.TypeString {
		out += ", type: " + c.kind
		if c.layout != "" && c.layout != time.RFC3339 {
			out += ", layout: " + quoted(c.layout) + ", zone: UTC"
		}
		if c.comma {
			out += ", decimal_comma: true"
		}
	}
	if c.spaces {
		out += ", trim: true"
	}
	return out + "}"
}

// valueName is a name that templates can write without quotes, where there is one.
func valueName(column string) string {
	name := strings.Trim(strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return '_'
	}, hump.ReplaceAllString(column, "${1}_${2}")), "_")
	for strings.Contains(name, "__") {
		name = strings.ReplaceAll(name, "__", "_")
	}
	if r := []rune(name); len(r) > 128 {
		name = string(r[:128])
	}
	if name == "" {
		return "column"
	}
	return name
}

var hump = regexp.MustCompile(`([a-z0-9])([A-Z])`) // of InvoiceDate

var plainWord = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*( [A-Za-z0-9_-]+)*$`)

// quoted is a text as YAML reads it.
func quoted(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "null", "y", "n":
	default:
		if plainWord.MatchString(s) {
			return s
		}
	}
	b, err := json.Marshal(s)
	if err != nil { // there is no such string
		return `""`
	}
	return strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&").Replace(string(b))
}
