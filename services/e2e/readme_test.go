package e2e

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
)

// Whoever follows a message through the README finds every function it names.
func TestREADMENamesFunctionsThatExist(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	steps := regexp.MustCompile("`([a-z0-9/_.-]+\\.go): ([A-Za-z]+)`").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, steps)
	require.LessOrEqual(t, len(steps), 15)
	for _, s := range steps {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, s[1]), nil, 0)
		require.NoError(t, err)
		found := false
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == s[2] {
				found = true
			}
		}
		require.True(t, found, "%s has no function %s", s[1], s[2])
	}
	for _, link := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(string(readme), -1) {
		_, err := os.Stat(filepath.Join(root, strings.TrimSpace(link[1])))
		require.NoError(t, err, link[1])
	}
}
