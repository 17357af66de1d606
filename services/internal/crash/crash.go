// Package crash names the instants at which docs/architecture.md says what
// happens if we die right here: one between every two durable steps of every
// service. In what is shipped all of it is empty and compiled away. Built with
// the tag crashpoints, a process kills itself (SIGKILL: no defer runs, nothing is
// flushed) when it passes the point that CRASH_AT names, the n-th time for
// CRASH_AT=point#n, and SABOTAGE switches one promise off, so that tests can see
// that its loss would be noticed.
package crash

// Point is an instant between two durable steps.
type Point string

// Promise is one that SABOTAGE can switch off.
type Promise string

// Claim is I8: no message is handed to a provider without a durable claim.
const Claim Promise = "claim"
