// Package lifecycle starts and ends a service, the same way for all of them.
//
// Start: flags, settings (-help prints them), telemetry, build, which opens no
// socket (-check stops here), the telemetry port, Run.
//
// End, at SIGINT or SIGTERM, in this order:
//
//  1. readiness turns red, so that nobody sends more;
//  2. the context given to Run is cancelled: stop taking input;
//  3. the batch in hand is finished on the context that Drain returns, which
//     outlives the signal by DRAIN_TIMEOUT;
//  4. outputs are flushed and their acknowledgements awaited;
//  5. offsets are committed, unclaimed work is let go, the group is left;
//  6. telemetry ends last, so that the end can be watched.
//
// Steps 2 to 5 are Run's. A second signal, or Run still busy a second after the
// drain deadline, ends the process hard. That must be safe: a kill -9 does the
// same, without asking.
//
// Exit codes: 0 ended as told · 1 something went wrong that only a restart can
// mend, or a hard end · 2 wrong flags or settings · 3 something that is needed is
// missing or away, beyond the service's patience.
package lifecycle
