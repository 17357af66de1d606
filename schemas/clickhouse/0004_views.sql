-- What people and services read: one row per thing, copies already dropped. Views with FINAL over the rows, so they are right however
-- the rows came in. Nothing here asks for the time. The JSON columns are made from the typed maps only when they are read; where an
-- attribute a.b meets an object a with a member b, the first is shown.

CREATE VIEW IF NOT EXISTS events
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
    properties      JSON COMMENT 'all properties, for people: properties.price',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay'
)
AS SELECT
    event_id, user_id, anonymous_id, name, occurred_at, received_at, source, prop_string, prop_int, prop_float,
    prop_bool, prop_time, prop_json,
    CAST(concat('{', arrayStringConcat(arrayConcat(
        arrayMap((k, v) -> concat(toJSONString(k), ':', toJSONString(v)), mapKeys(prop_string), mapValues(prop_string)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', toString(v)), mapKeys(prop_int), mapValues(prop_int)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', if(isFinite(v), toString(v), 'null')), mapKeys(prop_float), mapValues(prop_float)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', if(v, 'true', 'false')), mapKeys(prop_bool), mapValues(prop_bool)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', toJSONString(fromUnixTimestamp64Micro(v, 'UTC'))), mapKeys(prop_time), mapValues(prop_time)),
        arrayMap((k, v) -> concat(toJSONString(k), ':', if(isValidJSON(v), v, 'null')), mapKeys(prop_json), mapValues(prop_json))
    ), ','), '}'), 'JSON') AS properties,
    ingested_at, kafka_topic, kafka_partition, kafka_offset
FROM event_rows FINAL
SETTINGS type_json_skip_duplicated_paths = 1
COMMENT 'Behaviour events, one row per event.';

CREATE VIEW IF NOT EXISTS profiles
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
    attributes      JSON COMMENT 'all attributes, for people: attributes.plan',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay'
)
AS SELECT
    user_id, revision, attr_string, attr_int, attr_float, attr_bool, attr_time, attr_json, addresses, consents,
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
SETTINGS type_json_skip_duplicated_paths = 1
COMMENT 'Profiles in force, one row per person.';

CREATE VIEW IF NOT EXISTS segment_members
(
    segment_id      LowCardinality(String) COMMENT 'the imported list',
    import_id       UUID COMMENT 'the import that said so; which imports make up a segment now is the definition''s to say',
    user_id         String COMMENT 'the person',
    attributes      JSON COMMENT 'what the list says about the person',
    occurred_at     DateTime64(6, 'UTC') COMMENT 'when the import began',
    line            Int64 COMMENT 'line in the file',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic     LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition Int32 COMMENT 'where the record lay',
    kafka_offset    Int64 COMMENT 'where the record lay; of two lines about one person the later is kept'
)
AS SELECT
    segment_id, import_id, user_id, CAST(t.attributes, 'JSON') AS attributes, occurred_at, line, ingested_at,
    kafka_topic, kafka_partition, kafka_offset
FROM segment_member_rows AS t FINAL
SETTINGS type_json_skip_duplicated_paths = 1
COMMENT 'Members of imported lists, one row per list, import and person. Which imports make up a list now is the definition''s to say.';

CREATE VIEW IF NOT EXISTS outcomes
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
    content_hash      String COMMENT 'of rendered: SHA-256 of what is handed to the provider, as hex; else empty',
    renderer_version  LowCardinality(String) COMMENT 'of rendered; else empty',
    ingested_at       DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic       LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition   Int32 COMMENT 'where the record lay',
    kafka_offset      Int64 COMMENT 'where the record lay'
)
AS SELECT
    outcome_id, message_id, run_id, campaign_id, variant, step, lane, user_id, channel, outcome, attempt, reason,
    detail, occurred_at, source_topic, source_partition, source_offset, provider, provider_id, provider_event_id,
    lower(hex(t.content_hash)) AS content_hash, renderer_version, ingested_at, kafka_topic, kafka_partition,
    kafka_offset
FROM outcome_rows AS t FINAL
COMMENT 'Steps and endings of messages, exclusions included, one row per step of an attempt.';

CREATE VIEW IF NOT EXISTS engagements
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
    kafka_offset    Int64 COMMENT 'where the record lay'
)
AS SELECT
    engagement_id, message_id, run_id, campaign_id, variant, user_id, channel, kind, url, occurred_at, method,
    user_agent, network, referer, ingested_at, kafka_topic, kafka_partition, kafka_offset
FROM engagement_rows FINAL
COMMENT 'Opens, clicks and unsubscribes, one row per hit, made by people and machines alike: raw hits are not classified yet.';

CREATE VIEW IF NOT EXISTS message_inputs
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
    attributes       JSON COMMENT 'values the template read',
    segments         JSON COMMENT 'values of the person in the campaign''s segments: segments.list.name',
    record           String COMMENT 'the whole request as it lay in Kafka, Avro in the Confluent wire format: what exact reconstruction decodes',
    ingested_at      DateTime64(3, 'UTC') COMMENT 'Kafka record time',
    kafka_topic      LowCardinality(String) COMMENT 'where the record lay, without namespace',
    kafka_partition  Int32 COMMENT 'where the record lay',
    kafka_offset     Int64 COMMENT 'where the record lay'
)
AS SELECT
    message_id, run_id, campaign_id, campaign_version, template_id, template_version, variant, step, lane, user_id,
    channel, address, policy, requested_at, expires_at, locale, time_zone, key_id,
    CAST(t.attributes, 'JSON') AS attributes, CAST(t.segments, 'JSON') AS segments, record, ingested_at,
    kafka_topic, kafka_partition, kafka_offset
FROM message_input_rows AS t FINAL
SETTINGS type_json_skip_duplicated_paths = 1
COMMENT 'What went into a message, one row per message.';

