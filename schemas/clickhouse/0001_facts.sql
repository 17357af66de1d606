-- What is known about people: behaviour events, profiles, imported lists.
--
-- Rules for every *_rows table, so that the sink may insert anything twice, in any cut and order:
-- ordered by nothing that can differ between two copies of a record; of two copies the engine keeps one by a column that does not
-- depend on the order of inserts; every column is a function of its record; partitions and retention (0005) go by Kafka record time.
-- Tables that keep for ever have no partitions, since copies in different partitions never merge.
--
-- Customers' own values have any name and one of six types; each type has a map, so that a filter reads exactly the type it compares
-- with and a name is always a bound parameter. Instants are microseconds: an author may write any year, DateTime64 ends in 2299.

CREATE TABLE IF NOT EXISTS event_rows
(
    event_id        String COMMENT 'identity, unique per person',
    user_id         String COMMENT 'the person',
    anonymous_id    String COMMENT 'id before the person was known, or empty',
    name            LowCardinality(String) COMMENT 'what was done',
    occurred_at     DateTime64(6, 'UTC') COMMENT 'when, by the source''s clock; never ahead of received_at',
    received_at     DateTime64(6, 'UTC') COMMENT 'when it reached us',
    source          LowCardinality(String) COMMENT 'import:<import_id> or api:<write key name>',
    prop_string     Map(String, String) COMMENT 'properties that are strings',
    prop_int        Map(String, Int64) COMMENT 'properties that are whole numbers',
    prop_float      Map(String, Float64) COMMENT 'properties that are other numbers',
    prop_bool       Map(String, Bool) COMMENT 'properties that are booleans',
    prop_time       Map(String, Int64) COMMENT 'properties that are instants, microseconds since 1970-01-01 UTC',
    prop_json       Map(String, String) COMMENT 'properties that are arrays or objects, canonical JSON text',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay',
    first_wins      UInt64 MATERIALIZED 9223372036854775807 - toUInt64(kafka_offset) COMMENT 'of copies with one id the earliest in Kafka is kept'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(ingested_at)
ORDER BY (user_id, event_id)
COMMENT 'Events as they were ingested, copies included; read events instead.';

CREATE TABLE IF NOT EXISTS profile_rows
(
    user_id         String COMMENT 'the person',
    revision        Int64 COMMENT 'grows by one with each change; the highest is in force',
    attr_string     Map(String, String) COMMENT 'attributes that are strings',
    attr_int        Map(String, Int64) COMMENT 'attributes that are whole numbers',
    attr_float      Map(String, Float64) COMMENT 'attributes that are other numbers',
    attr_bool       Map(String, Bool) COMMENT 'attributes that are booleans',
    attr_time       Map(String, Int64) COMMENT 'attributes that are instants, microseconds since 1970-01-01 UTC',
    attr_json       Map(String, String) COMMENT 'attributes that are arrays or objects, canonical JSON text',
    addresses       Map(LowCardinality(String), String) COMMENT 'channel to address; a removed one is not in it',
    consents        Map(LowCardinality(String), String) COMMENT 'channel to subscribed or unsubscribed; unknown is not in it',
    locale          LowCardinality(String) COMMENT 'or empty',
    time_zone       LowCardinality(String) COMMENT 'or empty',
    account_id      String COMMENT 'or empty',
    created_at      DateTime64(6, 'UTC') COMMENT 'first change',
    updated_at      DateTime64(6, 'UTC') COMMENT 'last change',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay'
)
ENGINE = ReplacingMergeTree(revision)
ORDER BY user_id
COMMENT 'Revisions of profiles; read profiles instead.';

CREATE TABLE IF NOT EXISTS segment_member_rows
(
    segment_id      LowCardinality(String) COMMENT 'the imported list',
    import_id       UUID COMMENT 'the import that said so; which imports make up a segment now is the definition''s to say',
    user_id         String COMMENT 'the person',
    attributes      String COMMENT 'what the list says about the person, a JSON object as text',
    occurred_at     DateTime64(6, 'UTC') COMMENT 'when the import began',
    line            Int64 COMMENT 'line in the file',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay; of two lines about one person the later is kept'
)
ENGINE = ReplacingMergeTree(kafka_offset)
ORDER BY (segment_id, import_id, user_id)
COMMENT 'Members of imported lists, copies included; read segment_members instead.';
