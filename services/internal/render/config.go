package render

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/services/internal/config"
)

// InsecureSecret is the tracking secret of a stack that nobody has configured.
// It is public, so services accept it only where they are told to.
const InsecureSecret = "insecure-development-secret"

// Config is where tracked links lead and what signs them. Whoever makes links
// and whoever checks them have the same.
type Config struct {
	URL      string        `env:"TRACKING_URL, default=http://127.0.0.1:8080" unit:"URL" help:"public address of the event-collector; links, pixels and unsubscribe pages lead there"`
	Secret   config.Secret `env:"TRACKING_SECRET, default=insecure-development-secret" help:"signs the links; one secret of at least 16 characters, or several as id:secret,id:secret: the ones that links already sent still need"`
	KeyID    string        `env:"TRACKING_KEY_ID, default=1" help:"id of the key that signs new links; a secret without an id belongs to this one"`
	Insecure bool          `env:"ALLOW_INSECURE_DEFAULTS, default=false" help:"accept the secrets that everybody knows; for a laptop"`
}

// Validate refuses a URL that no mail client could open and a public secret.
func (c Config) Validate() error {
	if u, err := url.Parse(c.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return config.Invalid("TRACKING_URL", c.URL, "a URL such as https://mail.example.com")
	}
	if !c.Insecure && strings.Contains(string(c.Secret), InsecureSecret) {
		return config.Invalid("TRACKING_SECRET", c.Secret, "a secret of your own (or ALLOW_INSECURE_DEFAULTS=true on a laptop): everybody knows the default")
	}
	if _, err := c.Keys(); err != nil {
		return config.Invalid("TRACKING_SECRET", c.Secret, fmt.Sprintf("secrets to sign with: %v", err))
	}
	return nil
}

// Keys returns the signing keys.
func (c Config) Keys() (*token.Keys, error) {
	secrets := map[string][]byte{}
	for _, part := range strings.Split(string(c.Secret), ",") {
		id, secret, ok := strings.Cut(part, ":")
		if !ok {
			id, secret = c.KeyID, part
		}
		secrets[strings.TrimSpace(id)] = []byte(strings.TrimSpace(secret))
	}
	return token.NewKeys(c.KeyID, secrets)
}
