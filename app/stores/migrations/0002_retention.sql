-- Trades can be pruned: what they came to is carried forward, and times are found without a scan.

CREATE TABLE carried_forward (
    source_partition integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    book text COLLATE "C",
    symbol text COLLATE "C" NOT NULL,
    currency text COLLATE "C" NOT NULL,
    trade_count bigint NOT NULL,
    exposure numeric NOT NULL,
    paid numeric NOT NULL,
    fees numeric NOT NULL,
    last_ns bigint NOT NULL,
    last_offset bigint NOT NULL,
    last_price numeric NOT NULL,
    PRIMARY KEY (source_partition, key, currency)
);
COMMENT ON TABLE carried_forward IS 'Sums of the trades that were pruned, by position.';
COMMENT ON COLUMN carried_forward.exposure IS 'Signed quantity x multiplier.';
COMMENT ON COLUMN carried_forward.paid IS 'Signed quantity x price x multiplier.';
COMMENT ON COLUMN carried_forward.last_ns IS
    'Execution time of the last of them, and last_offset and last_price of the same one.';

-- A few pages for millions of trades, and next to nothing for a COPY: trades come about in order of
-- time. Whatever looks for a time reads the blocks that may hold it.
CREATE INDEX trades_executed_ns ON trades USING brin (executed_ns)
    WITH (pages_per_range = 64, autosummarize = on);
