// Package kafka is how services talk to Kafka: records in and out in the
// Confluent wire format, tables, the freshness barrier, and the loops
// every service runs in.
//
// The promise: an offset is committed only when everything its record caused is
// durable (I1); a record is done, parked with its reason, or uncommitted (I2);
// nothing is in flight when a rebalance is allowed (I3); a signal does not
// interrupt a batch (I4).
//
//   - [Cluster.RunTransform] reads, decides and writes Kafka to Kafka: outputs
//     and offsets commit in one transaction, or the batch is read again.
//   - [Cluster.RunEffect] reads and acts on the outside: offsets move last.
//   - [Cluster.RunClaims] is for an effect that cannot be undone: the claim before
//     a call is the offset commit itself, which the broker refuses to a member
//     that has lost its partition (I8).
//   - [Cluster.Table] holds a whole topic, without a group.
//
// While Kafka is away loops wait, say so in Health once per change, and go on by
// themselves. They end with an error only for what a restart or a person must
// mend: a lost offset, another process of the same name, too many dead letters,
// or an error that nobody classified.
package kafka
