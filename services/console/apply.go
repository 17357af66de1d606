package console

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/liquid"
)

func (a *app) applyCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "apply -f PATH", Short: "Write definitions from a file or a directory, all of them or none",
		Long: `apply reads every *.yaml and *.yml under PATH, checks everything, and puts what has changed in force in one
transaction. If anything is wrong nothing is written, and each fault is named with file, line and field.
Applying the same files again changes nothing.`,
		Example: "  hikyaku apply -f examples/online-retail", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.apply(cmd.Context(), path) },
	}
	cmd.Flags().StringVarP(&path, "file", "f", "", "file or directory of definitions")
	_ = cmd.MarkFlagRequired("file")
	return cmd
}

// applied is one line of what apply did.
type applied struct {
	Kind    string `json:"kind"`
	ID      string `json:"id"`
	Version int64  `json:"version"`
	Changed bool   `json:"changed"`
}

// settle ends what an apply that was killed has left open, so that the next one
// need not wait for the broker to give it up.
func (a *app) settle(ctx context.Context) error {
	c, err := a.kafka(ctx)
	if err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if err := definitions.Settle(patient, c); err != nil {
		return missing("the definitions cannot be written: %w", err)
	}
	return nil
}

func (a *app) apply(ctx context.Context, path string) error {
	engine := liquid.New(liquid.Options{})
	docs, err := definition.Load(path, definition.Options{ParseTemplate: engine.Check})
	if err != nil {
		return a.refuse(path, err)
	}
	if len(docs) == 0 {
		return usage("there are no definitions in %s (*.yaml, *.yml)", path)
	}
	if err := a.settle(ctx); err != nil {
		return err
	}
	store, err := a.definitions(ctx)
	if err != nil {
		return err
	}
	if err := definition.Validate(docs, known(store)); err != nil {
		return a.refuse(path, err)
	}
	changes := make([]definitions.Change, len(docs))
	for i, d := range docs {
		changes[i] = definitions.Change{Kind: d.Kind, ID: d.ID, Body: d.Body}
		if head, ok := store.Head(d.Kind, d.ID); ok {
			changes[i].ReplacesVersion = head.Number
		}
	}
	versions, err := definitions.Write(ctx, a.cluster, author(), changes)
	var conflict *definitions.Conflict
	switch {
	case errors.As(err, &conflict):
		return broken("nothing was applied: somebody else has just changed %s %s; look at it (hikyaku get %s) and apply again", conflict.Kind, conflict.ID, conflict.Kind)
	case err != nil:
		return err
	}
	out := make([]applied, len(versions))
	for i, v := range versions {
		out[i] = applied{v.Kind, v.ID, v.Number, v.Number != changes[i].ReplacesVersion}
	}
	if a.asJSON {
		return a.printJSON(map[string]any{"applied": out})
	}
	rows := make([][]string, len(out))
	for i, o := range out {
		state := "unchanged"
		if o.Changed {
			state = "applied"
		}
		rows[i] = []string{o.Kind, o.ID, strconv.FormatInt(o.Version, 10), state}
	}
	a.table([]string{"KIND", "ID", "VERSION", ""}, rows)
	return nil
}

// refuse reports everything that is wrong with the definitions.
func (a *app) refuse(path string, err error) error {
	var wrong definition.Errors
	if !errors.As(err, &wrong) {
		return usage("%w", err)
	}
	if a.asJSON {
		type faultLine struct {
			File       string `json:"file"`
			Line       int    `json:"line"`
			Column     int    `json:"column"`
			Field      string `json:"field"`
			Message    string `json:"message"`
			Expected   string `json:"expected"`
			Suggestion string `json:"suggestion"`
		}
		lines := make([]faultLine, len(wrong))
		for i, e := range wrong {
			lines[i] = faultLine{e.File, e.Line, e.Column, e.Field, e.Message, e.Expected, e.Suggestion}
		}
		if err := a.printJSON(map[string]any{"errors": lines}); err != nil {
			return err
		}
	} else {
		for _, e := range wrong {
			fmt.Fprintln(a.err, e)
		}
	}
	faults := "1 fault"
	if len(wrong) > 1 {
		faults = fmt.Sprintf("%d faults", len(wrong))
	}
	return usage("%s in %s; nothing was applied", faults, path)
}

