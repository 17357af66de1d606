-- The links of a test mail work, but it belongs to no run and is no message: what was done with it lies in engagements and is counted nowhere.

ALTER TABLE message_rows_from_engagements MODIFY QUERY
SELECT run_id, message_id, campaign_id, variant, channel, user_id,
    if(kind = 'opened', occurred_at, NULL) AS opened_at,
    if(kind = 'clicked', occurred_at, NULL) AS clicked_at,
    if(kind = 'unsubscribed', occurred_at, NULL) AS unsubscribed_at,
    ingested_at
FROM engagement_rows
WHERE run_id != '00000000-0000-0000-0000-000000000000';

DELETE FROM message_rows WHERE run_id = '00000000-0000-0000-0000-000000000000' AND requested_at IS NULL AND last_outcome_at IS NULL;
