package token_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
)

func keys(t testing.TB) *token.Keys {
	t.Helper()
	k, err := token.NewKeys("k2", map[string][]byte{"k1": []byte("an older secret, still accepted"), "k2": []byte("the secret that signs today")})
	require.NoError(t, err)
	return k
}

func sample() token.Token {
	return token.Token{Purpose: token.Click, MessageID: identity.Hash("m"), RunID: identity.Hash("r"), Channel: "email",
		CampaignID: "thanks-2011", UserID: "ユーザー 1", Target: "https://example.test/?a=1&b=2"}
}

func TestTokenRoundTrip(t *testing.T) {
	t.Parallel()
	k, want := keys(t), sample()
	for _, id := range []string{"k1", "k2"} {
		text, err := k.Append(nil, id, &want)
		require.NoError(t, err)
		again, err := k.Append(nil, id, &want)
		require.NoError(t, err)
		require.Equal(t, text, again, "the same message carries the same link")
		got, err := k.Parse(token.Click, string(text))
		require.NoError(t, err)
		require.Equal(t, want, *got)
	}
}

// A link that was changed in any character leads nowhere.
func TestChangedTokenIsRefused(t *testing.T) {
	t.Parallel()
	k, tok := keys(t), sample()
	b, err := k.Append(nil, "k2", &tok)
	require.NoError(t, err)
	text := string(b)
	for i := range text {
		for _, c := range "Ab9_-" {
			changed := text[:i] + string(c) + text[i+1:]
			if changed == text {
				continue
			}
			_, err := k.Parse(token.Click, changed)
			require.ErrorIs(t, err, token.ErrInvalid, "character %d as %c", i, c)
		}
	}
	for _, bad := range []string{"", "=", text[1:], text[:len(text)-1], text + "A", strings.Repeat("A", 100)} {
		_, err := k.Parse(token.Click, bad)
		require.ErrorIs(t, err, token.ErrInvalid)
	}
	_, err = k.Parse(token.Unsubscribe, text)
	require.ErrorIs(t, err, token.ErrInvalid, "a click is no unsubscription")
}

func TestTokenOfAnUnknownKeyIsRefused(t *testing.T) {
	t.Parallel()
	tok := sample()
	other, err := token.NewKeys("k3", map[string][]byte{"k3": []byte("somebody else's secret")})
	require.NoError(t, err)
	b, err := other.Append(nil, "k3", &tok)
	require.NoError(t, err)
	_, err = keys(t).Parse(token.Click, string(b))
	require.ErrorIs(t, err, token.ErrInvalid)
}

func FuzzParse(f *testing.F) {
	k, tok := keys(f), sample()
	b, err := k.Append(nil, "k2", &tok)
	require.NoError(f, err)
	f.Add(string(b))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := k.Parse(token.Click, text); err == nil {
			again, err := k.Append(nil, "k2", got)
			require.NoError(t, err)
			if string(again) != text {
				again, err = k.Append(nil, "k1", got)
				require.NoError(t, err)
			}
			require.Equal(t, text, string(again))
		}
	})
}

// What a provider echoes is good for that alone, and fits where providers have
// room for it: SES takes tags of 256 letters, digits, - and _.
func TestEchoIsNoLink(t *testing.T) {
	t.Parallel()
	k := keys(t)
	want := token.Token{Purpose: token.Echo, MessageID: identity.Hash("m"), RunID: identity.Hash("r"), Channel: "email", CampaignID: "thanks-2011", UserID: "customer-0000012347"}
	text, err := k.Append(nil, "k2", &want)
	require.NoError(t, err)
	require.Regexp(t, `^[A-Za-z0-9_-]{1,256}$`, string(text))
	got, err := k.Parse(token.Echo, string(text))
	require.NoError(t, err)
	require.Equal(t, want, *got)
	for _, other := range []token.Purpose{token.Click, token.Open, token.Unsubscribe} {
		_, err := k.Parse(other, string(text))
		require.ErrorIs(t, err, token.ErrInvalid)
		want.Purpose = other
		link, err := k.Append(nil, "k2", &want)
		require.NoError(t, err)
		_, err = k.Parse(token.Echo, string(link))
		require.ErrorIs(t, err, token.ErrInvalid, "a link of the mail is no report")
	}
}
