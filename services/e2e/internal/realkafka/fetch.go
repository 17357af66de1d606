// Package realkafka runs one broker of Apache Kafka as a child process, for tests
// and for scripts/kafka. It fetches the broker with Maven, formats its storage and
// knows when it serves. It can be killed and started again on the same data.
package realkafka

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// MissingError says what this machine lacks and what would mend it.
type MissingError struct{ reason string }

func (e *MissingError) Error() string { return e.reason }

func missing(format string, a ...any) error { return &MissingError{fmt.Sprintf(format, a...)} }

// minJava is the oldest Java that the broker runs on.
const minJava = 17

// Folder is where Kafka is kept in a checkout, outside git.
func Folder(root string) string { return filepath.Join(root, ".kafka") }

// Version is the version of Kafka that a checkout asks for.
func Version(root string) (string, error) {
	text, err := os.ReadFile(pom(root))
	if err != nil {
		return "", fmt.Errorf("reading which Kafka is wanted: %w", err)
	}
	var project struct {
		Properties struct {
			Version string `xml:"kafka.version"`
		} `xml:"properties"`
	}
	if err := xml.Unmarshal(text, &project); err != nil {
		return "", fmt.Errorf("reading which Kafka is wanted from %s: %w", pom(root), err)
	}
	if project.Properties.Version == "" {
		return "", fmt.Errorf("reading which Kafka is wanted: %s has no property kafka.version", pom(root))
	}
	return project.Properties.Version, nil
}

func pom(root string) string { return filepath.Join(root, "deploy", "kafka", "pom.xml") }

// Libraries is the folder of jars if they have been fetched already; otherwise, or
// without Java, a *MissingError. It asks nobody outside this machine.
func Libraries(root string) (string, error) {
	if _, err := java(); err != nil {
		return "", err
	}
	version, err := Version(root)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(Folder(root), "libs-"+version)
	if _, err := os.Stat(dir); err != nil {
		return "", missing("Apache Kafka %s has not been fetched; run scripts/kafka --fetch", version)
	}
	return dir, nil
}

// Fetch returns the folder of jars, which it makes with Maven if it is not there:
// about 130 MB. What Maven says goes to log. A *MissingError says that Java or Maven
// is not installed, or that Maven could not reach its repository.
func Fetch(ctx context.Context, root string, log io.Writer) (string, error) {
	dir, err := Libraries(root)
	var lacks *MissingError
	if err == nil || !errors.As(err, &lacks) {
		return dir, err
	}
	if _, err := java(); err != nil {
		return "", err
	}
	mvn, err := exec.LookPath("mvn")
	if err != nil {
		return "", missing("mvn is not installed; Maven fetches Apache Kafka (install maven, or set KAFKA_BROKERS to a broker that runs already)")
	}
	version, err := Version(root)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(Folder(root), 0o755); err != nil {
		return "", fmt.Errorf("fetching Apache Kafka: %w", err)
	}
	// Renamed when it is whole, so that what is found is whole.
	half, err := os.MkdirTemp(Folder(root), "fetching-")
	if err != nil {
		return "", fmt.Errorf("fetching Apache Kafka: %w", err)
	}
	defer os.RemoveAll(half)
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, mvn, "--batch-mode", "--no-transfer-progress", "--file", pom(root),
		"dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory="+half)
	cmd.Stdout = io.MultiWriter(&said, log)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		return "", missing("Maven could not fetch Apache Kafka %s (its repository must be reachable, or mirrored in its settings): %s", version, firstError(said.String()))
	}
	dir = filepath.Join(Folder(root), "libs-"+version)
	if err := os.Rename(half, dir); err != nil {
		if _, other := os.Stat(dir); other == nil {
			return dir, nil // somebody else fetched it meanwhile
		}
		return "", fmt.Errorf("fetching Apache Kafka: %w", err)
	}
	return dir, nil
}

// firstError is the first complaint in what Maven said.
func firstError(said string) string {
	for line := range strings.Lines(said) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "[ERROR] "); ok {
			return text
		}
	}
	return "it did not say why"
}

var javaVersion = regexp.MustCompile(`version "(\d+)`)

// java is the program, from JAVA_HOME or the path, if it is new enough.
func java() (string, error) {
	program := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		program = filepath.Join(home, "bin", "java")
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", missing("java is not installed; Apache Kafka needs version %d or later (install it, or set JAVA_HOME)", minJava)
	}
	said, err := exec.Command(path, "-version").CombinedOutput()
	if err != nil {
		return "", missing("%s -version: %v; Apache Kafka needs Java %d or later (install it, or set JAVA_HOME)", path, err, minJava)
	}
	m := javaVersion.FindSubmatch(said)
	if m == nil {
		return "", missing("%s does not say its version; Apache Kafka needs Java %d or later (install it, or set JAVA_HOME)", path, minJava)
	}
	if v, _ := strconv.Atoi(string(m[1])); v < minJava {
		return "", missing("%s is version %d; Apache Kafka needs Java %d or later (install it, or set JAVA_HOME)", path, v, minJava)
	}
	return path, nil
}
