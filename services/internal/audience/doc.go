// Package audience gives the filter language (schemas/definition/filter) its
// meaning, twice: Compile makes the SQL that ClickHouse answers for a whole
// audience, Evaluate decides over one person whose facts are in memory. A
// property test holds the two equal on random people and random filters.
//
// Every leaf is true or false, never unknown: a value that is missing, null or
// of another type makes it false, and a not around it then true. The universe
// is the profiles. Values are always bound, never written into the SQL.
package audience
