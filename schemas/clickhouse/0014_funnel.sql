-- Goals and funnels. A funnel counts messages, so that its numbers are those of the balance; in a bulk run a person has one.
-- Funnels are kept per run (docs/decisions/20261122-funnels.md): funnel reads what is kept of a run that has not changed since, and counts anew the others.

CREATE VIEW IF NOT EXISTS goal_touches
(
    campaign_id String COMMENT 'the campaign',
    run_id      UUID COMMENT 'the run; filter by it, it is the key',
    variant     String COMMENT 'content variant; empty while campaigns have one',
    channel     String COMMENT 'email, …',
    message_id  UUID COMMENT 'the message',
    user_id     String COMMENT 'the person',
    sent_at     DateTime64(6, 'UTC') COMMENT 'when a provider accepted the message',
    event_id    String COMMENT 'the goal event, unique per person',
    event       String COMMENT 'its name: the campaign''s goal',
    occurred_at DateTime64(6, 'UTC') COMMENT 'when the person did it: not before sent_at, and not later than the goal allows',
    revenue     Nullable(Float64) COMMENT 'the property of the event that the campaign calls revenue; NULL without one that is a number'
)
AS SELECT
    m.campaign_id AS campaign_id, m.run_id AS run_id, m.variant AS variant, m.channel AS channel, m.message_id AS message_id, m.user_id AS user_id,
    assumeNotNull(m.accepted_at) AS sent_at, e.event_id AS event_id, CAST(e.name AS String) AS event, e.occurred_at AS occurred_at,
    multiIf(r.goal_revenue = '', NULL, mapContains(e.prop_float, r.goal_revenue), e.prop_float[r.goal_revenue],
        mapContains(e.prop_int, r.goal_revenue), toFloat64(e.prop_int[r.goal_revenue]), NULL) AS revenue
FROM message_rows AS m FINAL
INNER JOIN run_rows AS r FINAL ON r.run_id = m.run_id
INNER JOIN event_rows AS e FINAL ON e.user_id = m.user_id AND e.name = r.goal_event
WHERE m.run_id IN (SELECT run_id FROM run_rows WHERE goal_event != '') AND e.name IN (SELECT goal_event FROM run_rows WHERE goal_event != '') -- what need not be read
    AND m.excluded_at IS NULL AND m.accepted_at IS NOT NULL AND r.goal_event != ''
    AND e.occurred_at >= m.accepted_at AND dateDiff('microsecond', assumeNotNull(m.accepted_at), e.occurred_at) <= r.goal_within_ms * 1000
COMMENT 'Goal events within the window after a message, one row per event and message; conversions says which message was the last.';

CREATE VIEW IF NOT EXISTS conversions
(
    campaign_id    String COMMENT 'the campaign',
    run_id         UUID COMMENT 'the run',
    variant        String COMMENT 'content variant; empty while campaigns have one',
    channel        String COMMENT 'email, …',
    message_id     UUID COMMENT 'the message',
    user_id        String COMMENT 'the person',
    sent_at        DateTime64(6, 'UTC') COMMENT 'when a provider accepted the message',
    event_id       String COMMENT 'the goal event, unique per person',
    event          String COMMENT 'its name: the campaign''s goal',
    occurred_at    DateTime64(6, 'UTC') COMMENT 'when the person did it: not before sent_at, and not later than the goal allows',
    revenue        Nullable(Float64) COMMENT 'the property of the event that the campaign calls revenue; NULL without one that is a number',
    is_last        Bool COMMENT 'the last touch: of the messages of all campaigns whose window the event is in, the one sent last (of two at one moment, the greater message_id)',
    complete_until DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted; 1970 if that is not known'
)
AS SELECT
    campaign_id, run_id, variant, channel, message_id, user_id, sent_at, event_id, event, occurred_at, revenue,
    CAST(row_number() OVER (PARTITION BY user_id, event_id ORDER BY sent_at DESC, message_id DESC) = 1 AS Bool) AS is_last,
    assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM goal_touches AS t
COMMENT 'Goal events attributed to messages, one row per event and message within the window: all rows are any touch, those with is_last the last touch.';

