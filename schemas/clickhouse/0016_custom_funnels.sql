-- Ordered funnels over any steps. A step is reached by the earliest thing of its name that is not before what reached the step before it, has not reached a step
-- already, and lies within the window from the first step. Of things at one moment the one with the lesser id comes first, and steps at one moment count in the
-- order in which they are asked for. What the first step asks for may have happened several times: each is tried, and the furthest counts.

-- The steps up to the first that is no step of a message are the message's; that one and all after it are names of events of its person.
CREATE VIEW IF NOT EXISTS message_funnel
AS WITH
    {steps:Array(String)} AS names,
    {within_ms:Int64} * 1000 AS within,
    arrayFirstIndex(n -> n NOT IN ('requested', 'accepted', 'delivered', 'opened', 'clicked'), names) AS first_event,
    arrayMap((n, i) -> concat(if(first_event = 0 OR i < first_event, 'message ', 'event '), n), names, arrayEnumerate(names)) AS wanted
SELECT campaign_id, run_id, variant, channel, position, names[position] AS step, countIf(reached >= position) AS messages,
    assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM
(
    SELECT m.campaign_id AS campaign_id, m.run_id AS run_id, m.variant AS variant, m.channel AS channel,
        arraySort(arrayConcat(arrayFilter(t -> t.1 >= 0, [
                (ifNull(toUnixTimestamp64Micro(m.requested_at), toInt64(-1)), '', 'message requested'),
                (ifNull(toUnixTimestamp64Micro(m.accepted_at), toInt64(-1)), '', 'message accepted'),
                (ifNull(toUnixTimestamp64Micro(m.delivered_at), toInt64(-1)), '', 'message delivered')]),
            h.things, e.things)) AS things,
        arrayMax(arrayPushBack(arrayMap(start -> length(arrayFold((chain, next, i) -> arrayConcat(chain, if(length(chain) = i, arraySlice(arrayFilter(
                t -> t.3 = next AND t.1 >= chain[-1].1 AND t.1 - start.1 <= within AND NOT has(chain, t), things), 1, 1), [])),
            arrayPopFront(wanted), arrayPopBack(arrayEnumerate(wanted)), [start])), arrayFilter(t -> t.3 = wanted[1], things)), 0)) AS reached
    FROM
    (
        SELECT campaign_id, run_id, variant, channel, message_id, user_id, requested_at, accepted_at, delivered_at
        FROM message_steps
        WHERE excluded_at IS NULL AND ({campaign:String} = '' OR campaign_id = {campaign:String}) AND run_id IN (SELECT run_id FROM runs)
    ) AS m
    LEFT JOIN
    (
        SELECT run_id, message_id, groupArray((toUnixTimestamp64Micro(occurred_at), toString(engagement_id), concat('message ', kind))) AS things
        FROM engagements
        WHERE label = 'human' AND kind IN ('opened', 'clicked') AND has(names, kind)
        GROUP BY run_id, message_id
    ) AS h ON h.run_id = m.run_id AND h.message_id = m.message_id
    LEFT JOIN
    (
        SELECT user_id, groupArray((toUnixTimestamp64Micro(occurred_at), event_id, concat('event ', name))) AS things
        FROM events
        WHERE has(wanted, concat('event ', name))
        GROUP BY user_id
    ) AS e ON e.user_id = m.user_id
) AS f
ARRAY JOIN arrayEnumerate(names) AS position
GROUP BY campaign_id, run_id, variant, channel, position
SETTINGS join_use_nulls = 0
COMMENT 'message_funnel(steps = [''delivered'', ''clicked'', ''purchase''], within_ms = 604800000, campaign = ''thanks-2011''): how many messages got how far, step by step and in order, per campaign, run, variant and channel. Steps of messages (requested, accepted, delivered, opened, clicked; the last two by people) come first, then names of events. Of every campaign if campaign is empty.';

CREATE VIEW IF NOT EXISTS event_funnel
AS WITH
    {steps:Array(String)} AS names,
    {within_ms:Int64} * 1000 AS within
SELECT position, names[position] AS step, countIf(reached >= position) AS people, assumeNotNull((SELECT complete_until FROM freshness)) AS complete_until
FROM
(
    SELECT user_id, arraySort(groupArray((toUnixTimestamp64Micro(occurred_at), event_id, CAST(name AS String)))) AS things,
        arrayMax(arrayPushBack(arrayMap(start -> length(arrayFold((chain, next, i) -> arrayConcat(chain, if(length(chain) = i, arraySlice(arrayFilter(
                t -> t.3 = next AND t.1 >= chain[-1].1 AND t.1 - start.1 <= within AND NOT has(chain, t), things), 1, 1), [])),
            arrayPopFront(names), arrayPopBack(arrayEnumerate(names)), [start])), arrayFilter(t -> t.3 = names[1], things)), 0)) AS reached
    FROM events
    WHERE has(names, name)
    GROUP BY user_id
) AS f
ARRAY JOIN arrayEnumerate(names) AS position
GROUP BY position
COMMENT 'event_funnel(steps = [''view'', ''add_to_cart'', ''purchase''], within_ms = 604800000): how many people got how far, step by step and in order, by names of events.';
