package event

// Compile is goavro's codec under our limits, so that tests do not read
// goavro's variables before they are set.
var Compile = compile
