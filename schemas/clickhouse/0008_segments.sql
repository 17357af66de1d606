-- A file may remove people from a segment: of the imports that make it up, a run keeps which do, and in which order they count.

ALTER TABLE run_rows ADD COLUMN IF NOT EXISTS segment_removals Map(String, Array(UUID)) COMMENT 'segment to those of its imports that remove whom they list' AFTER segments;
ALTER TABLE run_rows COMMENT COLUMN segments 'segment to the imports that made it up, as the run saw them, in the order in which they count';

ALTER TABLE segment_member_rows MODIFY COMMENT 'Whom imported lists name, to add or to remove them, copies included; read segment_members instead.';
ALTER TABLE segment_members MODIFY COMMENT 'Whom imported lists name, one row per list, import and person. Which imports make up a list now, and which of them remove, is the definition''s to say.';

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
    ingested_at         DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic         LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition     Int32 COMMENT 'where the record lay',
    kafka_offset        Int64 COMMENT 'where the record lay'
)
AS SELECT
    run_id, campaign_id, state, note, campaign_version, audience_id, audience_version, template_id,
    template_version, channel, lane, policy, consent, request_id, requested_at, as_of, segments, segment_removals,
    expires_at, shards, expected, cancel_requested, unread_spool_events, started_at, finished_at, balanced, updated_at,
    ingested_at, kafka_topic, kafka_partition, kafka_offset
FROM run_rows FINAL
COMMENT 'Runs, one row per execution of a campaign.';
