-- An import can be taken back by another, and repeated.

ALTER TABLE import_rows ADD COLUMN IF NOT EXISTS segment_mode LowCardinality(String) COMMENT 'what it does with the segment: replace, add or remove; empty if it was imported before there were modes' AFTER segment_id;
ALTER TABLE import_rows ADD COLUMN IF NOT EXISTS undoes String COMMENT 'import_id of the import that this one takes back, 32 hex digits; else empty' AFTER segment_mode;
ALTER TABLE import_rows ADD COLUMN IF NOT EXISTS again Int64 COMMENT 'how often the object was imported before by the same version of the spec' AFTER undoes;
ALTER TABLE import_rows COMMENT COLUMN state 'announced, reading, published, loaded, done, failed, undone';

CREATE OR REPLACE VIEW imports
(
    import_id       UUID COMMENT 'the import: a version of an object under a version of a spec',
    spec_id         LowCardinality(String) COMMENT 'its import spec',
    spec_version    Int64 COMMENT 'exact version',
    bucket          LowCardinality(String) COMMENT 'where the object lies',
    key             String COMMENT 'the object''s key',
    version_id      String COMMENT 'the object''s version; empty where the bucket has none',
    etag            String COMMENT 'empty for a file dropped into the folder',
    size_bytes      Int64 COMMENT 'the object''s size',
    last_modified   DateTime64(6, 'UTC') COMMENT 'time of the object',
    announced_at    DateTime64(6, 'UTC') COMMENT 'when the importer took it',
    started_at      DateTime64(6, 'UTC') COMMENT 'received_at of its events',
    updated_at      DateTime64(6, 'UTC') COMMENT 'last change or sign of life',
    state           LowCardinality(String) COMMENT 'announced, reading, published, loaded, done, failed, undone',
    error           String COMMENT 'why it failed, in words; else empty',
    offset_bytes    Int64 COMMENT 'how much of the object is read and committed',
    line            Int64 COMMENT 'line number of the next row, from 1',
    rows            Int64 COMMENT 'rows read, rejected ones among them',
    rejected        Int64 COMMENT 'rows that were rejected',
    profile_updates Int64 COMMENT 'profile updates made',
    segment_members Int64 COMMENT 'segment members made',
    events          Int64 COMMENT 'events made',
    segment_id      LowCardinality(String) COMMENT 'the segment it fills; empty if none',
    segment_mode    LowCardinality(String) COMMENT 'what it does with the segment: replace, add or remove; empty if it was imported before there were modes',
    undoes          String COMMENT 'import_id of the import that this one takes back, 32 hex digits; else empty',
    again           Int64 COMMENT 'how often the object was imported before by the same version of the spec',
    seconds         Float64 COMMENT 'from started_at to updated_at: of one that has ended, what it took, loading included',
    rows_per_second Nullable(Float64) COMMENT 'rows by seconds, so of all that time; hikyaku imports knows that of the last half minute',
    seconds_left    Nullable(Float64) COMMENT 'from updated_at until the object is read, at the pace so far; NULL unless it is being read',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay'
)
AS SELECT
    import_id, spec_id, spec_version, bucket, key, version_id, etag, size_bytes, last_modified, announced_at, started_at, updated_at, state, error,
    offset_bytes, line, rows, rejected, profile_updates, segment_members, events, segment_id, segment_mode, undoes, again,
    dateDiff('microsecond', started_at, updated_at) / 1e6 AS seconds,
    if(seconds > 0, rows / seconds, NULL) AS rows_per_second,
    if(state = 'reading' AND offset_bytes > 0 AND offset_bytes < size_bytes, (size_bytes - offset_bytes) * seconds / offset_bytes, NULL) AS seconds_left,
    ingested_at, kafka_topic, kafka_partition, kafka_offset
FROM import_rows FINAL
COMMENT 'Files from S3 and how far they are, one row per import.';
