package intake

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
)

// Keys are the write keys, each with the name that records carry in its stead.
type Keys []key

type key struct {
	name string
	hash [sha256.Size]byte
}

// DefaultKeyName is the name of a key that has none.
const DefaultKeyName = "default"

// ParseKeys reads "key", or "name:key,name:key". Several keys may share a name,
// so that one can be replaced while the other is still in use.
func ParseKeys(s string) (Keys, error) {
	var keys Keys
	for _, part := range strings.Split(s, ",") {
		name, text, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok {
			name, text = DefaultKeyName, name
		}
		if name == "" || text == "" {
			return nil, errors.New("a write key or its name is empty")
		}
		if len(name) > 64 {
			return nil, fmt.Errorf("the name of a write key is longer than 64 bytes")
		}
		keys = append(keys, key{name, sha256.Sum256([]byte(text))})
	}
	return keys, nil
}

// Name returns the name of a write key. It takes as long for one that is almost
// right as for any other: what is compared are hashes, all of them.
func (k Keys) Name(text string) (name string, ok bool) {
	hash := sha256.Sum256([]byte(text))
	for i := range k {
		if subtle.ConstantTimeCompare(k[i].hash[:], hash[:]) == 1 {
			name, ok = k[i].name, true
		}
	}
	return name, ok
}
