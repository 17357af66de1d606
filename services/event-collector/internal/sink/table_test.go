package sink

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/event"
)

func TestValuesAreWrittenAsJSONDoes(t *testing.T) {
	for _, s := range []string{"", "plain", "two words", `"quoted"`, `back\\slash`, "<b>&</b>", "東京", "line\nbreak", "\x00\x1f\x7f", "\xff", "\u2028"} {
		want, err := json.Marshal(s)
		require.NoError(t, err)
		require.Equal(t, string(want), string(appendValue(nil, event.String(s))))
	}
	for _, v := range []event.Value{event.Int(0), event.Int(math.MinInt64), event.Int(math.MaxInt64), event.Bool(true), event.Bool(false), event.Float(4.15), event.Time(time.Unix(0, 0)), {}} {
		want, err := v.MarshalJSON()
		require.NoError(t, err)
		require.Equal(t, string(want), string(appendValue(nil, v)))
	}
	require.Equal(t, `{"a":"x","b":null,"c":1}`, object([]event.NamedValue{{Name: "a", Value: event.String("x")}, {Name: "b", Value: event.Float(math.Inf(1))}, {Name: "c", Value: event.Int(1)}}))
}
