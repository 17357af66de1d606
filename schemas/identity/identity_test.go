package identity_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/identity"
)

// Ids are on disk and in links for years: these were computed with Python's
// hashlib over struct.pack('>I', len(f)) + f.
func TestIdsNeverChange(t *testing.T) {
	t.Parallel()
	id := identity.Message("hikyaku", "thanks-2011", "00", "12347", "")
	require.Equal(t, "50ec439abb866819b49dcf5aa21ff316", id.String())
	back, err := identity.Parse(id.String())
	require.NoError(t, err)
	require.Equal(t, id, back)
}

// Fields are length-prefixed, so that moving a character between two of them
// makes another id.
func TestFieldsDoNotRunTogether(t *testing.T) {
	t.Parallel()
	require.NotEqual(t, identity.Hash("ab", "c"), identity.Hash("a", "bc"))
	require.NotEqual(t, identity.Hash("a", ""), identity.Hash("a"))
}

func TestParseRefusesWhatIsNoID(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "12", "zz000000000000000000000000000000", "000000000000000000000000000000001"} {
		_, err := identity.Parse(s)
		require.Error(t, err, s)
	}
	_, err := identity.Parse("5d41402a-bc4b-2a76-b971-9d911017c592")
	require.NoError(t, err)
}
