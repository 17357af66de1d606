// Package token makes and checks the signed token that a provider or a mail
// echoes back to us: which message, to whom, of which run, on which channel.
// It is self-contained, so that the collector needs no store to read it, and
// deterministic, so that the same message always carries the same links.
//
// A token is base64url(payload ‖ MAC). The payload is a version byte, the
// purpose, the key id, message_id, run_id, in version 2 when the message was
// asked for (milliseconds since 1970 as a uvarint), channel, campaign_id, user_id
// and, for a link, its target; strings are preceded by their length as a uvarint.
// The MAC is the first 16 bytes of HMAC-SHA-256 over the payload. A token that
// does not know when its message was asked for is of version 1, as all were once.
package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/hikyaku/hikyaku/schemas/identity"
)

const (
	untimed  = 1 // the version byte of a token without a time
	timed    = 2 // and of one with it
	macBytes = 16
)

// Purpose keeps a token made for one thing from being used for another.
type Purpose byte

// What a token is for; the letters are those of the tracking paths.
const (
	Click       Purpose = 'c'
	Open        Purpose = 'o'
	Unsubscribe Purpose = 'u'
	// Echo is what a provider is given with a message and says in its reports. Who
	// reads the mail may see it: it opens nothing without the provider's signature.
	Echo Purpose = 'e'
)

// Token is what a link carries.
type Token struct {
	Purpose    Purpose
	MessageID  identity.ID
	RunID      identity.ID
	Channel    string
	CampaignID string
	UserID     string
	Target     string // Click: where the link leads; empty otherwise
	// RequestedAt is when the message was asked for, in whole milliseconds; zero if
	// the token does not say.
	RequestedAt time.Time
}

// ErrInvalid says that a token was not made by us, or was changed since.
var ErrInvalid = errors.New("token is not valid")

// Keys signs with one key and accepts any it knows. A key is kept as long as
// links signed with it may be followed. Keys is safe for concurrent use.
type Keys struct {
	current string
	pools   map[string]*sync.Pool // of *signer, keyed by key id
}

// NewKeys returns keys that sign with current. Every key id has its secret in
// secrets; an id is at most 255 bytes and a secret at least 16.
func NewKeys(current string, secrets map[string][]byte) (*Keys, error) {
	if _, ok := secrets[current]; !ok {
		return nil, fmt.Errorf("no secret for the signing key %q", current)
	}
	k := &Keys{current: current, pools: map[string]*sync.Pool{}}
	for id, secret := range secrets {
		if len(id) > 255 {
			return nil, fmt.Errorf("key id %q is longer than 255 bytes", id)
		}
		if len(secret) < 16 {
			return nil, fmt.Errorf("the secret of key %q is shorter than 16 bytes", id)
		}
		secret := slices.Clone(secret)
		k.pools[id] = &sync.Pool{New: func() any { return &signer{mac: hmac.New(sha256.New, secret)} }}
	}
	return k, nil
}

// Current returns the id of the key that new links are signed with.
func (k *Keys) Current() string { return k.current }

// Append appends the token's text, signed with the named key, to b. A message
// names the key it was requested with, so that it renders to the same bytes
// after the signing key has changed.
func (k *Keys) Append(b []byte, keyID string, t *Token) ([]byte, error) {
	pool, ok := k.pools[keyID]
	if !ok {
		return b, fmt.Errorf("no secret for the signing key %q", keyID)
	}
	s := pool.Get().(*signer)
	defer pool.Put(s)
	version, at := byte(untimed), int64(0)
	if !t.RequestedAt.IsZero() {
		if at = t.RequestedAt.UnixMilli(); at > 0 { // nothing was asked for before 1970
			version = timed
		}
	}
	p := append(s.payload[:0], version, byte(t.Purpose), byte(len(keyID)))
	p = append(p, keyID...)
	p = append(p, t.MessageID[:]...)
	p = append(p, t.RunID[:]...)
	if version == timed {
		p = binary.AppendUvarint(p, uint64(at))
	}
	for _, field := range [...]string{t.Channel, t.CampaignID, t.UserID, t.Target} {
		p = binary.AppendUvarint(p, uint64(len(field)))
		p = append(p, field...)
	}
	p = append(p, s.sign(p)...)
	s.payload = p
	return base64.RawURLEncoding.AppendEncode(b, p), nil
}

// Parse checks the text of a token and returns what it carries, or ErrInvalid.
func (k *Keys) Parse(purpose Purpose, text string) (*Token, error) {
	p, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(p) < 3+macBytes || p[0] != untimed && p[0] != timed {
		return nil, ErrInvalid
	}
	payload, mac := p[:len(p)-macBytes], p[len(p)-macBytes:]
	rest := payload[2:]
	idLen := int(rest[0])
	if len(rest) < 1+idLen+32 {
		return nil, ErrInvalid
	}
	pool, ok := k.pools[string(rest[1:1+idLen])]
	if !ok {
		return nil, ErrInvalid
	}
	s := pool.Get().(*signer)
	defer pool.Put(s)
	if !hmac.Equal(mac, s.sign(payload)) || Purpose(payload[1]) != purpose {
		return nil, ErrInvalid
	}
	rest = rest[1+idLen:]
	t := &Token{Purpose: purpose, MessageID: identity.ID(rest[:16]), RunID: identity.ID(rest[16:32])}
	rest = rest[32:]
	if payload[0] == timed {
		at, w := binary.Uvarint(rest)
		if w <= 0 || at == 0 || at > math.MaxInt64 {
			return nil, ErrInvalid
		}
		t.RequestedAt = time.UnixMilli(int64(at)).UTC()
		rest = rest[w:]
	}
	words := string(rest) // one allocation for all of them
	for _, s := range [...]*string{&t.Channel, &t.CampaignID, &t.UserID, &t.Target} {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return nil, ErrInvalid
		}
		*s = words[w : w+int(n)]
		rest, words = rest[w+int(n):], words[w+int(n):]
	}
	if len(rest) != 0 {
		return nil, ErrInvalid
	}
	return t, nil
}

// Sum returns a keyed hash of text: whoever does not have the key that signs can
// neither make it nor find the text by trying. What is signed begins with a
// version, so no sum is ever a signature.
func (k *Keys) Sum(text string) [sha256.Size]byte {
	pool := k.pools[k.current]
	s := pool.Get().(*signer)
	defer pool.Put(s)
	s.mac.Reset()
	s.payload = append(append(s.payload[:0], "sum "...), text...)
	s.mac.Write(s.payload)
	s.mac.Sum(s.sum[:0])
	return s.sum
}

// signer is what signing takes, kept for the next token.
type signer struct {
	mac     hash.Hash
	payload []byte
	sum     [sha256.Size]byte
}

// sign returns the MAC of a payload, valid until the next.
func (s *signer) sign(payload []byte) []byte {
	s.mac.Reset()
	s.mac.Write(payload)
	return s.mac.Sum(s.sum[:0])[:macBytes]
}
