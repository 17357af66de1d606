-- Retention of what 0005 did not know yet. run_arrival_rows keeps for ever, as runs do.

ALTER TABLE engagement_label_rows MODIFY TTL toDateTime(ingested_at) + INTERVAL 25 MONTH;
ALTER TABLE message_engagement_rows MODIFY TTL toDateTime(ingested_at) + INTERVAL 25 MONTH;
ALTER TABLE event_arrival_rows MODIFY TTL toDateTime(ingested_at) + INTERVAL 25 MONTH;

ALTER TABLE engagement_label_rows MODIFY SETTING ttl_only_drop_parts = 1;
ALTER TABLE message_engagement_rows MODIFY SETTING ttl_only_drop_parts = 1;
