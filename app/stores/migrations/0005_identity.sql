-- By what trades that are sent twice are recognised is a matter of the ledger, not of a process.

DROP TABLE IF EXISTS identity_scope; -- there after an older dump was restored

CREATE TABLE identity_scope (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    scope text NOT NULL CHECK (scope IN ('full', 'window'))
);
COMMENT ON TABLE identity_scope IS
    'IDENTITY by which trades are booked: one row, which `trade-stream db migrate` changes.';

-- A trade whose id is not noted was booked by a process with IDENTITY=window.
INSERT INTO identity_scope (scope)
SELECT CASE WHEN EXISTS (
    SELECT FROM trades t WHERE NOT EXISTS (
        SELECT FROM trade_versions v WHERE v.trade_id = t.trade_id AND v.version = t.version
    )
) THEN 'window' ELSE 'full' END;

-- Only changes need to find the trades of a position.
DO $$
BEGIN
    IF (SELECT scope FROM identity_scope) = 'window' THEN
        DROP INDEX IF EXISTS trades_by_position;
    END IF;
END
$$;

-- A trade that was booked twice stands twice. What changes it is meant for the first, which is the
-- one that is noted.
CREATE OR REPLACE VIEW fills AS
SELECT * FROM trades t
WHERE action <> 'CANCEL' AND NOT EXISTS (
    SELECT FROM trade_versions v WHERE v.trade_id = t.trade_id AND v.version > t.version
    AND EXISTS (
        SELECT FROM trade_versions own WHERE own.trade_id = t.trade_id AND own.version = t.version
        AND own.source_partition = t.source_partition AND own.source_offset = t.source_offset
    )
);
