package console

import (
	"encoding/json"
)

// jsonText shows stored JSON as it is.
func jsonText(b []byte) json.RawMessage { return json.RawMessage(b) }

func (a *app) printIndented(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
