package token_test

import (
	"strings"
	"testing"
	"time"

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
		CampaignID: "thanks-2011", UserID: "ユーザー 1", Target: "https://example.test/?a=1&b=2",
		RequestedAt: time.Date(2026, 11, 22, 9, 30, 0, 123e6, time.UTC)}
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

// Links of mails that are out there are followed for years.
func TestTokensWithoutATimeAreReadAsBefore(t *testing.T) {
	t.Parallel()
	k, want := keys(t), sample()
	want.RequestedAt = time.Time{}
	text, err := k.Append(nil, "k2", &want)
	require.NoError(t, err)
	const before = "AWMCazJIw4QLIgDeywuCRV633_ezb_msNdi8LmDq-TC4-tBJiQVlbWFpbAt0aGFua3MtMjAxMQ7jg6bjg7zjgrbjg7wgMR1odHRwczovL2V4YW1wbGUudGVzdC8_YT0xJmI9Mh3Ab_b_oU1sxeQGC3rUMdk"
	require.Equal(t, before, string(text), "of version 1, byte for byte")
	got, err := k.Parse(token.Click, string(text))
	require.NoError(t, err)
	require.Equal(t, want, *got)
	timed := sample()
	longer, err := k.Append(nil, "k2", &timed)
	require.NoError(t, err)
	require.Len(t, longer, len(text)+8, "a time costs 8 characters")
}

func TestASumIsNoSignature(t *testing.T) {
	t.Parallel()
	k := keys(t)
	require.Equal(t, k.Sum("a"), k.Sum("a"))
	require.NotEqual(t, k.Sum("a"), k.Sum("b"))
	other, err := token.NewKeys("k2", map[string][]byte{"k2": []byte("somebody else's secret")})
	require.NoError(t, err)
	require.NotEqual(t, k.Sum("a"), other.Sum("a"))
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
