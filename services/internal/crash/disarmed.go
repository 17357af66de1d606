//go:build !crashpoints

package crash

import "github.com/hikyaku/hikyaku/schemas/topic"

// At does nothing: this build cannot be told to crash.
func At(Point) {}

// In does nothing, as At.
func In(topic.Group, Step) {}

// Sabotaged is false: this build keeps its promises.
func Sabotaged(Promise) bool { return false }