CREATE VIEW IF NOT EXISTS funnel_now
(
    campaign_id String COMMENT 'the campaign; empty while nothing is known of the run',
    run_id      UUID COMMENT 'the run; filter by it, it is the key',
    variant     String COMMENT 'content variant; empty while campaigns have one',
    channel     String COMMENT 'email, …',
    counts      Array(UInt64) COMMENT 'messages that got so far, in the order of the columns of funnel, from requested'
)
AS SELECT r.campaign_id AS campaign_id, f.run_id AS run_id, f.variant AS variant, r.channel AS channel, f.counts AS counts
FROM
(
    SELECT run_id, variant, sumForEach(part) AS counts
    FROM
    (
        SELECT m.run_id AS run_id, m.variant AS variant,
            [countIf(bitTest(m.steps, 0)), countIf(bitTest(m.steps, 1)), countIf(bitTest(m.steps, 2)), countIf(bitTest(m.steps, 3)),
            countIf(e.opened_at IS NOT NULL), countIf(e.clicked_at IS NOT NULL), toUInt64(0), countIf(bitTest(m.steps, 4)),
            countIf(bitTest(m.steps, 5)), countIf(bitTest(m.steps, 6)),
            countIf(e.opened_machine_at IS NOT NULL), countIf(e.clicked_machine_at IS NOT NULL),
            countIf(e.opened_unknown_at IS NOT NULL), countIf(e.clicked_unknown_at IS NOT NULL)] AS part
        FROM
        (
            SELECT run_id, message_id, variant, steps
            FROM message_rows FINAL
            WHERE NOT bitTest(steps, 7)
        ) AS m
        LEFT JOIN message_engagement AS e ON e.run_id = m.run_id AND e.message_id = m.message_id
        GROUP BY run_id, variant
        UNION ALL
        SELECT run_id, variant, [0, 0, 0, 0, 0, 0, uniqExact(message_id)] AS part
        FROM goal_touches
        GROUP BY run_id, variant
    )
    GROUP BY run_id, variant
) AS f
LEFT JOIN (SELECT run_id, campaign_id, CAST(channel AS String) AS channel FROM run_rows FINAL) AS r ON r.run_id = f.run_id
SETTINGS join_algorithm = 'full_sorting_merge,hash', join_use_nulls = 0
COMMENT 'Funnels counted from messages, whatever is kept of them; read funnel instead. Campaign and channel are the run''s.';

CREATE TABLE IF NOT EXISTS funnel_rows
(
    run_id             UUID COMMENT 'the run; zeros in the row that says up to when all runs were looked at',
    classifier_version UInt32 COMMENT 'version of the classifier that was in force',
    complete_until     DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted',
    groups             Array(Tuple(campaign_id String, variant String, channel String, counts Array(UInt64))) COMMENT 'the rows of funnel_now'
)
ENGINE = ReplacingMergeTree(complete_until)
ORDER BY (run_id, classifier_version)
COMMENT 'Funnels of runs as they were at a moment; read funnel instead.';

CREATE VIEW IF NOT EXISTS funnel_kept
(
    run_id             UUID COMMENT 'the run; zeros in the row that says up to when all runs were looked at',
    classifier_version UInt32 COMMENT 'version of the classifier that was in force',
    complete_until     DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted',
    groups             Array(Tuple(campaign_id String, variant String, channel String, counts Array(UInt64))) COMMENT 'the rows of funnel_now'
)
AS SELECT run_id, classifier_version, complete_until, groups
FROM funnel_rows FINAL
WHERE classifier_version = (SELECT argMax(version, (put_at, version)) FROM classifier_rows)
COMMENT 'Funnels of runs as they were at a moment, by the classifier in force; read funnel instead.';

-- What came is noted as it is inserted, so that nobody looks through all messages and events for what is new.
CREATE TABLE IF NOT EXISTS run_arrival_rows
(
    run_id      UUID COMMENT 'the run',
    ingested_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'Kafka record time, latest of what is known of it and of its messages'
)
ENGINE = AggregatingMergeTree
ORDER BY run_id
COMMENT 'When something last came of a run; says which kept funnels still hold.';

CREATE MATERIALIZED VIEW IF NOT EXISTS run_arrival_rows_from_messages TO run_arrival_rows AS
SELECT run_id, max(ingested_at) AS ingested_at FROM message_rows GROUP BY run_id;

CREATE MATERIALIZED VIEW IF NOT EXISTS run_arrival_rows_from_engagements TO run_arrival_rows AS
SELECT run_id, max(ingested_at) AS ingested_at FROM message_engagement_rows GROUP BY run_id;

CREATE MATERIALIZED VIEW IF NOT EXISTS run_arrival_rows_from_runs TO run_arrival_rows AS
SELECT run_id, max(ingested_at) AS ingested_at FROM run_rows GROUP BY run_id;

INSERT INTO run_arrival_rows
SELECT run_id, max(ingested_at) FROM message_rows GROUP BY run_id
UNION ALL
SELECT run_id, max(ingested_at) FROM message_engagement_rows GROUP BY run_id
UNION ALL
SELECT run_id, max(ingested_at) FROM run_rows GROUP BY run_id;

CREATE TABLE IF NOT EXISTS event_arrival_rows
(
    name        LowCardinality(String) COMMENT 'what was done',
    day         Date32 COMMENT 'when, UTC',
    ingested_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'Kafka record time, latest of such events'
)
ENGINE = AggregatingMergeTree
ORDER BY (name, day)
COMMENT 'When something last came of a day''s events of one name; says which kept funnels with a goal still hold.';

CREATE MATERIALIZED VIEW IF NOT EXISTS event_arrival_rows_from_events TO event_arrival_rows AS
SELECT name, toDate32(occurred_at) AS day, max(ingested_at) AS ingested_at FROM event_rows GROUP BY name, day;

