package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"

	resolver "github.com/hikyaku/hikyaku/services/audience-resolver"
	"github.com/hikyaku/hikyaku/services/console"
	collector "github.com/hikyaku/hikyaku/services/event-collector"
	"github.com/hikyaku/hikyaku/services/importer"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/provision"
	"github.com/hikyaku/hikyaku/services/renderer"
	"github.com/hikyaku/hikyaku/services/sender"
)

func composeProject(t *testing.T) *types.Project {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	o, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")}, cli.WithWorkingDirectory(root), cli.WithProfiles([]string{"*"}))
	require.NoError(t, err)
	p, err := o.LoadProject(context.Background())
	require.NoError(t, err)
	return p
}

// There is no Docker engine where this is built, so the file is checked as far
// as it can be without one: it is valid, complete, builds what exists, and sets
// no variable that nobody reads.
func TestComposeFileDescribesThePipeline(t *testing.T) {
	t.Parallel()
	p := composeProject(t)
	for _, name := range []string{"kafka", "schema-registry", "clickhouse", "s3", "mail", "provision", "importer", "audience-resolver", "renderer", "sender", "event-collector"} {
		require.Contains(t, p.Services, name)
	}
	programs := map[string]bool{}
	for name, s := range p.Services {
		if s.Build == nil {
			require.NotEmpty(t, s.Image, name)
			require.NotContains(t, s.Image, "latest", "%s: a version", name)
			continue
		}
		_, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile))
		require.NoError(t, err, name)
		program := *s.Build.Args["PROGRAM"]
		_, err = os.Stat(filepath.Join(s.Build.Context, program, "main.go"))
		require.NoError(t, err, name)
		require.False(t, programs[program], "%s builds %s a second time", name, program)
		programs[program] = true
	}
	for name, s := range p.Services {
		for dependency, d := range s.DependsOn {
			if d.Condition == types.ServiceConditionHealthy {
				require.NotNil(t, p.Services[dependency].HealthCheck, "%s waits for the health of %s, which has no check", name, dependency)
			}
		}
	}
}

// What a collector has acknowledged while Kafka was away is on its disk and nowhere else; a container's
// own disk goes with it.
func TestComposeKeepsTheSpoolOnAVolume(t *testing.T) {
	t.Parallel()
	p := composeProject(t)
	dockerfile, err := os.ReadFile("../../deploy/docker/Dockerfile")
	require.NoError(t, err)
	data := regexp.MustCompile(`(?m)^ENV HIKYAKU_DATA=(.+)$`).FindStringSubmatch(string(dockerfile))
	require.Len(t, data, 2)
	collector := p.Services["event-collector"]
	require.NotContains(t, collector.Environment, "HIKYAKU_DATA")
	require.NotContains(t, collector.Environment, "SPOOL_DIR")
	kept := slices.ContainsFunc(collector.Volumes, func(v types.ServiceVolumeConfig) bool { return v.Type == "volume" && v.Target == data[1] })
	require.True(t, kept, "%s is on no volume", data[1])
}

func TestComposeSetsOnlyWhatIsRead(t *testing.T) {
	t.Parallel()
	var help bytes.Buffer
	type provisioning struct {
		Provision  provision.Config
		Kafka      kafka.Config
		ClickHouse clickhouse.Config
	}
	for _, c := range []any{importer.Config{}, resolver.Config{}, renderer.Config{}, sender.Config{}, collector.Config{}, console.Config{}, provisioning{}} {
		config.Help(&help, "", c)
	}
	read := map[string]bool{}
	for _, name := range regexp.MustCompile(`\b[A-Z][A-Z0-9_]{3,}\b`).FindAllString(help.String(), -1) {
		read[name] = true
	}
	p := composeProject(t)
	var unread []string
	for name, s := range p.Services {
		if s.Build == nil || name == "mail" {
			continue
		}
		for variable := range s.Environment {
			if !read[variable] {
				unread = append(unread, fmt.Sprintf("%s: %s", name, variable))
			}
		}
	}
	slices.Sort(unread)
	require.Empty(t, unread)
}
