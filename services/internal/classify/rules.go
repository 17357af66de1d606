package classify

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// A version that was released is never edited: a change is a new directory.
//
//go:embed rules
var released embed.FS

// All returns the classifiers that this binary knows, the oldest first. The last
// is the one to go by; those before it are kept so that what people read can go by
// them again.
func All() ([]*Classifier, error) {
	directories, err := released.ReadDir("rules")
	if err != nil {
		return nil, err
	}
	all := make([]*Classifier, 0, len(directories))
	for _, d := range directories {
		rules, err := released.ReadFile(path.Join("rules", d.Name(), "rules.yaml"))
		if err != nil {
			return nil, err
		}
		list, err := released.ReadFile(path.Join("rules", d.Name(), "crawlers.txt"))
		if err != nil {
			return nil, err
		}
		c, err := Parse(rules, list)
		if err != nil {
			return nil, fmt.Errorf("version %s: %w", d.Name(), err)
		}
		if strconv.FormatUint(uint64(c.version), 10) != d.Name() {
			return nil, fmt.Errorf("the rules of version %d lie in the directory of version %s", c.version, d.Name())
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *Classifier) int { return cmp.Compare(a.version, b.version) })
	return all, nil
}

// rule is a rule of the file, ready to be asked.
type rule struct {
	name, label              string
	kinds, methods, purposes []string
	agents, agentsNot        *regexp.Regexp
	agentsAre                []string
	crawlers                 bool
	networks                 []netip.Prefix
	below                    time.Duration
}

// file is a rules.yaml, which says what its fields mean.
type file struct {
	Version uint32      `yaml:"version"`
	Rules   []ruleInput `yaml:"rules"`
}

type ruleInput struct {
	Name      string   `yaml:"name"`
	Label     string   `yaml:"label"`
	Kinds     []string `yaml:"kinds"`
	Methods   []string `yaml:"methods"`
	Purposes  []string `yaml:"purposes"`
	Agents    []string `yaml:"agents"`
	AgentsNot []string `yaml:"agents_not"`
	AgentsAre []string `yaml:"agents_are"`
	Crawlers  bool     `yaml:"crawlers"`
	Networks  []string `yaml:"networks"`
	Below     string   `yaml:"below"`
	Why       string   `yaml:"why"`
	Source    string   `yaml:"source"`
}

// Parse reads a file of rules and a list of crawlers.
func Parse(rules, list []byte) (*Classifier, error) {
	var f file
	if err := yaml.UnmarshalWithOptions(rules, &f, yaml.DisallowUnknownField()); err != nil {
		return nil, fmt.Errorf("reading the rules: %w", err)
	}
	if f.Version == 0 || len(f.Rules) == 0 || len(f.Rules) > maxRules {
		return nil, fmt.Errorf("rules have a version above 0 and are 1 to %d, not version %d and %d rules", maxRules, f.Version, len(f.Rules))
	}
	known, err := parseCrawlers(list)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%d %d\n", len(rules), len(list))
	sum.Write(rules)
	sum.Write(list)
	c := &Classifier{version: f.Version, sha256: hex.EncodeToString(sum.Sum(nil)), crawlers: known, agents: map[string]mask{}}
	for _, in := range f.Rules {
		r, err := in.rule()
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", in.Name, err)
		}
		if slices.ContainsFunc(c.rules, func(other rule) bool { return other.name == r.name }) {
			return nil, fmt.Errorf("there are two rules %q", r.name)
		}
		c.rules = append(c.rules, r)
	}
	return c, nil
}

func (in *ruleInput) rule() (rule, error) {
	r := rule{name: in.Name, label: in.Label, kinds: in.Kinds, methods: in.Methods, purposes: in.Purposes, agentsAre: in.AgentsAre, crawlers: in.Crawlers}
	if in.Name == "" || in.Why == "" || in.Source == "" {
		return r, errors.New("a rule has a name, a why and a source")
	}
	if in.Label != Human && in.Label != Machine && in.Label != Unknown {
		return r, fmt.Errorf("the label is %s, %s or %s, not %q", Human, Machine, Unknown, in.Label)
	}
	var err error
	if r.agents, err = anyOf(in.Agents); err != nil {
		return r, err
	}
	if r.agentsNot, err = anyOf(in.AgentsNot); err != nil {
		return r, err
	}
	for _, text := range in.Networks {
		p, err := netip.ParsePrefix(text)
		if err != nil || p != p.Masked() {
			return r, fmt.Errorf("%q is no network", text)
		}
		r.networks = append(r.networks, p)
	}
	if in.Below != "" {
		if r.below, err = time.ParseDuration(in.Below); err != nil || r.below <= 0 {
			return r, fmt.Errorf("below is a time such as 2s, not %q", in.Below)
		}
	}
	if r.agents == nil && len(r.agentsAre) == 0 && !r.crawlers && len(r.networks) == 0 && r.below == 0 &&
		len(r.kinds)+len(r.methods)+len(r.purposes) == 0 {
		return r, errors.New("it would hold for every hit")
	}
	return r, nil
}

// anyOf is one expression that matches what any of the list does; nil for none.
func anyOf(list []string) (*regexp.Regexp, error) {
	if len(list) == 0 {
		return nil, nil
	}
	for _, text := range list {
		if _, err := regexp.Compile(text); err != nil {
			return nil, err
		}
	}
	return regexp.Compile("(?i)(?:" + strings.Join(list, ")|(?:") + ")")
}

// takes reports whether what the rule asks of the user agent holds.
func (r *rule) takes(agent string, known *crawlers) bool {
	return (len(r.agentsAre) == 0 || slices.Contains(r.agentsAre, agent)) &&
		(r.agents == nil || r.agents.MatchString(agent)) &&
		(r.agentsNot == nil || !r.agentsNot.MatchString(agent)) &&
		(!r.crawlers || known.match(agent))
}

// crawlers is the list of crawlers. Most of its lines are plain words, which are
// looked for as such.
type crawlers struct {
	words []string
	rest  *regexp.Regexp
}

func parseCrawlers(list []byte) (*crawlers, error) {
	var c crawlers
	var rest []string
	for line := range bytes.Lines(list) {
		text := strings.TrimRight(string(line), "\r\n")
		if text == "" || text[0] == '#' {
			continue
		}
		parsed, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			return nil, fmt.Errorf("reading the list of crawlers: %q: %w", text, err)
		}
		if parsed.Op == syntax.OpLiteral && parsed.Flags&syntax.FoldCase == 0 {
			c.words = append(c.words, string(parsed.Rune))
		} else {
			rest = append(rest, text)
		}
	}
	if len(rest) > 0 {
		var err error
		if c.rest, err = regexp.Compile("(?:" + strings.Join(rest, ")|(?:") + ")"); err != nil {
			return nil, fmt.Errorf("reading the list of crawlers: %w", err)
		}
	}
	return &c, nil
}

func (c *crawlers) match(agent string) bool {
	for _, w := range c.words {
		if strings.Contains(agent, w) {
			return true
		}
	}
	return c.rest != nil && c.rest.MatchString(agent)
}
