package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

// A mutant whose text has moved on would switch nothing off.
func TestEveryMutantStillFitsItsFileAndNamesATestThatExists(t *testing.T) {
	t.Parallel()
	root, err := command.AboveHere()
	require.NoError(t, err)
	for _, m := range mutants() {
		text, err := os.ReadFile(filepath.Join(root, m.file))
		require.NoError(t, err)
		mutated, err := m.apply(string(text))
		require.NoError(t, err, m.breaks)
		require.NotEqual(t, string(text), mutated, m.breaks)
		_, err = parser.ParseFile(token.NewFileSet(), m.file, mutated, 0)
		require.NoError(t, err, m.breaks)
		tests, err := filepath.Glob(filepath.Join(root, m.module, m.pkg, "*_test.go"))
		require.NoError(t, err)
		found := false
		for _, path := range tests {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			found = found || strings.Contains(string(text), "\nfunc "+m.test+"(t *testing.T) {")
		}
		require.True(t, found, "%s %s has no %s", m.module, m.pkg, m.test)
	}
}

// The page says of every invariant where it is enforced and what fails without
// it; every invariant has a mutant, and every mutant's test is on the page.
func TestThePageOfInvariantsIsTrue(t *testing.T) {
	t.Parallel()
	root, err := command.AboveHere()
	require.NoError(t, err)
	page, err := os.ReadFile(filepath.Join(root, "docs", "invariants.md"))
	require.NoError(t, err)
	sections := map[string]string{}
	for _, section := range strings.Split(string(page), "\n## ")[1:] {
		name, _, ok := strings.Cut(section, " ")
		require.True(t, ok)
		sections[name] = section
	}
	require.Len(t, sections, 10)
	has := map[string]bool{}
	for _, m := range mutants() {
		has[m.invariant] = true
		require.Contains(t, sections[m.invariant], m.file, m.breaks)
		require.Contains(t, sections[m.invariant], m.test, m.breaks)
	}
	require.Len(t, has, len(sections))
	for _, s := range regexp.MustCompile("`([a-z0-9/_.-]+\\.go): ([A-Za-z]+)`").FindAllStringSubmatch(string(page), -1) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, s[1]), nil, 0)
		require.NoError(t, err)
		found := false
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			found = found || ok && fn.Name.Name == s[2]
		}
		require.True(t, found, "%s has no function %s", s[1], s[2])
	}
}

func TestAMutantMustFitExactlyOnce(t *testing.T) {
	t.Parallel()
	m := mutant{old: "a", new: "b"}
	got, err := m.apply("xay")
	require.NoError(t, err)
	require.Equal(t, "xby", got)
	for _, text := range []string{"xyz", "aa"} {
		_, err := m.apply(text)
		require.Error(t, err)
	}
}
