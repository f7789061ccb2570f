"""Trades into PostgreSQL as it is first written: aiokafka, `json`, and asyncpg.

Each trade is booked in the pipeline's own positions and becomes a row of one table, whose primary
key is the trade id; a trade that is there already is left alone. Positions are not stored, and
neither is the offset: it is committed to Kafka after the rows.

Drain `executemany` takes all that `getmany` has at hand, and sends it with one `executemany` in one
transaction, which is durable before the offsets are committed.
Drain `insert` takes one trade after the other with `async for`, and executes one INSERT, which is a
transaction of its own; offsets are committed every 500 records.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import asyncio
from datetime import datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer

from benchmarks.naive import NaivePipeline, decode
from benchmarks.peers.contestant import Job, Stopwatch, main

TABLE = """
CREATE TABLE trades (
    trade_id text PRIMARY KEY, book text, symbol text, side text, price numeric, quantity numeric,
    executed_at timestamptz
)
"""
_INSERT = "INSERT INTO trades VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING"
_COMMIT_EVERY = 500
_VERSIONS = {name: version(name) for name in ("aiokafka", "asyncpg")}


def row_of(trade: dict[str, Any]) -> tuple[object, ...]:
    """Give the row of a trade that was booked."""
    return (
        *(trade[name] for name in ("trade_id", "book", "symbol", "side")),
        *(Decimal(trade[name]) for name in ("price", "quantity")),
        datetime.fromisoformat(trade["timestamp"]),
    )


def _consumer(job: Job) -> Any:  # noqa: ANN401 - aiokafka is untyped
    return AIOKafkaConsumer(
        job.topic,
        bootstrap_servers=job.bootstrap,
        group_id=job.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )


async def _executemany(job: Job) -> dict[str, Any]:
    pipeline, watch, records = NaivePipeline(), Stopwatch(), 0
    connection = await asyncpg.connect(job.database_url)
    await connection.execute(TABLE)
    async with _consumer(job) as consumer:
        while records < job.count:
            polled = await consumer.getmany(timeout_ms=100)
            if polled:
                watch.first_record()
            rows = []
            for messages in polled.values():
                for message in messages:
                    trade = decode(message.value)
                    pipeline.handle_trade(trade)
                    rows.append(row_of(trade))
            records += len(rows)
            if rows:
                await connection.executemany(_INSERT, rows)
                await consumer.commit()
        watch.stop()
    await connection.close()
    return watch.result(records, _VERSIONS, **pipeline.outcome())


async def _insert(job: Job) -> dict[str, Any]:
    pipeline, watch, records = NaivePipeline(), Stopwatch(), 0
    connection = await asyncpg.connect(job.database_url)
    await connection.execute(TABLE)
    async with _consumer(job) as consumer:
        async for message in consumer:
            if not records:
                watch.first_record()
            trade = decode(message.value)
            pipeline.handle_trade(trade)
            await connection.execute(_INSERT, *row_of(trade))
            records += 1
            if records % _COMMIT_EVERY == 0:
                await consumer.commit()
            if records == job.count:
                break
        await consumer.commit()
        watch.stop()
    await connection.close()
    return watch.result(records, _VERSIONS, **pipeline.outcome())


if __name__ == "__main__":
    main(
        {
            ("drain", "executemany"): lambda job: asyncio.run(_executemany(job)),
            ("drain", "insert"): lambda job: asyncio.run(_insert(job)),
        }
    )
