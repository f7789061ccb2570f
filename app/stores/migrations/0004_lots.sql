-- Positions may be kept first in, first out: what is open is stored lot by lot.

-- Not `NOT NULL`: a worker that does not know the column would copy that to where it stages positions.
ALTER TABLE positions ADD COLUMN method text COLLATE "C" DEFAULT 'average'
    CHECK (method IS NOT NULL AND method IN ('average', 'fifo'));
COMMENT ON COLUMN positions.method IS 'How its costs are kept; of fifo the lots have what is open.';

CREATE OR REPLACE VIEW position_list AS
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
    trade_count,
    method
FROM positions;

CREATE TABLE lots (
    source_partition integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    number bigint NOT NULL CHECK (number >= 0),
    quantity numeric(20, 8) NOT NULL CHECK (quantity <> 0),
    price numeric(20, 8) NOT NULL,
    fee numeric NOT NULL,
    executed_ns bigint NOT NULL,
    source_offset bigint NOT NULL,
    PRIMARY KEY (source_partition, key, number)
);
COMMENT ON TABLE lots IS
    'What is open of each fill, of the positions that are kept first in, first out.';
COMMENT ON COLUMN lots.number IS 'The lowest of a position is the oldest, and is closed first.';
COMMENT ON COLUMN lots.quantity IS 'Signed: long > 0, short < 0.';
COMMENT ON COLUMN lots.fee IS 'Share of the fee of the fill that falls to what is open.';
COMMENT ON COLUMN lots.executed_ns IS
    'Execution time of the fill, and source_offset the place of its NEW.';

CREATE VIEW lot_list AS
SELECT
    p.book,
    p.symbol,
    p.currency,
    l.number,
    timestamptz 'epoch' + l.executed_ns / 1000 * interval '1 microsecond' AS opened_at,
    l.quantity,
    l.price,
    l.quantity * l.price * p.multiplier AS open_cost,
    l.quantity * (p.mark - l.price) * p.multiplier AS unrealized_pnl,
    l.fee,
    t.trade_id
FROM lots l
JOIN positions p USING (source_partition, key)
LEFT JOIN trades t ON t.source_partition = l.source_partition AND t.source_offset = l.source_offset
WHERE p.method = 'fifo';
COMMENT ON VIEW lot_list IS
    'Lots for people: at the price of the last trade, with the trade that opened it unless it is pruned.';