INSERT INTO event_arrival_rows
SELECT name, toDate32(occurred_at) AS day, max(ingested_at) FROM event_rows GROUP BY name, day;

-- A record that lay in Kafka in a transaction may show up to some minutes after its time.
CREATE VIEW IF NOT EXISTS funnel_stale
(
    run_id UUID COMMENT 'the run'
)
AS WITH (SELECT max(complete_until) - toIntervalMinute(5) FROM funnel_kept WHERE run_id = toUUID('00000000-0000-0000-0000-000000000000')) AS kept_until
SELECT DISTINCT run_id
FROM
(
    SELECT run_id FROM run_arrival_rows FINAL WHERE ingested_at > kept_until
    UNION ALL
    SELECT r.run_id AS run_id
    FROM run_rows AS r FINAL
    INNER JOIN run_arrival_rows AS a FINAL ON a.run_id = r.run_id -- no message was accepted later; it may be after the run ended
    INNER JOIN event_arrival_rows AS e FINAL ON e.name = r.goal_event
    WHERE r.goal_event != '' AND e.ingested_at > kept_until AND e.day >= toDate32(r.as_of) AND e.day <= toDate32(a.ingested_at + toIntervalMillisecond(r.goal_within_ms))
) AS came
COMMENT 'Runs of which something came since funnels were last kept.';

CREATE MATERIALIZED VIEW IF NOT EXISTS funnel_rows_from_messages
REFRESH AFTER 1 MINUTE APPEND TO funnel_rows EMPTY
AS WITH
    assumeNotNull((SELECT complete_until FROM freshness)) AS until,
    (SELECT argMax(version, (put_at, version)) FROM classifier_rows) AS in_force
SELECT run_id, toUInt32(in_force) AS classifier_version, until AS complete_until, groups
FROM
(
    SELECT toUUID('00000000-0000-0000-0000-000000000000') AS run_id, CAST([] AS Array(Tuple(campaign_id String, variant String, channel String, counts Array(UInt64)))) AS groups
    UNION ALL
    SELECT run_id, groupArray(CAST((campaign_id, variant, channel, counts) AS Tuple(campaign_id String, variant String, channel String, counts Array(UInt64)))) AS groups
    FROM funnel_now
    WHERE run_id IN (SELECT run_id FROM funnel_stale) AND run_id != toUUID('00000000-0000-0000-0000-000000000000')
    GROUP BY run_id
)
WHERE until > toDateTime64(0, 3, 'UTC')
ORDER BY run_id;

CREATE OR REPLACE VIEW funnel
(
    campaign_id     String COMMENT 'the campaign',
    run_id          UUID COMMENT 'the run; filter by it, it is the key',
    variant         String COMMENT 'content variant; empty while campaigns have one',
    channel         String COMMENT 'email, …',
    requested       UInt64 COMMENT 'messages admitted; in a bulk run, and in all columns below, also people',
    rendered        UInt64 COMMENT 'messages rendered',
    accepted        UInt64 COMMENT 'messages a provider took',
    delivered       UInt64 COMMENT 'messages reported delivered; many providers never say',
    opened          UInt64 COMMENT 'messages opened by a person',
    clicked         UInt64 COMMENT 'messages of which a person followed a link, opened or not',
    converted       UInt64 COMMENT 'messages with the campaign''s goal event within its window: any touch',
    unsubscribed    UInt64 COMMENT 'messages by which somebody unsubscribed',
    bounced         UInt64 COMMENT 'messages reported undeliverable after a provider had taken them',
    complained      UInt64 COMMENT 'messages reported as spam',
    opened_machine  UInt64 COMMENT 'messages opened by a machine, whether a person opened them too or not',
    clicked_machine UInt64 COMMENT 'messages of which a machine followed a link',
    opened_unknown  UInt64 COMMENT 'messages opened by who knows whom',
    clicked_unknown UInt64 COMMENT 'messages of which who knows who followed a link',
    complete_until  DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted; 1970 if that is not known'
)
AS WITH (SELECT groupArray(run_id) FROM funnel_stale) AS stale -- asked once
SELECT campaign_id, run_id, variant, channel,
    counts[1] AS requested, counts[2] AS rendered, counts[3] AS accepted, counts[4] AS delivered, counts[5] AS opened, counts[6] AS clicked, counts[7] AS converted,
    counts[8] AS unsubscribed, counts[9] AS bounced, counts[10] AS complained, counts[11] AS opened_machine, counts[12] AS clicked_machine,
    counts[13] AS opened_unknown, counts[14] AS clicked_unknown, assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM
(
    SELECT g.campaign_id AS campaign_id, run_id, g.variant AS variant, g.channel AS channel, g.counts AS counts
    FROM funnel_kept
    ARRAY JOIN groups AS g
    WHERE NOT has(stale, run_id)
    UNION ALL
    SELECT campaign_id, run_id, variant, channel, counts
    FROM funnel_now
    WHERE run_id IN (SELECT arrayJoin(stale))
) AS f
COMMENT 'How many messages got how far, per campaign, run, variant and channel; by people unless the column says otherwise.';
