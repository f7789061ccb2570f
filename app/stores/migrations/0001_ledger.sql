-- The ledger of one consumer group and one topic.

CREATE TABLE ledger (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    topic text NOT NULL,
    consumer_group text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE ledger IS 'Whose ledger this database holds: one row.';

CREATE TABLE source_partitions (
    source_partition integer PRIMARY KEY,
    next_offset bigint CHECK (next_offset >= 0),
    owner uuid NOT NULL,
    owned_since timestamptz NOT NULL DEFAULT now(),
    written_at timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE source_partitions IS
    'How far each partition of the topic is booked. A writer changes its row in the transaction that books.';
COMMENT ON COLUMN source_partitions.next_offset IS
    'Everything before it has its fate; null until the first start.';
COMMENT ON COLUMN source_partitions.owner IS 'The only process that may write.';

CREATE TABLE trades (
    source_partition integer NOT NULL,
    source_offset bigint NOT NULL,
    executed_ns bigint NOT NULL,
    version integer NOT NULL DEFAULT 1 CHECK (version > 0),
    trade_id text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL DEFAULT 'NEW' CHECK (action IN ('NEW', 'AMEND', 'CANCEL')),
    book text COLLATE "C",
    symbol text COLLATE "C" NOT NULL,
    side text COLLATE "C" NOT NULL CHECK (side IN ('BUY', 'SELL')),
    price numeric(20, 8) NOT NULL,
    quantity numeric(20, 8) NOT NULL,
    currency text COLLATE "C" NOT NULL,
    multiplier numeric(20, 8) NOT NULL DEFAULT 1,
    fee numeric(20, 8) NOT NULL DEFAULT 0,
    suspects text[],
    details jsonb,
    content bytea,
    PRIMARY KEY (source_partition, source_offset)
);
CREATE INDEX trades_by_position ON trades (symbol, book);
COMMENT ON TABLE trades IS 'Every event that was booked, by its place in the topic. Rows are only added.';
COMMENT ON COLUMN trades.executed_ns IS
    'Execution time, in nanoseconds since 1970, UTC; an AMEND does not change it.';
COMMENT ON COLUMN trades.fee IS 'Sum of the fees in the currency of the trade; a rebate is negative.';
COMMENT ON COLUMN trades.suspects IS 'Codes of what is doubtful about it; null: nothing.';
COMMENT ON COLUMN trades.details IS 'Fields of the event that have no column.';
COMMENT ON COLUMN trades.content IS 'Hash of what was sent, where that is not what is stored.';

CREATE TABLE trade_versions (
    trade_id text COLLATE "C" NOT NULL,
    version integer NOT NULL,
    source_partition integer NOT NULL,
    source_offset bigint NOT NULL,
    PRIMARY KEY (trade_id, version)
);
COMMENT ON TABLE trade_versions IS
    'Where each version of a trade stands in trades: what makes every version be booked once.';

CREATE TABLE corrections (
    source_partition integer NOT NULL,
    source_offset bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    quantity_before numeric NOT NULL,
    quantity_after numeric NOT NULL,
    open_cost_before numeric NOT NULL,
    open_cost_after numeric NOT NULL,
    realized_before numeric NOT NULL,
    realized_after numeric NOT NULL,
    fees_before numeric NOT NULL,
    fees_after numeric NOT NULL,
    PRIMARY KEY (source_partition, source_offset)
);
COMMENT ON TABLE corrections IS
    'What an AMEND or a CANCEL changed of a position: by the place of the event.';

CREATE TABLE positions (
    source_partition integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    book text COLLATE "C",
    symbol text COLLATE "C" NOT NULL,
    currency text COLLATE "C",
    quantity numeric NOT NULL,
    open_cost numeric NOT NULL,
    multiplier numeric NOT NULL,
    realized numeric NOT NULL,
    fees numeric NOT NULL,
    mark numeric NOT NULL,
    mark_ns bigint NOT NULL,
    trade_count bigint NOT NULL,
    source_offset bigint NOT NULL,
    origins jsonb,
    generation bigint NOT NULL,
    PRIMARY KEY (source_partition, key)
) WITH (fillfactor = 70);
COMMENT ON TABLE positions IS 'The position of each book and symbol, as of the offset of its partition.';
COMMENT ON COLUMN positions.open_cost IS 'Signed cost of what is open, multiplier included; long > 0.';
COMMENT ON COLUMN positions.mark IS 'Price of the last trade, and mark_ns its execution time.';

CREATE TABLE dead_letters (
    source_partition integer NOT NULL,
    source_offset bigint NOT NULL,
    reason text NOT NULL,
    kind text NOT NULL,
    message text NOT NULL,
    PRIMARY KEY (source_partition, source_offset)
);
COMMENT ON TABLE dead_letters IS
    'Records that could not be used; their bytes stand in the dead-letter topic.';

CREATE VIEW fills AS
SELECT * FROM trades t
WHERE action <> 'CANCEL' AND NOT EXISTS (
    SELECT FROM trade_versions v WHERE v.trade_id = t.trade_id AND v.version > t.version
);
COMMENT ON VIEW fills IS 'Of each trade the event that counts: the last one, and none of a cancelled trade.';

CREATE VIEW trade_list AS
SELECT
    trade_id,
    version,
    action,
    book,
    symbol,
    side,
    price,
    quantity,
    multiplier,
    currency,
    price * quantity * multiplier AS notional,
    CASE side WHEN 'BUY' THEN 1 ELSE -1 END * price * quantity * multiplier AS signed_notional,
    fee,
    timestamptz 'epoch' + executed_ns / 1000 * interval '1 microsecond' AS executed_at,
    suspects,
    details,
    source_partition,
    source_offset
FROM trades;
COMMENT ON VIEW trade_list IS
    'Every event that was booked, for people: with notional, and with times to the microsecond.';

CREATE VIEW position_list AS
SELECT
    book,
    symbol,
    currency,
    quantity,
    CASE WHEN quantity = 0 THEN NULL ELSE round(open_cost / (quantity * multiplier), 8) END
        AS average_price,
    realized AS realized_pnl,
    quantity * mark * multiplier - open_cost AS unrealized_pnl,
    fees,
    realized - fees + quantity * mark * multiplier - open_cost AS total_pnl,
    mark,
    timestamptz 'epoch' + mark_ns / 1000 * interval '1 microsecond' AS mark_at,
    trade_count
FROM positions;
COMMENT ON VIEW position_list IS
    'Positions for people: PnL at the price of the last trade; only the average price is rounded.';
