-- How far the sink is. Offsets and moments only grow, so the greatest that anybody has said of a partition holds, whoever says it again or late.
-- A moment is written here only after the group of the sink has committed all that lay in the partition then, and it commits what is stored.

CREATE TABLE IF NOT EXISTS sink_progress_rows
(
    topic          LowCardinality(String) COMMENT 'topic, without namespace',
    partition      Int32 COMMENT 'its partition',
    passed_offset  SimpleAggregateFunction(max, Int64) COMMENT 'offset of the next record: everything before it is stored',
    end_offset     SimpleAggregateFunction(max, Int64) COMMENT 'where the partition ended when it was looked at, transaction markers included',
    complete_until SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'everything that lay in the partition at this moment is stored',
    looked_at      SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'when it was looked at'
)
ENGINE = AggregatingMergeTree
ORDER BY (topic, partition)
COMMENT 'How far the sink is, every look at it; read sink_progress instead.';

CREATE VIEW IF NOT EXISTS sink_progress
(
    topic          LowCardinality(String) COMMENT 'topic, without namespace',
    partition      Int32 COMMENT 'its partition',
    passed_offset  Int64 COMMENT 'offset of the next record: everything before it is stored',
    end_offset     Int64 COMMENT 'where the partition ended when it was last looked at, transaction markers included',
    lag            Int64 COMMENT 'records between the two, transaction markers included',
    complete_until DateTime64(3, 'UTC') COMMENT 'everything that lay in the partition at this moment is stored; 1970 if that was never seen',
    looked_at      DateTime64(3, 'UTC') COMMENT 'when it was last looked at'
)
AS SELECT topic, partition, passed_offset, end_offset, greatest(end_offset - passed_offset, 0) AS lag, complete_until, looked_at
FROM sink_progress_rows FINAL
COMMENT 'How far the sink is, one row per partition.';

CREATE VIEW IF NOT EXISTS topic_freshness
(
    topic          LowCardinality(String) COMMENT 'topic, without namespace',
    lag            Int64 COMMENT 'records that lie in it and are not stored yet, transaction markers included',
    complete_until DateTime64(3, 'UTC') COMMENT 'everything that lay in the topic at this moment is stored; 1970 if that was never seen',
    looked_at      DateTime64(3, 'UTC') COMMENT 'when it was last looked at'
)
AS SELECT p.topic AS topic, sum(p.lag) AS lag, min(p.complete_until) AS complete_until, max(p.looked_at) AS looked_at
FROM sink_progress AS p
GROUP BY p.topic
COMMENT 'How far the sink is, one row per topic.';

CREATE VIEW IF NOT EXISTS freshness
(
    complete_until DateTime64(3, 'UTC') COMMENT 'everything that lay in Kafka at this moment is stored; 1970 if that was never seen',
    lag            Int64 COMMENT 'records that lie in Kafka and are not stored yet, transaction markers included',
    looked_at      DateTime64(3, 'UTC') COMMENT 'when somebody last looked'
)
AS SELECT min(p.complete_until) AS complete_until, sum(p.lag) AS lag, max(p.looked_at) AS looked_at
FROM sink_progress AS p
COMMENT 'Up to which moment everything is stored, one row.';
