-- What analysts ask most. Days are UTC; opens and clicks are by people unless a column says otherwise; nothing here is kept, so late events restate it.
-- What was done with test mails, which are of no run, is counted nowhere.

CREATE VIEW IF NOT EXISTS campaign_daily
(
    day             Date COMMENT 'UTC day on which it happened',
    campaign_id     String COMMENT 'the campaign',
    channel         String COMMENT 'email, …',
    requested       UInt64 COMMENT 'messages admitted that day',
    accepted        UInt64 COMMENT 'messages a provider took that day',
    delivered       UInt64 COMMENT 'messages reported delivered that day',
    opened          UInt64 COMMENT 'messages that a person opened for the first time that day',
    clicked         UInt64 COMMENT 'messages of which a person followed a link for the first time that day',
    converted       UInt64 COMMENT 'messages whose first goal event was that day: any touch',
    unsubscribed    UInt64 COMMENT 'messages by which somebody unsubscribed that day',
    bounced         UInt64 COMMENT 'messages reported undeliverable that day',
    complained      UInt64 COMMENT 'messages reported as spam that day',
    opened_machine  UInt64 COMMENT 'messages that a machine opened for the first time that day',
    clicked_machine UInt64 COMMENT 'messages of which a machine followed a link for the first time that day',
    complete_until  DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted; 1970 if that is not known'
)
AS SELECT toDate(happened.2) AS day, campaign_id, channel,
    countIf(happened.1 = 1) AS requested, countIf(happened.1 = 2) AS accepted, countIf(happened.1 = 3) AS delivered,
    countIf(happened.1 = 4) AS opened, countIf(happened.1 = 5) AS clicked, countIf(happened.1 = 11) AS converted, countIf(happened.1 = 6) AS unsubscribed,
    countIf(happened.1 = 7) AS bounced, countIf(happened.1 = 8) AS complained, countIf(happened.1 = 9) AS opened_machine, countIf(happened.1 = 10) AS clicked_machine,
    assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM
(
    SELECT campaign_id, channel, arrayJoin(arrayFilter(h -> h.2 IS NOT NULL, [(toUInt8(1), requested_at), (2, accepted_at), (3, delivered_at), (4, opened_at), (5, clicked_at),
        (6, unsubscribed_at), (7, bounced_at), (8, complained_at), (9, opened_machine_at), (10, clicked_machine_at)])) AS happened
    FROM messages
    WHERE excluded_at IS NULL
    UNION ALL
    SELECT campaign_id, channel, (toUInt8(11), toNullable(min(occurred_at))) AS happened
    FROM goal_touches
    GROUP BY campaign_id, channel, run_id, message_id
)
GROUP BY day, campaign_id, channel
COMMENT 'What happened on which day, per campaign and channel; a message is counted on the day of each of its steps.';

CREATE VIEW IF NOT EXISTS links
(
    campaign_id      String COMMENT 'the campaign',
    run_id           UUID COMMENT 'the run; filter by it, it is the key',
    variant          String COMMENT 'content variant; empty while campaigns have one',
    channel          String COMMENT 'email, …',
    url              String COMMENT 'where the link leads',
    messages         UInt64 COMMENT 'messages of which a person followed it',
    clicks           UInt64 COMMENT 'clicks by people',
    clicks_machine   UInt64 COMMENT 'clicks by machines',
    clicks_unknown   UInt64 COMMENT 'clicks by who knows whom, and those that are not judged yet',
    first_clicked_at Nullable(DateTime64(6, 'UTC')) COMMENT 'first click by a person',
    last_clicked_at  Nullable(DateTime64(6, 'UTC')) COMMENT 'last click by a person',
    complete_until   DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted; 1970 if that is not known'
)
AS SELECT campaign_id, run_id, variant, channel, url,
    uniqExactIf(message_id, label = 'human') AS messages, countIf(label = 'human') AS clicks, countIf(label = 'machine') AS clicks_machine,
    countIf(label NOT IN ('human', 'machine')) AS clicks_unknown,
    minIf(toNullable(occurred_at), label = 'human') AS first_clicked_at, maxIf(toNullable(occurred_at), label = 'human') AS last_clicked_at,
    assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM engagements
WHERE kind = 'clicked' AND run_id IN (SELECT run_id FROM run_rows)
GROUP BY campaign_id, run_id, variant, channel, url
COMMENT 'Links that were followed, one row per campaign, run, variant, channel and address.';