// known reports whether something a definition refers to has been applied
// before. A segment exists as soon as an import spec fills it.
func known(store *definitions.Store) func(kind, id string) bool {
	return func(kind, id string) bool {
		if _, ok := store.Head(kind, id); ok {
			return true
		}
		if kind != definition.KindSegment {
			return false
		}
		for _, v := range store.All(definition.KindImportSpec) {
			if spec, err := definitions.Decode[*definition.ImportSpec](v); err == nil && spec.Segment != nil && spec.Segment.ID == id {
				return true
			}
		}
		return false
	}
}

// author says who applied, as a person would be found: user@host.
func author() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

func (a *app) getCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get KIND [ID]", Short: "List definitions in force, or show one",
		Long: `KIND is import-spec, audience, template, campaign, export or segment (which imports make it up); ImportSpec and campaigns are
understood too. With an ID the definition's body is shown. --json prints a list, or with an ID that one definition.`,
		Example: "  hikyaku get campaign\n  hikyaku get audience loyal\n  hikyaku get import-spec --json", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error { return a.get(cmd.Context(), args) },
	}
}

func (a *app) get(ctx context.Context, args []string) error {
	kind, err := kindNamed(args[0])
	if err != nil {
		return err
	}
	store, err := a.definitions(ctx)
	if err != nil {
		return err
	}
	type line struct {
		Kind      string `json:"kind"`
		ID        string `json:"id"`
		Version   int64  `json:"version"`
		AppliedAt string `json:"applied_at"`
		AppliedBy string `json:"applied_by"`
		Body      any    `json:"body,omitempty"`
	}
	lines := []line{} // an empty list is [], not null
	var ids []string
	for _, v := range store.All(kind) {
		ids = append(ids, v.ID)
		if len(args) == 2 && v.ID != args[1] {
			continue
		}
		l := line{v.Kind, v.ID, v.Number, v.AppliedAt.Format("2006-01-02T15:04:05Z07:00"), v.AppliedBy, nil}
		if len(args) == 2 || a.asJSON {
			l.Body = jsonText(v.Body)
		}
		lines = append(lines, l)
	}
	if len(args) == 2 && len(lines) == 0 {
		return unknown(kind, args[1], ids)
	}
	if a.asJSON {
		if len(args) == 2 {
			return a.printJSON(lines[0])
		}
		return a.printJSON(lines)
	}
	rows := make([][]string, len(lines))
	for i, l := range lines {
		rows[i] = []string{l.ID, strconv.FormatInt(l.Version, 10), l.AppliedAt, l.AppliedBy}
	}
	a.table([]string{"ID", "VERSION", "APPLIED", "BY"}, rows)
	if len(args) == 2 {
		fmt.Fprintln(a.out)
		return a.printIndented(lines[0].Body)
	}
	return nil
}

// kindNamed understands ImportSpec, import-spec, import_specs and the like.
func kindNamed(word string) (string, error) {
	kinds := append(definition.Kinds(), definition.KindSegment)
	plain := strings.TrimSuffix(strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(word)), "s")
	var words []string
	for _, k := range kinds {
		if plain == strings.ToLower(k) {
			return k, nil
		}
		words = append(words, kindWord(k))
	}
	if near := nearest(word, words); near != "" {
		return "", usage("unknown kind %q; did you mean %q?", word, near)
	}
	return "", usage("unknown kind %q; one of %s", word, strings.Join(words, ", "))
}

// kindWord is a kind as it is written on the command line.
func kindWord(kind string) string {
	if kind == definition.KindImportSpec {
		return "import-spec"
	}
	return strings.ToLower(kind)
}

// unknown says that there is no such definition, and which was perhaps meant.
func unknown(kind, id string, ids []string) error {
	if near := nearest(id, ids); near != "" {
		return usage("there is no %s %s; did you mean %q?", kindWord(kind), id, near)
	}
	return usage("there is no %s %s; hikyaku get %s lists them", kindWord(kind), id, kindWord(kind))
}

// inForce returns the version in force of what the user has named.
func inForce[D definition.Definition](store *definitions.Store, kind, id string) (D, definitions.Version, error) {
	head, ok := store.Head(kind, id)
	if !ok {
		var none D
		if why := store.Unreadable(kind, id, 0); why != "" {
			return none, head, usage("%s %s cannot be read; apply it again (%s)", kindWord(kind), id, why)
		}
		var ids []string
		for _, v := range store.All(kind) {
			ids = append(ids, v.ID)
		}
		return none, head, unknown(kind, id, ids)
	}
	def, err := definitions.Decode[D](head)
	return def, head, err
}
