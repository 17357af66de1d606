-- Runs carry their campaign's goal. message_steps is what became of a message; messages adds what people and machines did with it, which costs a join.

ALTER TABLE run_rows ADD COLUMN IF NOT EXISTS goal_event String COMMENT 'name of the event that is the campaign''s goal; empty without one' AFTER updated_at,
    ADD COLUMN IF NOT EXISTS goal_within_ms Int64 COMMENT 'so long after a message the goal counts, milliseconds' AFTER goal_event,
    ADD COLUMN IF NOT EXISTS goal_revenue String COMMENT 'property of the goal event that is revenue, or empty' AFTER goal_within_ms;

CREATE OR REPLACE VIEW runs
(
    run_id              UUID COMMENT 'the run',
    campaign_id         String COMMENT 'its campaign',
    state               LowCardinality(String) COMMENT 'preparing, blocked, resolving, sending, balancing, finished, cancelled, failed, refused',
    note                String COMMENT 'why it is blocked, refused or not yet balanced, in words',
    campaign_version    Int64 COMMENT 'exact version',
    audience_id         String COMMENT 'its audience',
    audience_version    Int64 COMMENT 'exact version',
    template_id         String COMMENT 'its template',
    template_version    Int64 COMMENT 'exact version',
    channel             LowCardinality(String) COMMENT 'email, …',
    lane                LowCardinality(String) COMMENT 'bulk or realtime',
    policy              LowCardinality(String) COMMENT 'at_most_once or at_least_once',
    consent             LowCardinality(String) COMMENT 'not_unsubscribed or subscribed',
    request_id          Nullable(UUID) COMMENT 'the request that started it, if one did',
    requested_at        DateTime64(6, 'UTC') COMMENT 'when it was asked for',
    as_of               DateTime64(6, 'UTC') COMMENT 'the audience is what was true at this moment',
    segments            Map(String, Array(UUID)) COMMENT 'segment to the imports that made it up, as the run saw them, in the order in which they count',
    segment_removals    Map(String, Array(UUID)) COMMENT 'segment to those of its imports that remove whom they list',
    expires_at          DateTime64(6, 'UTC') COMMENT 'its messages are not sent after this',
    shards              Int32 COMMENT 'shards first cut; 0 until then',
    expected            Int64 COMMENT 'people counted before the shards were cut',
    cancel_requested    Bool COMMENT 'somebody asked to stop it',
    unread_spool_events Int64 COMMENT 'events in collectors'' spools that were not waited for',
    started_at          Nullable(DateTime64(6, 'UTC')) COMMENT 'when the shards were cut',
    finished_at         Nullable(DateTime64(6, 'UTC')) COMMENT 'when it ended',
    balanced            Bool COMMENT 'the driver found both countings equal',
    updated_at          DateTime64(6, 'UTC') COMMENT 'last change',
    goal_event          String COMMENT 'name of the event that is the campaign''s goal; empty without one',
    goal_within_ms      Int64 COMMENT 'so long after a message the goal counts, milliseconds',
    goal_revenue        String COMMENT 'property of the goal event that is revenue, or empty',
    ingested_at         DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic         LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition     Int32 COMMENT 'where the record lay',
    kafka_offset        Int64 COMMENT 'where the record lay'
)
AS SELECT
    run_id, campaign_id, state, note, campaign_version, audience_id, audience_version, template_id,
    template_version, channel, lane, policy, consent, request_id, requested_at, as_of, segments, segment_removals,
    expires_at, shards, expected, cancel_requested, unread_spool_events, started_at, finished_at, balanced, updated_at,
    goal_event, goal_within_ms, goal_revenue, ingested_at, kafka_topic, kafka_partition, kafka_offset
FROM run_rows FINAL
COMMENT 'Runs, one row per execution of a campaign.';

