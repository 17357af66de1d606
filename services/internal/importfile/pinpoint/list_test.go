package pinpoint

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
)

func TestAListIsWrittenAsJSONHasIt(t *testing.T) {
	t.Parallel()
	for c := range rune(300) {
		values := []string{"a " + string(c), string(c)}
		text, err := json.Marshal(values)
		require.NoError(t, err)
		want, err := event.FromJSON(text)
		require.NoError(t, err)
		require.Equal(t, want, list(values))
	}
}
