-- A read-only user for analysts, with quotas and limits, for a ClickHouse server. NOT TRIED HERE: the embedded engine (chDB) has no users; a test lets it read every statement.
-- Run it as an administrator, with the namespace's database in place of hikyaku and a password of your own:
--
--     clickhouse-client --host HOST --multiquery < deploy/clickhouse/analyst.sql
--
-- Views run with the rights of who asks, so the tables behind them must be readable as well. Whoever may read them reads personal data.

CREATE SETTINGS PROFILE IF NOT EXISTS hikyaku_analyst SETTINGS
    readonly = 2 MIN 2 MAX 2,                             -- settings may be changed, within the limits below; data may not
    -- 0 would be no limit at all: hence the MIN.
    max_execution_time = 60 MIN 1 MAX 300,                -- seconds
    timeout_overflow_mode = 'throw' CONST,                -- an answer is whole or an error
    max_memory_usage = 4000000000 MIN 1 MAX 8000000000,   -- bytes of one query
    max_result_rows = 1000000 MIN 1 MAX 10000000,
    result_overflow_mode = 'throw' CONST,
    max_rows_to_read = 2000000000 MIN 1 MAX 2000000000,
    read_overflow_mode = 'throw' CONST,
    max_concurrent_queries_for_user = 4 CONST,
    priority = 10 CONST;                                  -- after the services' own queries

CREATE QUOTA IF NOT EXISTS hikyaku_analyst
    KEYED BY user_name
    FOR INTERVAL 1 minute MAX queries = 120,
    FOR INTERVAL 1 hour MAX queries = 2000, read_rows = 50000000000, execution_time = 1800;

CREATE ROLE IF NOT EXISTS hikyaku_analyst SETTINGS PROFILE 'hikyaku_analyst';
GRANT SELECT ON hikyaku.* TO hikyaku_analyst;
-- What went into each message, whole records included, is for support, not for analysis.
REVOKE SELECT ON hikyaku.message_input_rows FROM hikyaku_analyst;
REVOKE SELECT ON hikyaku.message_inputs FROM hikyaku_analyst;

CREATE USER IF NOT EXISTS analyst IDENTIFIED WITH sha256_password BY 'change me' HOST ANY DEFAULT ROLE hikyaku_analyst;
GRANT hikyaku_analyst TO analyst;
ALTER QUOTA hikyaku_analyst TO hikyaku_analyst;
