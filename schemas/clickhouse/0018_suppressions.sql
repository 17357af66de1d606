-- An address that bounced for good, or whose owner complained, is not written to until that is lifted.

ALTER TABLE profile_rows ADD COLUMN IF NOT EXISTS suppressions Map(LowCardinality(String), String) COMMENT 'channels whose address must not be written to, and why: bounced, complained' AFTER consents;

CREATE OR REPLACE VIEW profiles
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
    suppressions    Map(LowCardinality(String), String) COMMENT 'channels whose address must not be written to, and why: bounced, complained',
    locale          LowCardinality(String) COMMENT 'or empty',
    time_zone       LowCardinality(String) COMMENT 'or empty',
    account_id      String COMMENT 'or empty',
    created_at      DateTime64(6, 'UTC') COMMENT 'first change',
    updated_at      DateTime64(6, 'UTC') COMMENT 'last change',
    attributes      JSON COMMENT 'all attributes, for people: attributes.plan',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay'
)
AS SELECT
    user_id, revision, attr_string, attr_int, attr_float, attr_bool, attr_time, attr_json, addresses, consents, suppressions,
    locale, time_zone, account_id, created_at, updated_at,
    CAST(concat('{', arrayStringConcat(arrayConcat(
        arrayMap((k, v) -> concat(toJSONString(k), ':', toJSONString(v)), mapKeys(attr_string), mapValues(attr_string)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', toString(v)), mapKeys(attr_int), mapValues(attr_int)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', if(isFinite(v), toString(v), 'null')), mapKeys(attr_float), mapValues(attr_float)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', if(v, 'true', 'false')), mapKeys(attr_bool), mapValues(attr_bool)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', toJSONString(fromUnixTimestamp64Micro(v, 'UTC'))), mapKeys(attr_time), mapValues(attr_time)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', if(isValidJSON(v), v, 'null')), mapKeys(attr_json), mapValues(attr_json))
    ), ','), '}'), 'JSON') AS attributes,
    ingested_at, kafka_topic, kafka_partition, kafka_offset
FROM profile_rows FINAL
WHERE NOT deleted
SETTINGS type_json_skip_duplicated_paths = 1
COMMENT 'Profiles in force, one row per person.';

ALTER TABLE outcome_rows COMMENT COLUMN outcome 'excluded, rendered, rejected, accepted, deferred, failed, uncertain, expired, cancelled, parked, replayed; reported later by the provider: delivered, delayed, bounced, complained';
