package config_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"

	"github.com/hikyaku/hikyaku/services/internal/config"
)

type Kafka struct {
	Brokers []string      `env:"KAFKA_BROKERS, default=127.0.0.1:9092,127.0.0.1:9093" help:"where the brokers listen"`
	Session time.Duration `env:"KAFKA_SESSION_TIMEOUT, default=15s" help:"how long a dead member is waited for"`
}

func (k Kafka) Validate() error {
	if k.Session < time.Second {
		return config.Invalid("KAFKA_SESSION_TIMEOUT", k.Session, "at least 1s")
	}
	return nil
}

type settings struct {
	Kafka
	Window   int           `env:"WINDOW, default=20000" unit:"messages" help:"waiting per run"`
	Password config.Secret `env:"SMTP_PASSWORD, default=hunter2" help:"of the user"`
	Level    slog.Level    `env:"LOG_LEVEL, default=info" unit:"debug, info, warn or error"`
	Bucket   string        `env:"S3_BUCKET, required" help:"where files are dropped"`
	Insecure bool          `env:"ALLOW_INSECURE_DEFAULTS, default=false"`
}

func (s settings) Validate() error {
	if s.Password == "wrong" {
		return config.Invalid("SMTP_PASSWORD", s.Password, "another one")
	}
	return nil
}

func load(env map[string]string) (settings, error) {
	return config.Load[settings](context.Background(), envconfig.MapLookuper(env))
}

func TestDefaultsAndValues(t *testing.T) {
	c, err := load(map[string]string{"S3_BUCKET": "b", "WINDOW": "", "LOG_LEVEL": "debug"})
	if err != nil {
		t.Fatal(err)
	}
	if c.Window != 20000 || c.Kafka.Session != 15*time.Second || len(c.Kafka.Brokers) != 2 || c.Level != slog.LevelDebug {
		t.Errorf("got %+v", c)
	}
}

func TestABadValueIsNamedWithItsVariableAndWhatWasExpected(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		want []string
	}{
		{map[string]string{"S3_BUCKET": "b", "KAFKA_SESSION_TIMEOUT": "15"}, []string{"KAFKA_SESSION_TIMEOUT", `"15"`, "a duration such as", "how long a dead member"}},
		{map[string]string{"S3_BUCKET": "b", "WINDOW": "many"}, []string{"WINDOW", `"many"`, "messages"}},
		{map[string]string{"S3_BUCKET": "b", "LOG_LEVEL": "loud"}, []string{"LOG_LEVEL", `"loud"`, "debug, info, warn or error"}},
		{map[string]string{"S3_BUCKET": "b", "ALLOW_INSECURE_DEFAULTS": "maybe"}, []string{"ALLOW_INSECURE_DEFAULTS", `"maybe"`, "true or false"}},
		{map[string]string{}, []string{"S3_BUCKET", "where files are dropped", "no default"}},
		{map[string]string{"S3_BUCKET": ""}, []string{"S3_BUCKET", "no default"}},
		{map[string]string{"S3_BUCKET": "b", "KAFKA_SESSION_TIMEOUT": "15ms"}, []string{"KAFKA_SESSION_TIMEOUT", `"15ms"`, "at least 1s"}},
	} {
		_, err := load(c.env)
		if err == nil {
			t.Errorf("%v: accepted", c.env)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %q lacks %q", c.env, err, want)
			}
		}
	}
}

func TestEverythingInvalidIsReportedOnceAndTogether(t *testing.T) {
	env := map[string]string{"S3_BUCKET": "b", "KAFKA_SESSION_TIMEOUT": "15ms", "SMTP_PASSWORD": "wrong"}
	_, err := load(env)
	if err == nil || strings.Count(err.Error(), "KAFKA_SESSION_TIMEOUT") != 1 || strings.Count(err.Error(), "SMTP_PASSWORD") != 1 {
		t.Errorf("got %v", err)
	}
	type lent struct{ Kafka } // has the method of what it embeds
	if _, err := config.Load[lent](context.Background(), envconfig.MapLookuper(env)); err == nil || strings.Count(err.Error(), "KAFKA_SESSION_TIMEOUT") != 1 {
		t.Errorf("got %v", err)
	}
}

