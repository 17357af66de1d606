-- The one place that says how long anything is kept. To keep something longer or shorter, add a migration that repeats its line.
-- Whole parts go at once, as month by month they fall out. profile_rows, segment_member_rows and the three tables of runs keep for ever:
-- a list imported years ago may still be the one in force.

ALTER TABLE event_rows MODIFY TTL toDateTime(ingested_at) + INTERVAL 25 MONTH;
ALTER TABLE outcome_rows MODIFY TTL toDateTime(ingested_at) + INTERVAL 25 MONTH;
ALTER TABLE engagement_rows MODIFY TTL toDateTime(ingested_at) + INTERVAL 25 MONTH;
ALTER TABLE message_rows MODIFY TTL toDateTime(ingested_at) + INTERVAL 25 MONTH;
-- The values that went into a message are personal data: a message can be rendered again for this long.
ALTER TABLE message_input_rows MODIFY TTL toDateTime(ingested_at) + INTERVAL 6 MONTH;

ALTER TABLE event_rows MODIFY SETTING ttl_only_drop_parts = 1;
ALTER TABLE outcome_rows MODIFY SETTING ttl_only_drop_parts = 1;
ALTER TABLE engagement_rows MODIFY SETTING ttl_only_drop_parts = 1;
ALTER TABLE message_rows MODIFY SETTING ttl_only_drop_parts = 1;
ALTER TABLE message_input_rows MODIFY SETTING ttl_only_drop_parts = 1;
