-- run_balance answers whoever asks, also where what is missing on one side of a join is to be NULL (join_use_nulls, which dbt sets), and says up to which
-- moment it is complete; nothing else is new.

CREATE OR REPLACE VIEW run_balance
(
    run_id                  UUID COMMENT 'the run',
    campaign_id             String COMMENT 'its campaign',
    state                   LowCardinality(String) COMMENT 'preparing, blocked, resolving, sending, balancing, finished, cancelled, failed, refused',
    note                    String COMMENT 'why it is blocked, refused or not yet balanced, in words',
    as_of                   DateTime64(6, 'UTC') COMMENT 'the audience is what was true at this moment',
    started_at              Nullable(DateTime64(6, 'UTC')) COMMENT 'when the shards were cut',
    finished_at             Nullable(DateTime64(6, 'UTC')) COMMENT 'when it ended',
    candidates              Int64 COMMENT 'people found by the shards',
    repeats                 Int64 COMMENT 'candidates that were already handled',
    audience                Int64 COMMENT 'candidates without repeats: excluded and requested',
    excluded                Int64 COMMENT 'not sent to, each with a reason',
    excluded_reasons        Map(String, Int64) COMMENT 'reason to people',
    requested               Int64 COMMENT 'admitted; the classes below add up to it',
    waiting                 Int64 COMMENT 'requested, without an ending',
    rejected                Int64 COMMENT 'not rendered',
    accepted                Int64 COMMENT 'taken by a provider',
    failed                  Int64 COMMENT 'refused for good',
    uncertain               Int64 COMMENT 'asked the provider, never heard back: may or may not have arrived',
    expired                 Int64 COMMENT 'too late to be sent',
    cancelled               Int64 COMMENT 'ended by cancel before it was sent',
    parked                  Int64 COMMENT 'could not be processed; in dead letters',
    excluded_stored         Int64 COMMENT 'excluded, as counted from what is stored',
    requested_stored        Int64 COMMENT 'requested, as counted from what is stored',
    waiting_stored          Int64 COMMENT 'waiting, as counted from what is stored',
    rejected_stored         Int64 COMMENT 'rejected, as counted from what is stored',
    accepted_stored         Int64 COMMENT 'accepted, as counted from what is stored',
    failed_stored           Int64 COMMENT 'failed, as counted from what is stored',
    uncertain_stored        Int64 COMMENT 'uncertain, as counted from what is stored',
    expired_stored          Int64 COMMENT 'expired, as counted from what is stored',
    cancelled_stored        Int64 COMMENT 'cancelled, as counted from what is stored',
    parked_stored           Int64 COMMENT 'parked, as counted from what is stored',
    excluded_reasons_stored Map(String, Int64) COMMENT 'reason to people, as counted from what is stored',
    difference              Map(String, Int64) COMMENT 'what differs between the two countings: stored less resolver, for each number and for each reason as excluded.<reason>; empty when they agree',
    balanced                Bool COMMENT 'the people are resolved, candidates = repeats + excluded + requested, nothing waits, the classes add up to requested, and both countings agree',
    balanced_by_driver      Bool COMMENT 'the resolver found the same and closed the run',
    complete_until          DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted; 1970 if that is not known'
)
AS SELECT
    run_id, campaign_id, state, note, as_of, started_at, finished_at,
    candidates, repeats, candidates - repeats AS audience,
    excluded, excluded_reasons, requested, waiting, rejected, accepted, failed, uncertain, expired, cancelled, parked,
    excluded_stored, requested_stored, waiting_stored, rejected_stored, accepted_stored,
    failed_stored, uncertain_stored, expired_stored, cancelled_stored, parked_stored,
    excluded_reasons_stored, difference,
    CAST(state NOT IN ('preparing', 'blocked', 'resolving')
        AND candidates = repeats + excluded + requested AND waiting = 0
        AND waiting + rejected + accepted + failed + uncertain + expired + cancelled + parked = requested
        AND empty(difference) AS Bool) AS balanced,
    balanced_by_driver,
    assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM
(
    SELECT run_id, campaign_id, state, note, as_of, started_at, finished_at, balanced AS balanced_by_driver
    FROM runs
) AS run
LEFT JOIN
(
    SELECT
        run_id,
        sumIf(resolver, name = 'candidates') AS candidates,
        sumIf(resolver, name = 'repeats') AS repeats,
        sumIf(resolver, name = 'excluded') AS excluded,
        sumIf(resolver, name = 'requested') AS requested,
        sumIf(resolver, name = 'waiting') AS waiting,
        sumIf(resolver, name = 'rejected') AS rejected,
        sumIf(resolver, name = 'accepted') AS accepted,
        sumIf(resolver, name = 'failed') AS failed,
        sumIf(resolver, name = 'uncertain') AS uncertain,
        sumIf(resolver, name = 'expired') AS expired,
        sumIf(resolver, name = 'cancelled') AS cancelled,
        sumIf(resolver, name = 'parked') AS parked,
        sumIf(stored, name = 'excluded') AS excluded_stored,
        sumIf(stored, name = 'requested') AS requested_stored,
        sumIf(stored, name = 'waiting') AS waiting_stored,
        sumIf(stored, name = 'rejected') AS rejected_stored,
        sumIf(stored, name = 'accepted') AS accepted_stored,
        sumIf(stored, name = 'failed') AS failed_stored,
        sumIf(stored, name = 'uncertain') AS uncertain_stored,
        sumIf(stored, name = 'expired') AS expired_stored,
        sumIf(stored, name = 'cancelled') AS cancelled_stored,
        sumIf(stored, name = 'parked') AS parked_stored,
        CAST(arraySort(groupArrayIf((reason, resolver), name = 'excluded' AND resolver != 0)), 'Map(String, Int64)') AS excluded_reasons,
        CAST(arraySort(groupArrayIf((reason, stored), name = 'excluded' AND stored != 0)), 'Map(String, Int64)') AS excluded_reasons_stored,
        CAST(arraySort(groupArrayIf((if(name = 'excluded', concat('excluded.', reason), name), stored - resolver),
            name NOT IN ('candidates', 'repeats') AND stored != resolver)), 'Map(String, Int64)') AS difference
    FROM run_counts
    GROUP BY run_id
) AS counted USING (run_id)
SETTINGS join_use_nulls = 0
COMMENT 'Whether the numbers of a run add up: as the resolver counted, as counted from what is stored, and what differs.';