-- Counting reads one narrow column instead of a time for each step: merging is what a question about a fresh run costs.
ALTER TABLE message_rows ADD COLUMN IF NOT EXISTS steps SimpleAggregateFunction(groupBitOr, UInt16)
    DEFAULT if(requested_at IS NULL, 0, 1) + if(rendered_at IS NULL, 0, 2) + if(accepted_at IS NULL, 0, 4) + if(delivered_at IS NULL, 0, 8)
        + if(unsubscribed_at IS NULL, 0, 16) + if(bounced_at IS NULL, 0, 32) + if(complained_at IS NULL, 0, 64) + if(excluded_at IS NULL, 0, 128)
    COMMENT 'which steps it has made, a bit each: requested 1, rendered 2, accepted 4, delivered 8, unsubscribed 16, bounced 32, complained 64, excluded 128' AFTER ingested_at;

CREATE VIEW IF NOT EXISTS message_steps
(
    run_id             UUID COMMENT 'the run; filter by it, it is the key',
    message_id         UUID COMMENT 'the message: one campaign, one person, one occurrence',
    campaign_id        String COMMENT 'its campaign',
    variant            String COMMENT 'content variant; empty while campaigns have one',
    step               String COMMENT 'step of the campaign; empty while campaigns have none',
    lane               String COMMENT 'bulk or realtime',
    channel            String COMMENT 'email, …',
    user_id            String COMMENT 'the person',
    class              LowCardinality(String) COMMENT 'excluded, or of requested: waiting, rejected, accepted, failed, uncertain (asked the provider, never heard back), expired, cancelled, parked; unknown if only engagements are known',
    reason             String COMMENT 'of the outcome that decided the class; empty for accepted',
    attempts           Int32 COMMENT 'highest attempt seen',
    requested_at       Nullable(DateTime64(6, 'UTC')) COMMENT 'admitted',
    excluded_at        Nullable(DateTime64(6, 'UTC')) COMMENT 'excluded',
    rendered_at        Nullable(DateTime64(6, 'UTC')) COMMENT 'rendered',
    accepted_at        Nullable(DateTime64(6, 'UTC')) COMMENT 'first sign that a provider took it: accepted, delivered, bounced or complained',
    delivered_at       Nullable(DateTime64(6, 'UTC')) COMMENT 'first reported delivered; many providers never say',
    bounced_at         Nullable(DateTime64(6, 'UTC')) COMMENT 'first reported undeliverable, after a provider had taken it',
    complained_at      Nullable(DateTime64(6, 'UTC')) COMMENT 'first reported as spam by the person',
    opened_raw_at      Nullable(DateTime64(6, 'UTC')) COMMENT 'first open, by a person or a machine',
    clicked_raw_at     Nullable(DateTime64(6, 'UTC')) COMMENT 'first click, by a person or a machine',
    unsubscribed_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'first unsubscribe',
    last_outcome_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'latest outcome',
    ingested_at        DateTime64(3, 'UTC') COMMENT 'Kafka record time, latest'
)
AS WITH transform(substring(ending, 7, 1), ['0', '1', '2', '3', '4', '5', '6', '7'],
    ['excluded', 'uncertain', 'waiting', 'cancelled', 'expired', 'failed', 'rejected', 'parked'], '') AS ended_as
SELECT
    run_id, message_id, campaign_id, variant, step, lane, channel, user_id,
    multiIf(excluded_at IS NOT NULL, 'excluded',
        accepted_at IS NOT NULL, 'accepted',
        ended_as != '', ended_as,
        requested_at IS NULL AND last_outcome_at IS NULL, 'unknown',
        'waiting') AS class,
    if(class = 'accepted', '', substring(ending, 8)) AS reason,
    attempts, requested_at, excluded_at, rendered_at, accepted_at, delivered_at, bounced_at, complained_at,
    opened_at AS opened_raw_at, clicked_at AS clicked_raw_at, unsubscribed_at, last_outcome_at, ingested_at
FROM message_rows FINAL
COMMENT 'One row per message with the time of each step and the class its outcomes give it, whatever order they came in. Hits are raw: messages tells people from machines.';