CREATE VIEW IF NOT EXISTS time_to_open
(
    campaign_id    String COMMENT 'the campaign',
    run_id         UUID COMMENT 'the run; filter by it, it is the key',
    variant        String COMMENT 'content variant; empty while campaigns have one',
    channel        String COMMENT 'email, …',
    opened         UInt64 COMMENT 'accepted messages that a person opened',
    seconds_p50    Float64 COMMENT 'half of them were opened within so many seconds of being accepted',
    seconds_p90    Float64 COMMENT 'nine in ten of them were',
    within_1h      UInt64 COMMENT 'of them, opened within an hour',
    within_24h     UInt64 COMMENT 'of them, opened within 24 hours',
    within_7d      UInt64 COMMENT 'of them, opened within seven days',
    complete_until DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted; 1970 if that is not known'
)
AS SELECT campaign_id, run_id, variant, channel, count() AS opened,
    quantileExactLow(0.5)(taken) / 1e6 AS seconds_p50, quantileExactLow(0.9)(taken) / 1e6 AS seconds_p90,
    countIf(taken <= 3600000000) AS within_1h, countIf(taken <= 86400000000) AS within_24h, countIf(taken <= 604800000000) AS within_7d,
    assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM
(
    SELECT campaign_id, run_id, variant, channel, greatest(dateDiff('microsecond', assumeNotNull(accepted_at), assumeNotNull(opened_at)), 0) AS taken
    FROM messages
    WHERE class = 'accepted' AND opened_at IS NOT NULL
)
GROUP BY campaign_id, run_id, variant, channel
COMMENT 'How long people took to open a message; an open that a clock saw before the sending took no time.';

CREATE VIEW IF NOT EXISTS activity
(
    user_id     String COMMENT 'the person',
    occurred_at DateTime64(6, 'UTC') COMMENT 'when',
    name        String COMMENT 'name of the event; or, with message_id, opened or clicked',
    message_id  Nullable(UUID) COMMENT 'the message that was opened or clicked'
)
AS SELECT user_id, occurred_at, CAST(name AS String) AS name, CAST(NULL AS Nullable(UUID)) AS message_id
FROM events
UNION ALL
SELECT user_id, occurred_at, CAST(kind AS String) AS name, toNullable(message_id) AS message_id
FROM engagements
WHERE label = 'human' AND kind IN ('opened', 'clicked') AND run_id IN (SELECT run_id FROM run_rows)
COMMENT 'Everything people did: their events, and their opens and clicks.';

CREATE VIEW IF NOT EXISTS cohorts
(
    cohort_week    Date COMMENT 'Monday of the week (UTC) in which the first message to these people was accepted',
    week           UInt32 COMMENT 'whole weeks after a person''s first message: 0 is the seven days that begin with it',
    cohort_people  UInt64 COMMENT 'people in the cohort',
    active_people  UInt64 COMMENT 'of them, those who did something in that week: an event, an open or a click',
    complete_until DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted; 1970 if that is not known'
)
AS WITH
first_messages AS (SELECT user_id, assumeNotNull(min(accepted_at)) AS first_at FROM message_steps WHERE class = 'accepted' GROUP BY user_id),
sizes AS (SELECT toMonday(first_at) AS monday, count() AS people FROM first_messages GROUP BY monday)
SELECT s.monday AS cohort_week, a.number AS week, s.people AS cohort_people, a.people AS active_people, assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM
(
    SELECT toMonday(f.first_at) AS monday, toUInt32(intDiv(dateDiff('microsecond', f.first_at, done.occurred_at), 604800000000)) AS number, uniqExact(f.user_id) AS people
    FROM activity AS done
    INNER JOIN first_messages AS f ON f.user_id = done.user_id
    WHERE done.occurred_at >= f.first_at
    GROUP BY monday, number
) AS a
INNER JOIN sizes AS s ON s.monday = a.monday
COMMENT 'Retention: of the people first written to in a week, how many did something in each week after; a week in which nobody did is not listed.';

CREATE VIEW IF NOT EXISTS account_activity
(
    account_id     String COMMENT 'the account, as the profiles say now; empty for people without one',
    day            Date COMMENT 'UTC day on which it happened',
    people         UInt64 COMMENT 'people of the account who did something: an event, an open or a click',
    events         UInt64 COMMENT 'events of its people',
    accepted       UInt64 COMMENT 'messages to its people that a provider took',
    opens          UInt64 COMMENT 'opens by its people',
    clicks         UInt64 COMMENT 'clicks by its people',
    complete_until DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is counted; 1970 if that is not known'
)
AS SELECT p.account_id AS account_id, toDate(d.occurred_at) AS day, uniqExactIf(d.user_id, d.what != 'accepted') AS people,
    countIf(d.what = 'event') AS events, countIf(d.what = 'accepted') AS accepted, countIf(d.what = 'opened') AS opens, countIf(d.what = 'clicked') AS clicks,
    assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM
(
    SELECT user_id, occurred_at, if(message_id IS NULL, 'event', name) AS what
    FROM activity
    UNION ALL
    SELECT user_id, assumeNotNull(accepted_at) AS occurred_at, 'accepted' AS what
    FROM message_steps
    WHERE class = 'accepted'
) AS d
LEFT JOIN (SELECT user_id, account_id FROM profiles) AS p ON p.user_id = d.user_id
GROUP BY account_id, day
SETTINGS join_use_nulls = 0
COMMENT 'What the people of an account did and were sent, per account and day.';
