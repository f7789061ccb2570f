-- Events that come before what they follow wait for it, over restarts.

CREATE TABLE parked_events (
    source_partition integer NOT NULL,
    source_offset bigint NOT NULL,
    trade_id text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    version numeric,
    book text COLLATE "C",
    symbol text COLLATE "C" NOT NULL,
    parked_ns bigint NOT NULL,
    appended_ms bigint NOT NULL,
    record_key bytea,
    value bytea NOT NULL,
    headers json,
    reason text,
    kind text,
    message text,
    PRIMARY KEY (source_partition, source_offset)
);
COMMENT ON TABLE parked_events IS
    'Events that wait for another one of their trade: their offset is passed, and they have no fate yet.';
COMMENT ON COLUMN parked_events.version IS 'As sent, of whatever size; null: none was sent.';
COMMENT ON COLUMN parked_events.parked_ns IS
    'When the waiting began, in nanoseconds since 1970, UTC, by the clock of the worker.';
COMMENT ON COLUMN parked_events.appended_ms IS
    'Time of the record in milliseconds; it, key, value and headers are what a dead letter is made of.';
COMMENT ON COLUMN parked_events.headers IS 'Pairs of name and value in hexadecimal; null: no header.';
COMMENT ON COLUMN parked_events.reason IS
    'Why it is about to be dead-lettered, with kind and message; null while it waits.';

CREATE VIEW parked_list AS
SELECT
    trade_id,
    action,
    version,
    book,
    symbol,
    timestamptz 'epoch' + parked_ns / 1000 * interval '1 microsecond' AS parked_at,
    reason,
    convert_from(value, 'UTF8') AS event,
    source_partition,
    source_offset
FROM parked_events;
COMMENT ON VIEW parked_list IS 'Events that wait for another one of their trade, for people.';