CREATE OR REPLACE VIEW messages
(
    run_id             UUID COMMENT 'the run; filter by it, it is the key',
    message_id         UUID COMMENT 'the message: one campaign, one person, one occurrence',
    campaign_id        String COMMENT 'its campaign',
    variant            String COMMENT 'content variant; empty while campaigns have one',
    step               String COMMENT 'step of the campaign; empty while campaigns have none',
    lane               String COMMENT 'bulk or realtime',
    channel            String COMMENT 'email, …',
    user_id            String COMMENT 'the person',
    class              LowCardinality(String) COMMENT 'excluded, or of requested: waiting, rejected, accepted, failed, uncertain (asked the provider, never heard back), expired, cancelled, parked; unknown if only engagements are known',
    reason             String COMMENT 'of the outcome that decided the class; empty for accepted',
    attempts           Int32 COMMENT 'highest attempt seen',
    requested_at       Nullable(DateTime64(6, 'UTC')) COMMENT 'admitted',
    excluded_at        Nullable(DateTime64(6, 'UTC')) COMMENT 'excluded',
    rendered_at        Nullable(DateTime64(6, 'UTC')) COMMENT 'rendered',
    accepted_at        Nullable(DateTime64(6, 'UTC')) COMMENT 'first sign that a provider took it: accepted, delivered, bounced or complained',
    delivered_at       Nullable(DateTime64(6, 'UTC')) COMMENT 'first reported delivered; many providers never say',
    bounced_at         Nullable(DateTime64(6, 'UTC')) COMMENT 'first reported undeliverable, after a provider had taken it',
    complained_at      Nullable(DateTime64(6, 'UTC')) COMMENT 'first reported as spam by the person',
    opened_at          Nullable(DateTime64(6, 'UTC')) COMMENT 'first open by a person',
    clicked_at         Nullable(DateTime64(6, 'UTC')) COMMENT 'first click by a person',
    opened_machine_at  Nullable(DateTime64(6, 'UTC')) COMMENT 'first open by a machine: a mail scanner, a privacy proxy, a prefetch',
    clicked_machine_at Nullable(DateTime64(6, 'UTC')) COMMENT 'first click by a machine',
    opened_unknown_at  Nullable(DateTime64(6, 'UTC')) COMMENT 'first open by who knows whom',
    clicked_unknown_at Nullable(DateTime64(6, 'UTC')) COMMENT 'first click by who knows whom',
    opened_raw_at      Nullable(DateTime64(6, 'UTC')) COMMENT 'first open by anybody, judged or not',
    clicked_raw_at     Nullable(DateTime64(6, 'UTC')) COMMENT 'first click by anybody, judged or not',
    unsubscribed_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'first unsubscribe',
    last_outcome_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'latest outcome',
    ingested_at        DateTime64(3, 'UTC') COMMENT 'Kafka record time, latest'
)
AS SELECT
    m.run_id AS run_id, m.message_id AS message_id, m.campaign_id AS campaign_id, m.variant AS variant, m.step AS step, m.lane AS lane, m.channel AS channel,
    m.user_id AS user_id, m.class AS class, m.reason AS reason, m.attempts AS attempts, m.requested_at AS requested_at, m.excluded_at AS excluded_at,
    m.rendered_at AS rendered_at, m.accepted_at AS accepted_at, m.delivered_at AS delivered_at, m.bounced_at AS bounced_at, m.complained_at AS complained_at,
    e.opened_at AS opened_at, e.clicked_at AS clicked_at, e.opened_machine_at AS opened_machine_at, e.clicked_machine_at AS clicked_machine_at,
    e.opened_unknown_at AS opened_unknown_at, e.clicked_unknown_at AS clicked_unknown_at, m.opened_raw_at AS opened_raw_at, m.clicked_raw_at AS clicked_raw_at,
    m.unsubscribed_at AS unsubscribed_at, m.last_outcome_at AS last_outcome_at, m.ingested_at AS ingested_at
FROM message_steps AS m
LEFT JOIN message_engagement AS e ON e.run_id = m.run_id AND e.message_id = m.message_id
SETTINGS join_algorithm = 'full_sorting_merge'
COMMENT 'One row per message: the time of each step, the class its outcomes give it, and what people and machines did with it.';

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
    FROM message_steps
    ARRAY JOIN arrayFilter(counted_as -> counted_as.1 != '',
        [(toString(class), if(class = 'excluded', reason, '')), (if(requested_at IS NULL AND class != 'parked', '', 'requested'), '')]) AS counted
    WHERE class != 'unknown'
)
GROUP BY run_id, name, reason
COMMENT 'Every number of a run, counted twice by different paths. Where resolver and stored differ, something was lost, or is still on its way.';
