-- A parked message that is replayed waits again: `replayed` outranks `parked` in its attempt and, like `deferred`, says that another attempt follows.
-- The view messages calls waiting whatever has an outcome without a class of its own.

ALTER TABLE message_rows_from_outcomes MODIFY QUERY
WITH transform(outcome, ['excluded', 'uncertain', 'deferred', 'cancelled', 'expired', 'failed', 'rejected', 'parked', 'replayed'],
    ['0', '1', '2', '3', '4', '5', '6', '7', '8'], '') AS outcome_rank
SELECT run_id, message_id, campaign_id, variant, step, lane, channel, user_id,
    if(outcome = 'excluded', occurred_at, NULL) AS excluded_at,
    if(outcome = 'rendered', occurred_at, NULL) AS rendered_at,
    if(outcome IN ('accepted', 'delivered'), occurred_at, NULL) AS accepted_at,
    occurred_at AS last_outcome_at,
    attempt AS attempts,
    if(outcome_rank = '', '', concat(leftPad(toString(attempt), 6, '0'), outcome_rank, reason)) AS ending,
    ingested_at
FROM outcome_rows;

ALTER TABLE outcome_rows COMMENT COLUMN outcome 'excluded, rendered, rejected, accepted, deferred, failed, uncertain, expired, cancelled, parked, replayed';
ALTER TABLE outcome_rows COMMENT COLUMN attempt 'number of the attempt, from 1; 0 before the sender; -1 of parked: an outcome that could not be read';

-- A message whose request or candidate could not be read is known by its outcome parked alone: it was to be sent to, so it was requested.
CREATE OR REPLACE VIEW run_counts
(
    run_id   UUID COMMENT 'the run',
    name     LowCardinality(String) COMMENT 'candidates, repeats, excluded, requested or a class of requested',
    reason   String COMMENT 'of excluded; else empty',
    resolver Int64 COMMENT 'as the resolver counted while it handled records',
    stored   Int64 COMMENT 'as counted from the stored requests and outcomes; 0 for candidates and repeats, which are not stored one by one'
)
AS SELECT run_id, name, reason, sum(by_resolver) AS resolver, sum(by_rows) AS stored
FROM
(
    SELECT run_id, 'candidates' AS name, '' AS reason, candidates AS by_resolver, toInt64(0) AS by_rows
    FROM run_shards
    WHERE children = 0
    UNION ALL
    SELECT run_id, counter.1 AS name, '' AS reason, counter.2 AS by_resolver, toInt64(0) AS by_rows
    FROM run_counters
    ARRAY JOIN [('repeats', repeats), ('requested', requested), ('waiting', waiting), ('rejected', rejected), ('accepted', accepted), ('failed', failed),
        ('uncertain', uncertain), ('expired', expired), ('cancelled', cancelled), ('parked', parked)] AS counter
    UNION ALL
    SELECT run_id, 'excluded' AS name, reason_count.1 AS reason, reason_count.2 AS by_resolver, toInt64(0) AS by_rows
    FROM run_counters
    ARRAY JOIN CAST(excluded, 'Array(Tuple(String, Int64))') AS reason_count
    UNION ALL
    SELECT run_id, counted.1, counted.2, toInt64(0), toInt64(1) -- named as above: reason here is the message's
    FROM messages
    ARRAY JOIN arrayFilter(counted_as -> counted_as.1 != '',
        [(toString(class), if(class = 'excluded', reason, '')), (if(requested_at IS NULL AND class != 'parked', '', 'requested'), '')]) AS counted
    WHERE class != 'unknown'
)
GROUP BY run_id, name, reason
COMMENT 'Every number of a run, counted twice by different paths. Where resolver and stored differ, something was lost, or is still on its way.';
