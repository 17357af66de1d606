package profile

import (
	"fmt"

	"github.com/hikyaku/hikyaku/schemas/event"
)

// Layers returns what is kept of a person, one text for each layer.
func Layers(h *event.PersonState) (out []string) {
	for _, l := range layersOf(h, h.Replaced) {
		out = append(out, fmt.Sprintf("%d/%s: %v of %s by %s", l.kind, l.name, l.value, l.at, l.setBy))
	}
	return out
}