CREATE VIEW IF NOT EXISTS runs
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
AS SELECT
    run_id, campaign_id, state, note, campaign_version, audience_id, audience_version, template_id,
    template_version, channel, lane, policy, consent, request_id, requested_at, as_of, segments, expires_at,
    shards, expected, cancel_requested, unread_spool_events, started_at, finished_at, balanced, updated_at,
    ingested_at, kafka_topic, kafka_partition, kafka_offset
FROM run_rows FINAL
COMMENT 'Runs, one row per execution of a campaign.';

CREATE VIEW IF NOT EXISTS run_shards
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
AS SELECT
    run_id, campaign_id, shard, shard_count, candidates, children, done_at, ingested_at, kafka_topic,
    kafka_partition, kafka_offset
FROM run_shard_rows FINAL
COMMENT 'Slices of runs that are resolved, one row per slice.';

CREATE VIEW IF NOT EXISTS run_counters
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
AS SELECT
    run_id, campaign_id, partition, repeats, excluded, requested, waiting, rejected, accepted, failed, uncertain,
    expired, cancelled, parked, updated_at, ingested_at, kafka_topic, kafka_partition, kafka_offset
FROM run_counter_rows FINAL
COMMENT 'What the resolver counted, one row per run and person partition.';

CREATE VIEW IF NOT EXISTS messages
(
    run_id          UUID COMMENT 'the run; filter by it, it is the key',
    message_id      UUID COMMENT 'the message: one campaign, one person, one occurrence',
    campaign_id     String COMMENT 'its campaign',
    variant         String COMMENT 'content variant; empty while campaigns have one',
    step            String COMMENT 'step of the campaign; empty while campaigns have none',
    lane            String COMMENT 'bulk or realtime',
    channel         String COMMENT 'email, …',
    user_id         String COMMENT 'the person',
    class           LowCardinality(String) COMMENT 'excluded, or of requested: waiting, rejected, accepted, failed, uncertain (asked the provider, never heard back), expired, cancelled, parked; unknown if only engagements are known',
    reason          String COMMENT 'of the outcome that decided the class; empty for accepted',
    attempts        Int32 COMMENT 'highest attempt seen',
    requested_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'admitted',
    excluded_at     Nullable(DateTime64(6, 'UTC')) COMMENT 'excluded',
    rendered_at     Nullable(DateTime64(6, 'UTC')) COMMENT 'rendered',
    accepted_at     Nullable(DateTime64(6, 'UTC')) COMMENT 'first accepted by a provider',
    opened_at       Nullable(DateTime64(6, 'UTC')) COMMENT 'first open, by a person or a machine',
    clicked_at      Nullable(DateTime64(6, 'UTC')) COMMENT 'first click, by a person or a machine',
    unsubscribed_at Nullable(DateTime64(6, 'UTC')) COMMENT 'first unsubscribe',
    last_outcome_at Nullable(DateTime64(6, 'UTC')) COMMENT 'latest outcome',
    ingested_at     DateTime64(3, 'UTC') COMMENT 'Kafka record time, latest'
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
    attempts, requested_at, excluded_at, rendered_at, accepted_at, opened_at, clicked_at, unsubscribed_at, last_outcome_at, ingested_at
FROM message_rows FINAL
COMMENT 'One row per message with the time of each step and the class its outcomes give it, whatever order they came in.';

CREATE VIEW IF NOT EXISTS run_counts
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
    FROM messages
    ARRAY JOIN arrayFilter(counted_as -> counted_as.1 != '',
        [(toString(class), if(class = 'excluded', reason, '')), (if(requested_at IS NULL, '', 'requested'), '')]) AS counted
    WHERE class != 'unknown'
)
GROUP BY run_id, name, reason
COMMENT 'Every number of a run, counted twice by different paths. Where resolver and stored differ, something was lost, or is still on its way.';

CREATE VIEW IF NOT EXISTS run_balance
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
    balanced_by_driver      Bool COMMENT 'the resolver found the same and closed the run'
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
    balanced_by_driver
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
COMMENT 'Whether the numbers of a run add up: as the resolver counted, as counted from what is stored, and what differs.';

CREATE VIEW IF NOT EXISTS funnel
(
    campaign_id  String COMMENT 'the campaign',
    run_id       UUID COMMENT 'the run; filter by it, it is the key',
    variant      String COMMENT 'content variant; empty while campaigns have one',
    channel      String COMMENT 'email, …',
    requested    UInt64 COMMENT 'people admitted',
    rendered     UInt64 COMMENT 'people whose message was rendered',
    accepted     UInt64 COMMENT 'people whose message a provider took',
    opened       UInt64 COMMENT 'people whose message was opened; raw hits, by machines too: they are not classified into human and machine yet',
    clicked      UInt64 COMMENT 'people for whom a link was followed; raw hits, by machines too: they are not classified into human and machine yet',
    unsubscribed UInt64 COMMENT 'people who unsubscribed by this message'
)
AS SELECT
    campaign_id, run_id, variant, channel,
    uniqExactIf(user_id, requested_at IS NOT NULL) AS requested,
    uniqExactIf(user_id, rendered_at IS NOT NULL) AS rendered,
    uniqExactIf(user_id, accepted_at IS NOT NULL) AS accepted,
    uniqExactIf(user_id, opened_at IS NOT NULL) AS opened,
    uniqExactIf(user_id, clicked_at IS NOT NULL) AS clicked,
    uniqExactIf(user_id, unsubscribed_at IS NOT NULL) AS unsubscribed
FROM messages
WHERE class != 'excluded'
GROUP BY campaign_id, run_id, variant, channel
COMMENT 'How many people got how far, per campaign, run, variant and channel.';
