-- Hits are labelled as made by a person, by a machine, or by who knows whom. A label belongs to a version of the classifier; another version labels
-- history anew, and what people read follows the version in force. What providers report after a message was taken gets a time of its own.

ALTER TABLE engagement_rows ADD COLUMN IF NOT EXISTS purpose LowCardinality(String) COMMENT 'why the client says it asked: prefetch, prerender, preview; or empty' AFTER referer;
ALTER TABLE engagement_rows ADD COLUMN IF NOT EXISTS latency_ms Int64 DEFAULT -1 COMMENT 'from the admission of the message to the hit, milliseconds; -1 if the link does not say' AFTER purpose;

CREATE TABLE IF NOT EXISTS engagement_label_rows
(
    classifier_version UInt32 COMMENT 'version of the rules that said so',
    run_id             UUID COMMENT 'its run',
    message_id         UUID COMMENT 'its message',
    engagement_id      UUID COMMENT 'the hit',
    kind               LowCardinality(String) COMMENT 'opened, clicked, unsubscribed',
    label              LowCardinality(String) COMMENT 'human, machine or unknown',
    rule               LowCardinality(String) COMMENT 'name of the rule that decided; empty if none did',
    occurred_at        DateTime64(6, 'UTC') COMMENT 'when the hit came in',
    ingested_at        DateTime64(3, 'UTC') COMMENT 'Kafka record time of the hit',
    kafka_offset       Int64 COMMENT 'where the hit lay',
    first_wins         UInt64 MATERIALIZED 9223372036854775807 - toUInt64(kafka_offset) COMMENT 'of copies with one id the earliest in Kafka is kept'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (classifier_version, run_id, message_id, engagement_id)
COMMENT 'Who made a hit, by version of the classifier, copies included; read engagements instead.';

CREATE TABLE IF NOT EXISTS message_engagement_rows
(
    classifier_version UInt32 COMMENT 'version of the rules',
    run_id             UUID COMMENT 'the run',
    message_id         UUID COMMENT 'the message',
    opened_at          SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first open by a person',
    opened_machine_at  SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first open by a machine',
    opened_unknown_at  SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first open by who knows whom',
    clicked_at         SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first click by a person',
    clicked_machine_at SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first click by a machine',
    clicked_unknown_at SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first click by who knows whom',
    ingested_at        SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'Kafka record time, latest'
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (classifier_version, run_id, message_id)
COMMENT 'Partial states of what was done with a message, by version of the classifier; read message_engagement instead.';

CREATE MATERIALIZED VIEW IF NOT EXISTS message_engagement_rows_from_labels TO message_engagement_rows AS
SELECT classifier_version, run_id, message_id,
    if(kind = 'opened' AND label = 'human', occurred_at, NULL) AS opened_at,
    if(kind = 'opened' AND label = 'machine', occurred_at, NULL) AS opened_machine_at,
    if(kind = 'opened' AND label = 'unknown', occurred_at, NULL) AS opened_unknown_at,
    if(kind = 'clicked' AND label = 'human', occurred_at, NULL) AS clicked_at,
    if(kind = 'clicked' AND label = 'machine', occurred_at, NULL) AS clicked_machine_at,
    if(kind = 'clicked' AND label = 'unknown', occurred_at, NULL) AS clicked_unknown_at,
    ingested_at
FROM engagement_label_rows;

CREATE TABLE IF NOT EXISTS classifier_rows
(
    version      UInt32 COMMENT 'version of the rules',
    put_at       DateTime64(6, 'UTC') COMMENT 'when it was put in force',
    rules_sha256 String COMMENT 'of the rules, hex'
)
ENGINE = ReplacingMergeTree(put_at)
ORDER BY version
COMMENT 'Versions of the classifier that were put in force; read classifiers instead.';

CREATE VIEW IF NOT EXISTS classifiers
(
    version      UInt32 COMMENT 'version of the rules',
    put_at       DateTime64(6, 'UTC') COMMENT 'when it was last put in force',
    rules_sha256 String COMMENT 'of the rules, hex',
    in_force     Bool COMMENT 'what people read goes by it: it was put in force last'
)
AS SELECT version, put_at, rules_sha256,
    CAST(version = (SELECT argMax(version, (put_at, version)) FROM classifier_rows) AS Bool) AS in_force
FROM classifier_rows FINAL
COMMENT 'Versions of the classifier, and which one is in force.';

CREATE VIEW IF NOT EXISTS message_engagement
(
    run_id             UUID COMMENT 'the run; filter by it, it is the key',
    message_id         UUID COMMENT 'the message',
    classifier_version UInt32 COMMENT 'version of the rules in force',
    opened_at          Nullable(DateTime64(6, 'UTC')) COMMENT 'first open by a person',
    opened_machine_at  Nullable(DateTime64(6, 'UTC')) COMMENT 'first open by a machine',
    opened_unknown_at  Nullable(DateTime64(6, 'UTC')) COMMENT 'first open by who knows whom',
    clicked_at         Nullable(DateTime64(6, 'UTC')) COMMENT 'first click by a person',
    clicked_machine_at Nullable(DateTime64(6, 'UTC')) COMMENT 'first click by a machine',
    clicked_unknown_at Nullable(DateTime64(6, 'UTC')) COMMENT 'first click by who knows whom'
)
AS SELECT
    run_id, message_id, classifier_version,
    opened_at, opened_machine_at, opened_unknown_at, clicked_at, clicked_machine_at, clicked_unknown_at
FROM message_engagement_rows FINAL
WHERE classifier_version = (SELECT argMax(version, (put_at, version)) FROM classifier_rows)
COMMENT 'Opens and clicks of each message, by people and by machines, as the classifier in force judges them.';

CREATE OR REPLACE VIEW engagements
(
    engagement_id   UUID COMMENT 'identity, made when the hit came in',
    message_id      UUID COMMENT 'the message',
    run_id          UUID COMMENT 'its run',
    campaign_id     LowCardinality(String) COMMENT 'its campaign',
    variant         LowCardinality(String) COMMENT 'content variant; empty while campaigns have one',
    user_id         String COMMENT 'whom the message was for',
    channel         LowCardinality(String) COMMENT 'email, …',
    kind            LowCardinality(String) COMMENT 'opened, clicked, unsubscribed',
    label           LowCardinality(String) COMMENT 'human, machine or unknown, as the classifier in force judges it; empty if it has not yet',
    rule            LowCardinality(String) COMMENT 'the rule that decided the label, or empty',
    url             String COMMENT 'clicked: where it led',
    occurred_at     DateTime64(6, 'UTC') COMMENT 'when the hit came in',
    method          LowCardinality(String) COMMENT 'HTTP method',
    user_agent      String COMMENT 'as sent',
    network         String COMMENT 'client address, as much of it as TRACKING_ADDRESS keeps',
    referer         String COMMENT 'as sent',
    purpose         LowCardinality(String) COMMENT 'why the client says it asked: prefetch, prerender, preview; or empty',
    latency_ms      Int64 COMMENT 'from the admission of the message to the hit, milliseconds; -1 if the link does not say',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay'
)
AS SELECT
    t.engagement_id AS engagement_id, t.message_id AS message_id, t.run_id AS run_id, campaign_id, variant, user_id, channel, t.kind AS kind,
    l.label AS label, l.rule AS rule, url, t.occurred_at AS occurred_at, method, user_agent, network, referer, purpose, latency_ms,
    t.ingested_at AS ingested_at, kafka_topic, kafka_partition, t.kafka_offset AS kafka_offset
FROM engagement_rows AS t FINAL
LEFT JOIN
(
    SELECT run_id, message_id, engagement_id, label, rule
    FROM engagement_label_rows FINAL
    WHERE classifier_version = (SELECT argMax(version, (put_at, version)) FROM classifier_rows)
) AS l ON l.run_id = t.run_id AND l.message_id = t.message_id AND l.engagement_id = t.engagement_id
SETTINGS join_use_nulls = 0 -- whatever who asks has set; dbt sets it
COMMENT 'Opens, clicks and unsubscribes, one row per hit, with who made it: a person, a machine, or who knows whom.';

ALTER TABLE message_rows ADD COLUMN IF NOT EXISTS delivered_at SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first reported delivered' AFTER accepted_at;
ALTER TABLE message_rows ADD COLUMN IF NOT EXISTS bounced_at SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first reported undeliverable, after a provider had taken it' AFTER delivered_at;
ALTER TABLE message_rows ADD COLUMN IF NOT EXISTS complained_at SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first reported as spam by the person' AFTER bounced_at;

-- A bounce and a complaint prove, as a delivery does, that a provider had taken the message.
ALTER TABLE message_rows_from_outcomes MODIFY QUERY
WITH transform(outcome, ['excluded', 'uncertain', 'deferred', 'cancelled', 'expired', 'failed', 'rejected', 'parked', 'replayed'],
    ['0', '1', '2', '3', '4', '5', '6', '7', '8'], '') AS outcome_rank
SELECT run_id, message_id, campaign_id, variant, step, lane, channel, user_id,
    if(outcome = 'excluded', occurred_at, NULL) AS excluded_at,
    if(outcome = 'rendered', occurred_at, NULL) AS rendered_at,
    if(outcome IN ('accepted', 'delivered', 'bounced', 'complained'), occurred_at, NULL) AS accepted_at,
    if(outcome = 'delivered', occurred_at, NULL) AS delivered_at,
    if(outcome = 'bounced', occurred_at, NULL) AS bounced_at,
    if(outcome = 'complained', occurred_at, NULL) AS complained_at,
    occurred_at AS last_outcome_at,
    attempt AS attempts,
    if(outcome_rank = '', '', concat(leftPad(toString(attempt), 6, '0'), outcome_rank, reason)) AS ending,
    ingested_at
FROM outcome_rows;

ALTER TABLE outcome_rows COMMENT COLUMN outcome 'excluded, rendered, rejected, accepted, deferred, failed, uncertain, expired, cancelled, parked, replayed; reported later by the provider: delivered, bounced, complained';
