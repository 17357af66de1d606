package main

// mutant is one line switched off: the file with old replaced by new breaks the
// invariant, and the test says so.
type mutant struct {
	invariant string
	breaks    string // in words
	file      string // from the root
	old, new  string
	module    string // directory in which go test runs, from the root
	pkg, test string
}

// mutants has at least one for each invariant of docs/invariants.md.
func mutants() []mutant {
	const (
		internal = "services/internal"
		loops    = internal + "/kafka/"
		resolver = "services/audience-resolver"
	)
	return []mutant{
		{"I1", "a transaction commits although an output was refused", loops + "transform.go",
			"kgo.TransactionEndTry(failed == nil)", "kgo.TransactionEndTry(true)",
			internal, "./kafka", "TestAnOutputThatIsRefusedStopsTheTransformAndNothingIsCommitted"},
		{"I1", "offsets of a whole batch move, though a part of it was handled", loops + "effect.go",
			"for _, d := range recs[:n] {", "for _, d := range recs {",
			internal, "./kafka", "TestEffectMovesOffsetsLast"},
		{"I1", "the offset passes a message whose outcome is not acknowledged", loops + "claim_loop.go",
			"	switch item.state {\n	case itemAnswered:\n		l.inHand--", "	if true {\n		return\n	}\n	switch item.state {\n	case itemAnswered:\n		l.inHand--",
			internal, "./kafka", "TestEachMessageIsCalledOnceAndTheOffsetsReachTheEnd"},
		{"I1", "the sink's offset moves although a table refused its rows", "services/event-collector/internal/sink/sink.go",
			"		return 0, failed\n	}\n	if err := s.settle", "		return n, unreadable\n	}\n	if err := s.settle",
			"services/event-collector", ".", "TestATableThatIsMissingStopsTheLine"},
		{"I1", "what is in the spool is answered before it is synced", internal + "/spool/spool.go",
			"	if err := s.o.sync(s.file); err != nil {\n		s.broken = true", "	if err := error(nil); err != nil {\n		s.broken = true",
			internal, "./spool", "TestWhoWaitsTogetherIsSyncedTogether"},
		{"I1", "a store that missed a commit is believed", resolver + "/assign.go",
			"err = l.cluster.ReadPartition(ctx, name, partition, mark.Offset, end,", "err = l.cluster.ReadPartition(ctx, name, partition, max(mark.Offset, end), end,",
			resolver, ".", "TestACrashBetweenCommitAndStoreIsReplayed"},
		{"I1", "an aborted batch leaves its time behind", resolver + "/person.go",
			"		b.now[partition] = now\n", "		l.now[partition] = now\n",
			resolver, ".", "TestAnAbortedBatchIsDecidedAnew"},

		{"I2", "poison is dropped by a transform", loops + "transform.go",
			"			out = append(out, e.c.Park(r, err)...)\n", "",
			"services/renderer", ".", "TestPoisonIsParkedAndCounted"},
		{"I2", "poison is dropped by the person loop", resolver + "/person.go",
			"		b.out = append(b.out, l.cluster.Park(r, err)...)\n", "",
			resolver, ".", "TestPoisonIsParkedAndThePersonLoopGoesOn"},
		{"I2", "a dead letter that was refused counts as parked", loops + "effect.go",
			"			if err := l.park(recs[0].r, err); err != nil {\n				return err\n			}\n", "			_ = l.park(recs[0].r, err)\n",
			internal, "./kafka", "TestADeadLetterThatIsRefusedHoldsTheOffset"},
		{"I2", "what is parked is not counted", loops + "deadletter.go",
			"	if parked, ok := c.Parked(r, reason); ok {", "	if parked, ok := c.Parked(r, reason); ok && parked == nil {",
			"services/renderer", ".", "TestPoisonIsParkedAndCounted"},
		{"I2", "a message that does not decode is nobody's", loops + "deadletter.go",
			"	case \"MessageRequest\", \"Message\":", "	case \"MessageRequest\":",
			internal, "./kafka", "TestAMessageThatDoesNotDecodeIsStillCounted"},
		{"I2", "what is replayed for one is handled by all", loops + "record.go",
			"	return whom == \"\" || whom == c.service\n", "	return whom == \"\" || whom != \"\"\n",
			internal, "./kafka", "TestAReplayIsForWhoeverParked"},
		{"I2", "a replay leaves no mark", "services/console/deadletters_mark.go",
			"range append(records, mark) {", "range append(records, mark)[:len(records)] {",
			"services/console", ".", "TestADeadLetterIsReplayedOnce"},

		{"I3", "a rebalance does not wait for the batch", loops + "options.go",
			"		kgo.BlockRebalanceOnPoll(),\n", "",
			internal, "./kafka", "TestNothingIsInFlightWhenPartitionsMove"},

		{"I4", "a signal ends the work in hand", internal + "/lifecycle/drain.go",
			"context.WithCancelCause(context.WithoutCancel(ctx))", "context.WithCancelCause(ctx)",
			internal, "./lifecycle", "TestASignalDrainsTheWorkInHand"},

		{"I5", "a message has another id each time it is admitted", resolver + "/person.go",
			"identity.Message(l.cluster.Namespace(), campaign, q.RunID.String(), q.UserID, \"\")", "identity.Message(l.cluster.Namespace(), campaign, q.RunID.String(), q.UserID, time.Now().String())",
			resolver, ".", "TestACandidateThatComesTwiceIsARepeat"},
		{"I5", "a known message is admitted again", resolver + "/person.go",
			"	books := b.count(q.RunID, campaign, partition)\n	m :=", "	known = -1\n	books := b.count(q.RunID, campaign, partition)\n	m :=",
			resolver, ".", "TestACandidateThatComesTwiceIsARepeat"},
		{"I9", "what comes of an erased person's message is not counted", resolver + "/erase.go",
			"	if at = slices.IndexFunc(before.rec.Messages, is); at >= 0 {\n		return before, at, nil\n	}\n", "",
			resolver, ".", "TestAnErasedPersonIsForgottenAndStaysCounted"},
		{"I5", "a replayed candidate is admitted each time it comes", resolver + "/internal/ledger/ledger.go",
			"	m.Attempt, m.Ending = attempt, requested\n", "",
			resolver, ".", "TestAParkedCandidateIsCountedAndAdmittedByItsReplay"},
		{"I5", "a message renders to other bytes each time", internal + "/render/mime.go",
			"	h.add(\"Message-Id\", \"<\"+id+\"@\"+domain(campaign.From.Address)+\">\")\n",
			"	var m2 mail.Header\n	_ = m2.GenerateMessageID()\n	h.add(\"Message-Id\", m2.Get(\"Message-Id\"))\n",
			internal, "./render", "TestMessageIsTheSameForEver"},

		{"I6", "Kafka gets what is new while something is left in the spool", "services/event-collector/internal/output/output.go",
			"	for err == nil && !w.spool.Empty() {", "	for err == nil && false {",
			"services/event-collector", ".", "TestKafkaAwayIsAnsweredWith200AndNobodyIsOvertaken"},
		{"I6", "a later patch of a batch loses to an earlier one", resolver + "/input.go",
			"	sorted := slices.Clone(records)\n", "	sorted := slices.Clone(records)\n	slices.Reverse(sorted)\n",
			resolver, ".", "TestPatchesOfOnePersonKeepTheirOrder"},
		{"I6", "two messages to one person are called side by side", loops + "claim_loop.go",
			"		_, before := p.keys[string(item.r.Key)]", "		before := false",
			internal, "./kafka", "TestMessagesToOnePersonKeepTheirOrder"},

		{"I7", "moments that were written are read as others", "schemas/event/wire.go",
			"return time.UnixMicro(r.long()).UTC()", "return time.UnixMilli(r.long()).UTC()",
			"schemas", "./event", "TestFrozenBytesStayReadable"},
		{"I7", "an older version is read as if it were ours", "schemas/event/evolve.go",
			"	if writerSchema == into.Schema() {", "	if true {",
			"schemas", "./event", "TestDecodeWithAnOlderSchema"},

		{"I8", "a call is made though its claim was refused", loops + "claim_commit.go",
			"			if err != nil {\n				for _, s := range sent {", "			if err != nil && false {\n				for _, s := range sent {",
			internal, "./kafka", "TestWithoutAClaimNoCall"},
		{"I8", "a call begins under a claim that has grown old", loops + "claim_loop.go",
			"	return now.Sub(claimedAt) < l.valid && now.Round(0).Sub(claimedAt.Round(0)) < l.valid\n", "	return true\n",
			internal, "./kafka", "TestZombieNeitherClaimsNorCalls"},
		{"I8", "a sender takes another's claim for its own", loops + "claim_loop.go",
			"rec != nil && rec.claim.By == l.name {", "rec != nil {",
			internal, "./kafka", "TestWhoLostAPartitionKnowsNothingOfItsHeirsCalls"},

		{"I9", "a candidate without a trace does not matter", resolver + "/internal/runs/view.go",
			"	if accounted != t.Candidates {", "	if false {",
			resolver, "./internal/schedule", "TestACandidateWithoutATraceKeepsTheRunOpen"},
		{"I9", "a run ends whatever ClickHouse counts", resolver + "/internal/schedule/driver.go",
			"p.err == nil && p.result.(proof).difference == \"\" {", "p.err == nil {",
			resolver, ".", "TestARunIsNotFinishedWhileClickHouseCountsOtherwise"},
		{"I9", "a repeated outcome moves another unit", resolver + "/person.go",
			"	before, moved := ledger.Apply(m, outcome, number)\n", "	before, moved := ledger.Apply(m, outcome, number)\n	before, moved = ledger.Waiting, true\n",
			resolver, ".", "TestCountersAreExactUnderRepeatedAndShuffledOutcomes"},
		{"I9", "a shard that is asked for twice is read twice", resolver + "/internal/resolve/resolve.go",
			"	if already {", "	if already && false {",
			resolver, ".", "TestAShardThatIsDoneIsNotReadAgain"},
		{"I9", "a parked candidate is counted by nobody", resolver + "/person.go",
			"	case i < 0 && ofCandidate && o.Outcome == ledger.Parked:", "	case i < 0 && ofCandidate && o.Outcome == ledger.Parked && false:",
			resolver, ".", "TestAParkedCandidateIsCountedAndAdmittedByItsReplay"},
		{"I9", "a run that has ended stays ended", resolver + "/internal/runs/view.go",
			"(!Ended(r.state.State) || r.waiting > 0)", "!Ended(r.state.State)",
			resolver, ".", "TestAReplayOpensItsRunAgain"},
		{"I9", "a new owner begins a run's counters at nothing", resolver + "/batch.go",
			"	} else if c = b.l.view.Counters(run, partition); c == nil {", "	} else {",
			resolver, ".", "TestAStoreThatIsGoneIsRebuilt"},

		{"I10", "not knowing overrules an acceptance", resolver + "/internal/ledger/ledger.go",
			"	if m.Class == Accepted {\n		return m.Class, false\n	}\n", "",
			resolver, "./internal/ledger", "TestClassOfAMessage"},
		{"I10", "not knowing outranks an answer", resolver + "/internal/ledger/ledger.go",
			"	case Uncertain:\n		return 0, true", "	case Uncertain:\n		return 4, true",
			resolver, "./internal/ledger", "TestClassOfAMessage"},
		{"I10", "who was never answered counts as not sent to", "services/sender/output.go",
			"	if unanswered {", "	if false {",
			"services/sender", ".", "TestWhatWasNeverAnsweredStaysUncertain"},
	}
}
