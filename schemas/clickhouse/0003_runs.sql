-- Runs as the resolver tells them on the compacted topic runs, which is one partition: the latest offset is in force.

CREATE TABLE IF NOT EXISTS run_rows
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
    segments            Map(String, Array(UUID)) COMMENT 'segment to the imports that made it up, as the run saw them',
    expires_at          DateTime64(6, 'UTC') COMMENT 'its messages are not sent after this',
    shards              Int32 COMMENT 'shards first cut; 0 until then',
    expected            Int64 COMMENT 'people counted before the shards were cut',
    cancel_requested    Bool COMMENT 'somebody asked to stop it',
    unread_spool_events Int64 COMMENT 'events in collectors'' spools that were not waited for',
    started_at          Nullable(DateTime64(6, 'UTC')) COMMENT 'when the shards were cut',
    finished_at         Nullable(DateTime64(6, 'UTC')) COMMENT 'when it ended',
    balanced            Bool COMMENT 'the driver found both countings equal',
    updated_at          DateTime64(6, 'UTC') COMMENT 'last change',
    ingested_at         DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic         LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition     Int32 COMMENT 'where the record lay',
    kafka_offset        Int64 COMMENT 'where the record lay'
)
ENGINE = ReplacingMergeTree(kafka_offset)
ORDER BY run_id
COMMENT 'States of runs; read runs instead.';

CREATE TABLE IF NOT EXISTS run_shard_rows
(
    run_id          UUID COMMENT 'the run',
    campaign_id     String COMMENT 'its campaign',
    shard           Int32 COMMENT 'people with cityHash64(user_id) % shard_count = shard',
    shard_count     Int32 COMMENT 'into how many the people are cut',
    candidates      Int64 COMMENT 'people found; 0 if it was split',
    children        Int32 COMMENT 'shards it was split into instead, or 0',
    done_at         DateTime64(6, 'UTC') COMMENT 'when its candidates were written',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay'
)
ENGINE = ReplacingMergeTree(kafka_offset)
ORDER BY (run_id, shard_count, shard)
COMMENT 'Shards that are done; read run_shards instead.';

CREATE TABLE IF NOT EXISTS run_counter_rows
(
    run_id          UUID COMMENT 'the run',
    campaign_id     String COMMENT 'its campaign',
    partition       Int32 COMMENT 'the person partition whose part this is',
    repeats         Int64 COMMENT 'candidates that were already admitted or excluded',
    excluded        Map(String, Int64) COMMENT 'reason to people excluded for it',
    requested       Int64 COMMENT 'messages admitted',
    waiting         Int64 COMMENT 'requested, without an ending',
    rejected        Int64 COMMENT 'not rendered',
    accepted        Int64 COMMENT 'taken by the provider',
    failed          Int64 COMMENT 'refused for good',
    uncertain       Int64 COMMENT 'asked the provider, never heard back',
    expired         Int64 COMMENT 'too late to be sent',
    cancelled       Int64 COMMENT 'ended by cancel before it was sent',
    parked          Int64 COMMENT 'could not be processed; in dead letters',
    updated_at      DateTime64(6, 'UTC') COMMENT 'last change',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay'
)
ENGINE = ReplacingMergeTree(kafka_offset)
ORDER BY (run_id, partition)
COMMENT 'Counters as the resolver counted; read run_counters instead.';
