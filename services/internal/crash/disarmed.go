//go:build !crashpoints

package crash

// At does nothing: this build cannot be told to crash.
func At(Point) {}

// Sabotaged is false: this build keeps its promises.
func Sabotaged(Promise) bool { return false }
