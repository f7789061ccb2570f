-- By what trades that are sent twice are recognised is a matter of the ledger, not of a process.

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
