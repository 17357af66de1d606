package kafka

import (
	"net/url"
	"regexp"
	"time"

	"github.com/hikyaku/hikyaku/services/internal/config"
)

// Config is where Kafka and the Schema Registry are, and who this instance is.
type Config struct {
	Brokers     []string `env:"KAFKA_BROKERS, default=127.0.0.1:9092" unit:"host:port, comma-separated" help:"brokers to ask for the rest of the cluster"`
	RegistryURL string   `env:"SCHEMA_REGISTRY_URL, default=http://127.0.0.1:8081" unit:"URL" help:"Schema Registry"`

	RegisterSchemas bool   `env:"REGISTER_SCHEMAS, default=true" help:"register schemas at start; when false they are only looked up"`
	Namespace       string `env:"NAMESPACE, default=hikyaku" help:"prefix of topics, groups, transactional ids, the database and the S3 prefix"`
	Instance        string `env:"INSTANCE, default=0" help:"name of this instance among those of its service; must be the same after a restart and differ from the others'"`

	SessionTimeout time.Duration `env:"KAFKA_SESSION_TIMEOUT, default=15s" help:"how long a silent instance keeps its partitions"`
	Compression    string        `env:"KAFKA_COMPRESSION, default=lz4" unit:"none, lz4 or zstd" help:"how records are compressed on the wire and in the log"`

	DeadLettersPerMinute int `env:"DEAD_LETTERS_PER_MINUTE, default=100" unit:"records" help:"more dead letters than this within a minute stop the service: the fault is then ours, not the records'"`
}

var (
	namespacePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)
	instancePattern  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
)

// Validate refuses settings that no cluster would accept.
func (c Config) Validate() error {
	if len(c.Brokers) == 0 {
		return config.Invalid("KAFKA_BROKERS", "", "at least one host:port")
	}
	if u, err := url.Parse(c.RegistryURL); err != nil || u.Host == "" {
		return config.Invalid("SCHEMA_REGISTRY_URL", c.RegistryURL, "a URL such as http://127.0.0.1:8081")
	}
	if !namespacePattern.MatchString(c.Namespace) {
		return config.Invalid("NAMESPACE", c.Namespace, "lower-case letters, digits, '.' and '-'")
	}
	if !instancePattern.MatchString(c.Instance) {
		return config.Invalid("INSTANCE", c.Instance, "letters, digits, '.', '_' and '-'")
	}
	if c.SessionTimeout < time.Second || c.SessionTimeout > time.Minute {
		return config.Invalid("KAFKA_SESSION_TIMEOUT", c.SessionTimeout, "a duration from 1s to 1m")
	}
	if _, ok := compressions[c.Compression]; !ok {
		return config.Invalid("KAFKA_COMPRESSION", c.Compression, "none, lz4 or zstd")
	}
	if c.DeadLettersPerMinute < 1 {
		return config.Invalid("DEAD_LETTERS_PER_MINUTE", c.DeadLettersPerMinute, "a number above 0")
	}
	return nil
}
