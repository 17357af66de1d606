-- What became of messages, and message_rows, which three materialized views keep: one row per message with the time of each step.
-- It is aggregated on insert by min and max only, which no repetition, order or cut can change.

CREATE TABLE IF NOT EXISTS outcome_rows
(
    outcome_id        UUID COMMENT 'identity of one step of one attempt',
    message_id        UUID COMMENT 'the message',
    run_id            UUID COMMENT 'its run',
    campaign_id       LowCardinality(String) COMMENT 'its campaign; empty if the record that was parked could not be decoded',
    variant           LowCardinality(String) COMMENT 'content variant; empty while campaigns have one',
    step              LowCardinality(String) COMMENT 'step of the campaign; empty while campaigns have none',
    lane              LowCardinality(String) COMMENT 'bulk or realtime',
    user_id           String COMMENT 'the person',
    channel           LowCardinality(String) COMMENT 'email, …',
    outcome           LowCardinality(String) COMMENT 'excluded, rendered, rejected, accepted, deferred, failed, uncertain, expired, cancelled, parked',
    attempt           Int32 COMMENT 'number of the attempt, from 1; 0 before the sender',
    reason            LowCardinality(String) COMMENT 'short machine word, or empty',
    detail            String COMMENT 'in words; the provider''s answer',
    occurred_at       DateTime64(6, 'UTC') COMMENT 'when',
    source_topic      LowCardinality(String) COMMENT 'where the message that was sent lay; written by senders, else empty',
    source_partition  Int32 COMMENT 'with source_topic, else -1',
    source_offset     Int64 COMMENT 'with source_topic, else -1',
    provider          LowCardinality(String) COMMENT 'who was asked, or empty',
    provider_id       String COMMENT 'the provider''s id for the message',
    provider_event_id String COMMENT 'the provider''s id for this report',
    content_hash      String COMMENT 'of rendered: SHA-256 of what is handed to the provider, 32 bytes; else empty',
    renderer_version  LowCardinality(String) COMMENT 'of rendered; else empty',
    ingested_at       DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic       LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition   Int32 COMMENT 'where the record lay',
    kafka_offset      Int64 COMMENT 'where the record lay',
    first_wins        UInt64 MATERIALIZED 9223372036854775807 - toUInt64(kafka_offset) COMMENT 'of copies with one id the earliest in Kafka is kept'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (run_id, message_id, outcome_id)
COMMENT 'Outcomes as they were ingested, copies included; read outcomes instead.';

CREATE TABLE IF NOT EXISTS engagement_rows
(
    engagement_id   UUID COMMENT 'identity, made when the hit came in',
    message_id      UUID COMMENT 'the message',
    run_id          UUID COMMENT 'its run',
    campaign_id     LowCardinality(String) COMMENT 'its campaign',
    variant         LowCardinality(String) COMMENT 'content variant; empty while campaigns have one',
    user_id         String COMMENT 'whom the message was for',
    channel         LowCardinality(String) COMMENT 'email, …',
    kind            LowCardinality(String) COMMENT 'opened, clicked, unsubscribed',
    url             String COMMENT 'clicked: where it led',
    occurred_at     DateTime64(6, 'UTC') COMMENT 'when the hit came in',
    method          LowCardinality(String) COMMENT 'HTTP method',
    user_agent      String COMMENT 'as sent',
    network         String COMMENT 'client address cut to /24 or /48',
    referer         String COMMENT 'as sent',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay',
    first_wins      UInt64 MATERIALIZED 9223372036854775807 - toUInt64(kafka_offset) COMMENT 'of copies with one id the earliest in Kafka is kept'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (run_id, message_id, engagement_id)
COMMENT 'Raw hits as they were ingested, copies included; read engagements instead.';

CREATE TABLE IF NOT EXISTS message_input_rows
(
    message_id       UUID COMMENT 'the message',
    run_id           UUID COMMENT 'its run',
    campaign_id      LowCardinality(String) COMMENT 'its campaign',
    campaign_version Int64 COMMENT 'exact version',
    template_id      LowCardinality(String) COMMENT 'its template',
    template_version Int64 COMMENT 'exact version',
    variant          LowCardinality(String) COMMENT 'content variant; empty while campaigns have one',
    step             LowCardinality(String) COMMENT 'step of the campaign; empty while campaigns have none',
    lane             LowCardinality(String) COMMENT 'bulk or realtime',
    user_id          String COMMENT 'the person',
    channel          LowCardinality(String) COMMENT 'email, …',
    address          String COMMENT 'where it was to go',
    policy           LowCardinality(String) COMMENT 'at_most_once or at_least_once',
    requested_at     DateTime64(6, 'UTC') COMMENT 'when it was admitted; the renderer''s only clock',
    expires_at       DateTime64(6, 'UTC') COMMENT 'after this it is not sent',
    locale           LowCardinality(String) COMMENT 'or empty',
    time_zone        LowCardinality(String) COMMENT 'or empty',
    key_id           LowCardinality(String) COMMENT 'key that signs its links',
    attributes       String COMMENT 'values the template read, a JSON object as text',
    segments         String COMMENT 'values of the person in the campaign''s segments, a JSON object of objects as text',
    record           String COMMENT 'the whole request as it lay in Kafka, Avro in the Confluent wire format: what exact reconstruction decodes' CODEC(ZSTD(1)),
    ingested_at      DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic      LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition  Int32 COMMENT 'where the record lay',
    kafka_offset     Int64 COMMENT 'where the record lay',
    first_wins       UInt64 MATERIALIZED 9223372036854775807 - toUInt64(kafka_offset) COMMENT 'of copies with one id the earliest in Kafka is kept'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (run_id, message_id)
COMMENT 'Message requests as they were ingested, copies included; read message_inputs instead.';

-- campaign_id, user_id and the like are the same in all records about a message, or empty where one could not be decoded: max finds them.
CREATE TABLE IF NOT EXISTS message_rows
(
    run_id          UUID COMMENT 'the run',
    message_id      UUID COMMENT 'the message',
    campaign_id     SimpleAggregateFunction(max, String) COMMENT 'its campaign',
    variant         SimpleAggregateFunction(max, String) COMMENT 'content variant',
    step            SimpleAggregateFunction(max, String) COMMENT 'step of the campaign',
    lane            SimpleAggregateFunction(max, String) COMMENT 'bulk or realtime',
    channel         SimpleAggregateFunction(max, String) COMMENT 'email, …',
    user_id         SimpleAggregateFunction(max, String) COMMENT 'the person',
    requested_at    SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'admitted',
    excluded_at     SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'excluded',
    rendered_at     SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'rendered',
    accepted_at     SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first accepted (or delivered) by a provider',
    opened_at       SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first raw open',
    clicked_at      SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first raw click',
    unsubscribed_at SimpleAggregateFunction(min, Nullable(DateTime64(6, 'UTC'))) COMMENT 'first unsubscribe',
    last_outcome_at SimpleAggregateFunction(max, Nullable(DateTime64(6, 'UTC'))) COMMENT 'latest outcome',
    attempts        SimpleAggregateFunction(max, Int32) COMMENT 'highest attempt seen',
    ending          SimpleAggregateFunction(max, String) COMMENT 'six digits of attempt, one of rank, then the reason: the greatest decides the class; empty without one',
    ingested_at     SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'Kafka record time, latest'
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (run_id, message_id)
COMMENT 'Partial states of messages; read messages instead.';

CREATE MATERIALIZED VIEW IF NOT EXISTS message_rows_from_inputs TO message_rows AS
SELECT run_id, message_id, campaign_id, variant, step, lane, channel, user_id,
    requested_at,
    ingested_at
FROM message_input_rows;

-- The rule is docs/architecture.md, "The class of a message". Names break ties between outcomes of one rank there, here the rank does:
-- cancelled before expired, failed before rejected.
CREATE MATERIALIZED VIEW IF NOT EXISTS message_rows_from_outcomes TO message_rows AS
WITH transform(outcome, ['excluded', 'uncertain', 'deferred', 'cancelled', 'expired', 'failed', 'rejected', 'parked'],
    ['0', '1', '2', '3', '4', '5', '6', '7'], '') AS outcome_rank
SELECT run_id, message_id, campaign_id, variant, step, lane, channel, user_id,
    if(outcome = 'excluded', occurred_at, NULL) AS excluded_at,
    if(outcome = 'rendered', occurred_at, NULL) AS rendered_at,
    if(outcome IN ('accepted', 'delivered'), occurred_at, NULL) AS accepted_at,
    occurred_at AS last_outcome_at,
    attempt AS attempts,
    if(outcome_rank = '', '', concat(leftPad(toString(attempt), 6, '0'), outcome_rank, reason)) AS ending,
    ingested_at
FROM outcome_rows;

CREATE MATERIALIZED VIEW IF NOT EXISTS message_rows_from_engagements TO message_rows AS
SELECT run_id, message_id, campaign_id, variant, channel, user_id,
    if(kind = 'opened', occurred_at, NULL) AS opened_at,
    if(kind = 'clicked', occurred_at, NULL) AS clicked_at,
    if(kind = 'unsubscribed', occurred_at, NULL) AS unsubscribed_at,
    ingested_at
FROM engagement_rows;