func TestSecretsAreHiddenEverywhere(t *testing.T) {
	c, err := load(map[string]string{"S3_BUCKET": "b", "SMTP_PASSWORD": "correct horse"})
	if err != nil {
		t.Fatal(err)
	}
	if string(c.Password) != "correct horse" {
		t.Fatalf("the secret itself is %q", string(c.Password))
	}
	asJSON, _ := json.Marshal(struct{ P config.Secret }{c.Password})
	var log, help, doc strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "config", c.Password)
	config.Help(&help, "sender", settings{})
	config.Markdown(&doc, []config.Documented{{Service: "sender", Config: settings{}}})
	_, bad := load(map[string]string{"S3_BUCKET": "b", "SMTP_PASSWORD": "wrong"})
	for where, text := range map[string]string{
		"%v": fmt.Sprintf("%v", c), "%+v": fmt.Sprintf("%+v", c), "%#v": fmt.Sprintf("%#v", c.Password), "%s": fmt.Sprintf("%s", c.Password), //nolint:staticcheck // what %s makes of it is what is tested
		"json": string(asJSON), "slog": log.String(), "help": help.String(), "markdown": doc.String(), "error": bad.Error(),
	} {
		if strings.Contains(text, "correct horse") || strings.Contains(text, "hunter2") || strings.Contains(text, "wrong") {
			t.Errorf("%s shows the secret: %s", where, text)
		}
	}
}

func TestHelpNamesEveryVariableWithDefaultUnitAndMeaning(t *testing.T) {
	var b strings.Builder
	config.Help(&b, "sender", settings{})
	for _, want := range [][]string{
		{"KAFKA_BROKERS", "127.0.0.1:9092,127.0.0.1:9093", "list", "where the brokers listen"},
		{"KAFKA_SESSION_TIMEOUT", "15s", "duration"},
		{"WINDOW", "20000", "messages", "waiting per run"},
		{"SMTP_PASSWORD", "…", "secret"},
		{"S3_BUCKET", "required"},
		{"ALLOW_INSECURE_DEFAULTS", "false", "true or false"},
	} {
		found := false
		for line := range strings.Lines(b.String()) {
			ok := strings.HasPrefix(line, want[0]+" ")
			for _, w := range want {
				ok = ok && strings.Contains(line, w)
			}
			found = found || ok
		}
		if !found {
			t.Errorf("no line with %q in:\n%s", want, b.String())
		}
	}
}

func TestMarkdownListsSharedVariablesOnce(t *testing.T) {
	type a struct {
		Kafka
		Own  int `env:"OWN, default=1" unit:"rows|lines"`
		Port int `env:"PORT, default=1"`
	}
	type b struct {
		Kafka
		Port int `env:"PORT, default=2"`
	}
	var w strings.Builder
	config.Markdown(&w, []config.Documented{{Service: "a", Config: a{}}, {Service: "b", Config: b{}}})
	got := w.String()
	if strings.Count(got, "`KAFKA_BROKERS`") != 1 || strings.Count(got, "`PORT`") != 2 || !strings.Contains(got, "| all |") || !strings.Contains(got, `rows\|lines`) {
		t.Errorf("got:\n%s", got)
	}
}

func TestFindPicksASettingsStructOutOfAService(t *testing.T) {
	c := settings{Kafka: Kafka{Session: time.Minute}}
	type outer struct{ Inner settings }
	if k, ok := config.Find[settings](outer{c}); !ok || k.Kafka.Session != time.Minute {
		t.Errorf("got %+v, %v", k, ok)
	}
	if _, ok := config.Find[time.Time](c); ok {
		t.Error("found what is not there")
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{"localhost": true, "127.0.0.1": true, "127.8.0.1": true, "::1": true, "": false, "0.0.0.0": false, "::": false, "10.0.0.1": false, "localhost.example": false} {
		if got := config.Loopback(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}
