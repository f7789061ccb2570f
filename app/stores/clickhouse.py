"""The analytics copy in ClickHouse: a server, or the same engine in this process.

Nothing is ever changed in place: a block of records that is written again gives the same rows at
the same places, which replace each other. So a write whose answer was lost is simply repeated, in
whatever pieces, and no memory of the engine's own about recent inserts is relied on. How far a
partition is copied is written after its rows, into the same database.

The client is synchronous and its engine belongs to one thread, so everything runs in one worker
thread of ours. It may be left behind at the end: a call that hangs must not keep a process alive.
"""

import asyncio
import fcntl
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import structlog

from app.config import EMBEDDED_CLICKHOUSE, Settings, data_home
from app.copy_codec import REFUSAL_COLUMNS, TRADE_COLUMNS, CopyBlock
from app.errors import CopyError, TransportError
from app.models import position_key
from app.stores.clickhouse_tables import CHECK_TABLES, NAMES, SCHEMA, TABLES, VIEWS

log = structlog.get_logger(__name__)
T = TypeVar("T")

DATABASE: Final = "trade_stream"
_CONNECT_TIMEOUT_S: Final = 10
_ANSWER_TIMEOUT_S: Final = 60
_CLOSE_TIMEOUT_S: Final = 2.0
"""A call that still hangs then is left behind: the whole stop has a bound."""
_HTTP_PORT: Final = 8123
_HTTPS_PORT: Final = 8443
_MAX_QUERY_BYTES: Final = 16 * 1024 * 1024
_SESSION: Final = {
    "output_format_decimal_trailing_zeros": 0,  # the text that is hashed has none
    "max_query_size": _MAX_QUERY_BYTES,  # lists of offsets
    "mutations_sync": 2,
    "lightweight_deletes_sync": 2,
}
_INSERT: Final = {
    "async_insert": 0,  # an answer means stored
    # A block that is written again after its rows were deleted must not be taken for the old one.
    "insert_deduplicate": 0,
}
# What passes by itself: timeouts, overload, no memory, no disk, no quorum, keeper lost, shutting
# down, read-only for a while. Anything else would be refused again.
_TRANSIENT_CODES: Final = frozenset(
    {
        *(3, 32, 74, 75, 76, 95, 107, 159, 160, 164, 201, 202, 203, 204, 209, 210, 216, 225, 236),
        *(241, 242, 243, 244, 252, 254, 279, 285, 286, 289, 290, 319, 364, 394, 425, 439, 473),
        *(499, 517, 519, 533, 574, 588, 665, 667, 692, 694, 700, 707, 710, 722, 723, 999),
    }
)
_TIME: Final = "toString(toUnixTimestamp64Nano(executed_at))"
_TEXT_OF_TRADE: Final = """concatWithSeparator('\\t', toString(source_partition),
 toString(source_offset), trade_id, toString(version), toString(action), book, symbol,
 toString(side), toString(price), toString(quantity), toString(multiplier), toString(fee),
 currency, {time})"""
_TEXT_OF_REFUSAL: Final = """concatWithSeparator('\\t', toString(source_partition),
 toString(source_offset), reason)"""
_TEXTS: Final = {
    "trades": _TEXT_OF_TRADE.format(time=_TIME),
    "check_trades": _TEXT_OF_TRADE.format(time=_TIME),
    "refused": _TEXT_OF_REFUSAL,
    "check_refused": _TEXT_OF_REFUSAL,
    "booked": _TEXT_OF_TRADE.format(time=f"if(action = 'NEW', {_TIME}, '')"),
}
_TABLE_OF: Final = {"booked": "trades"}
"""What is hashed: a table, or `booked`, the trades as a ledger books them."""
_REVISED: Final = {
    "trades": [name for name, _ in TRADE_COLUMNS],
    "refused": [name for name, _ in REFUSAL_COLUMNS],
}

Digest = tuple[int, int]
"""Number of rows, and the sum of their hashes modulo 2^64: the same for the same rows only."""


class CopiedRow(NamedTuple):
    """A row of the copy.

    Attributes:
        trade_id: Of its trade.
        key: Of its position.
        number: Hash of its text, as a ledger books it.
        new_ns: When its trade was executed, in nanoseconds since 1970; `None` of a change.
    """

    trade_id: str
    key: str
    number: int
    new_ns: int | None


def default_data_dir() -> Path:
    """Give where the engine in this process keeps its data."""
    return data_home() / "clickhouse"


class _Worker:
    """Runs calls in one thread, in their order."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        # A daemon: at the end of the process it is not waited for.
        self._thread = threading.Thread(target=self._work, name="clickhouse", daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call; one whose caller is cancelled runs to its end, and the next waits for it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((call, future))
        return await future

    def end(self) -> None:
        """Let the thread end after the calls that wait."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            try:
                result, error = call(), None
            except Exception as exc:  # noqa: BLE001 - raised where the call was made
                result, error = None, exc
            with suppress(RuntimeError):  # the loop has ended meanwhile
                future.get_loop().call_soon_threadsafe(_settle, future, result, error)


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:  # noqa: ANN401 - of any call
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


class ClickHouseCopy:
    """The copy of one topic; made by `open_copy`.

    Args:
        client: A client of clickhouse-connect, used in the worker's thread alone.
        worker: That thread.
        copy_id: Which copy this is; what a process writes that knows another one does not count.
    """

    def __init__(self, client: Any, worker: _Worker, copy_id: str) -> None:  # noqa: ANN401 - untyped
        self._client = client
        self._worker = worker
        self._copy_id = copy_id

    # -- copying

    async def progress(self) -> dict[int, tuple[int, int]]:
        """Give, by partition, where the copy begins and its next offset.

        Raises:
            TransportError: ClickHouse is away.
            CopyError: It refuses, and will again.
        """
        rows = await self._query(
            "SELECT source_partition, min(first_offset), max(next_offset) FROM copy_progress"  # noqa: S608 - names and numbers of our own
            f" WHERE copy_id = '{self._copy_id}' GROUP BY source_partition"
        )
        return {partition: (first, next_offset) for partition, first, next_offset in rows}

    async def write(self, blocks: Sequence[CopyBlock], firsts: Mapping[int, int]) -> None:
        """Store blocks, and after them how far their partitions are copied.

        Args:
            blocks: Of each partition without a gap between them, from its next offset on.
            firsts: Where the copy of each partition begins.

        Delivery:
            Repeating it after an unknown outcome is safe, in whatever pieces: rows stay the same.

        Raises:
            TransportError: ClickHouse is away, or did not answer; the outcome is unknown.
            CopyError: It refuses, and will again.
        """
        await self._worker.run(lambda: self._write(blocks, firsts))

    def _write(self, blocks: Sequence[CopyBlock], firsts: Mapping[int, int]) -> None:
        self._insert_blocks("trades", "refused", blocks)
        ends = {block.partition: block.next_offset for block in blocks}
        lines = "".join(
            f"{self._copy_id}\t{partition}\t{firsts[partition]}\t{end}\n"
            for partition, end in ends.items()
        )
        columns = ["copy_id", "source_partition", "first_offset", "next_offset"]
        self._insert("copy_progress", columns, lines.encode(), "TabSeparated")

    def _insert_blocks(self, trades: str, refused: str, blocks: Sequence[CopyBlock]) -> None:
        rows = b"".join([block.trades() for block in blocks])
        refusals = b"".join([block.refusals() for block in blocks])
        self._insert(trades, [name for name, _ in TRADE_COLUMNS], rows, "Native")
        self._insert(refused, [name for name, _ in REFUSAL_COLUMNS], refusals, "Native")

    def _insert(self, table: str, columns: Sequence[str], body: bytes, form: str) -> None:
        if body:
            with _explained():
                self._client.raw_insert(
                    table, column_names=columns, insert_block=body, fmt=form, settings=_INSERT
                )

    # -- comparing

    async def digests(
        self, table: str, partition: int, start: int, end: int, *, size: int
    ) -> dict[int, Digest]:
        """Give the digest of each range of `size` offsets that holds rows, by its number."""
        rows = await self._query(
            f"SELECT intDiv(source_offset, {size}), count(), sum({_hash(table)})"  # noqa: S608 - names and numbers of our own
            f" FROM {_TABLE_OF.get(table, table)} FINAL"
            f" WHERE {_place(partition, start, end)} GROUP BY 1"
        )
        return {number: (count, total % 2**64) for number, count, total in rows}

    async def texts(self, table: str, partition: int, start: int, end: int) -> dict[int, str]:
        """Give the text of each row that is hashed, by offset."""
        rows = await self._query(
            f"SELECT source_offset, {_TEXTS[table]} FROM {_TABLE_OF.get(table, table)} FINAL"  # noqa: S608 - names and numbers of our own
            f" WHERE {_place(partition, start, end)}"
        )
        return dict(rows)

    async def rows_in(
        self, partition: int, gaps: Sequence[tuple[int, int]]
    ) -> dict[int, CopiedRow]:
        """Give the rows in some ranges of a partition, by offset."""
        if not gaps:
            return {}
        whole = _place(partition, gaps[0][0], gaps[-1][1])
        singles = [str(start) for start, end in gaps if end - start == 1]
        wide = [f"source_offset BETWEEN {a} AND {b - 1}" for a, b in gaps if b - a > 1]
        chosen = " OR ".join(
            [*wide, *([f"source_offset IN ({', '.join(singles)})"] if singles else [])]
        )
        rows = await self._query(
            f"SELECT source_offset, trade_id, book, symbol, {_hash('booked')},"  # noqa: S608 - names and numbers of our own
            " if(action = 'NEW', toUnixTimestamp64Nano(executed_at), NULL)"
            f" FROM trades FINAL WHERE {whole} AND ({chosen})"
        )
        return {
            offset: CopiedRow(trade_id, position_key(book, symbol), number % 2**64, new_ns)
            for offset, trade_id, book, symbol, number, new_ns in rows
        }

    async def places(self, trade_ids: Sequence[str]) -> list[tuple[str, int, int]]:
        """Give id, partition and offset of every row of some trades."""
        if not trade_ids:
            return []
        ids = ", ".join(_quoted(trade_id) for trade_id in trade_ids)
        return await self._query(
            "SELECT trade_id, source_partition, source_offset FROM trades FINAL"  # noqa: S608 - quoted
            f" WHERE trade_id IN ({ids})"
        )

    async def refused(self, partition: int, start: int, end: int) -> dict[int, str]:
        """Give the reason of each refused record, by offset."""
        rows = await self._query(
            "SELECT source_offset, reason FROM refused FINAL"  # noqa: S608 - numbers of our own
            f" WHERE {_place(partition, start, end)}"
        )
        return dict(rows)

    # -- repairing

    async def prepare_check(self) -> None:
        """Make the tables that hold what the topic has, empty."""
        await self._worker.run(self._prepare_check)

    def _prepare_check(self) -> None:
        self._drop_check()
        with _explained():
            for statement in CHECK_TABLES:
                self._client.command(statement)

    async def drop_check(self) -> None:
        """Take them away."""
        await self._worker.run(self._drop_check)

    def _drop_check(self) -> None:
        with _explained():
            for name in ("check_trades", "check_refused"):
                self._client.command(f"DROP TABLE IF EXISTS {name} SYNC")

    async def empty_check(self) -> None:
        """Empty them."""

        def empty() -> None:
            with _explained():
                for name in ("check_trades", "check_refused"):
                    self._client.command(f"TRUNCATE TABLE {name}")

        await self._worker.run(empty)

    async def fill_check(self, block: CopyBlock) -> None:
        """Put what the topic holds beside the copy."""
        await self._worker.run(
            lambda: self._insert_blocks("check_trades", "check_refused", [block])
        )

    async def replace(self, partition: int, start: int, end: int) -> None:
        """Put what the check tables hold of a range in the place of what the copy holds of it.

        The right rows come first, under a higher revision, and only then do others go: whatever
        breaks in between leaves nothing missing, and the next comparison sees what is left.
        """
        await self._worker.run(lambda: self._replace(_place(partition, start, end)))

    def _replace(self, place: str) -> None:
        with _explained():
            for table, columns in _REVISED.items():
                newest = self._client.query(f"SELECT max(revision) FROM {table} WHERE {place}")  # noqa: S608 - names and numbers of our own
                revision = newest.result_rows[0][0] + 1
                names = ", ".join(columns)
                self._client.command(
                    f"INSERT INTO {table} ({names}, revision) SELECT {names}, {revision}"  # noqa: S608 - names and numbers of our own
                    f" FROM check_{table} FINAL WHERE {place}"
                )
                older = f"{place} AND revision < {revision}"
                left = self._client.query(f"SELECT count() FROM {table} FINAL WHERE {older}")  # noqa: S608 - names and numbers of our own
                if left.result_rows[0][0]:  # rows at places where the topic has none
                    self._client.command(f"ALTER TABLE {table} DELETE WHERE {older}")

    # -- as it is for people

    async def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Give the rows of a query of the caller's."""
        return await self._query(statement)

    async def _query(self, statement: str) -> list[tuple[Any, ...]]:
        def ask() -> list[tuple[Any, ...]]:
            with _explained():
                return list(self._client.query(statement).result_rows)

        return await self._worker.run(ask)


def _place(partition: int, start: int, end: int) -> str:
    return f"source_partition = {partition} AND source_offset >= {start} AND source_offset < {end}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _hash(table: str) -> str:
    """Give the first half of the MD5 of a row's text, big-endian and signed, as PostgreSQL does."""
    return f"reinterpretAsInt64(reverse(substring(MD5({_TEXTS[table]}), 1, 8)))"


@asynccontextmanager
async def open_copy(
    settings: Settings, *, rebuild: bool = False, data_dir: Path | None = None
) -> AsyncIterator[ClickHouseCopy]:
    """Connect to the copy of the topic that the settings name, and make it where there is none.

    Args:
        settings: CLICKHOUSE_URL, topic and default currency.
        rebuild: Drop what is there first.
        data_dir: Of the engine in this process, instead of `.trade-stream/clickhouse`.

    Raises:
        CopyError: It is a copy of something else, or another process has the engine's data.
        TransportError: ClickHouse is away.
    """
    assert settings.clickhouse_url is not None
    url = settings.clickhouse_url.get_secret_value()
    with _claimed(url, data_dir or default_data_dir()) as folder:
        worker = _Worker()
        try:
            client = await worker.run(lambda: _connect(url, folder))
            try:
                copy_id = await worker.run(lambda: _prepare(client, settings, rebuild=rebuild))
                yield ClickHouseCopy(client, worker, copy_id)
            finally:
                closing = asyncio.ensure_future(worker.run(client.close))
                await asyncio.wait([closing], timeout=_CLOSE_TIMEOUT_S)
        finally:
            worker.end()


@contextmanager
def _claimed(url: str, data_dir: Path) -> Iterator[Path]:
    """Hold the lock on the engine's data, where it is in this process."""
    if url != EMBEDDED_CLICKHOUSE:
        yield data_dir
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir.with_suffix(".lock")
    with path.open("ab") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CopyError(
                f"another process has the embedded ClickHouse of {data_dir} open, which one at a"
                " time can: wait for it, end it, or set CLICKHOUSE_URL to a server"
            ) from None
        yield data_dir


def _driver() -> Any:  # noqa: ANN401 - a module
    try:
        import clickhouse_connect  # noqa: PLC0415 - an optional and slow import
    except ImportError as exc:
        raise _not_installed("clickhouse-connect") from exc
    return clickhouse_connect


def _not_installed(what: str) -> CopyError:
    return CopyError(
        f"{what} is not installed: pip install 'trade-stream[clickhouse]', or ./run.sh clickhouse"
        " in a checkout"
    )


def _connect(url: str, data_dir: Path) -> Any:  # noqa: ANN401 - untyped
    driver = _driver()
    if url == EMBEDDED_CLICKHOUSE:
        if find_spec("chdb") is None:
            raise _not_installed("the engine, chdb,")
        database = DATABASE
        options: dict[str, Any] = {"dsn": f"chdb://{data_dir.resolve()}"}
    else:
        parts = urlsplit(url)
        is_secure = parts.scheme in {"clickhouses", "https"}
        database = parts.path.strip("/") or DATABASE
        options = {
            "interface": "https" if is_secure else "http",
            "host": parts.hostname,
            "port": parts.port or (_HTTPS_PORT if is_secure else _HTTP_PORT),
            "username": unquote(parts.username) if parts.username else None,
            "password": unquote(parts.password or ""),
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "send_receive_timeout": _ANSWER_TIMEOUT_S,
            "query_retries": 0,  # waiting is ours
            "autogenerate_session_id": False,
        }
    with _explained():
        client = driver.get_client(settings=_SESSION, **options)
        client.command(f"CREATE DATABASE IF NOT EXISTS {database}")
        client.database = database
        return client


def _prepare(client: Any, settings: Settings, *, rebuild: bool) -> str:  # noqa: ANN401 - untyped
    """See to the tables; give the id of the copy.

    Raises:
        CopyError: What is there is not ours, or a copy of something else.
    """
    with _explained():
        there = {row[0] for row in client.query("SHOW TABLES").result_rows}
        foreign = there & set(NAMES) - {"copy_of"}
        if foreign and "copy_of" not in there:
            raise CopyError(
                f"the database has tables of these names that are not ours: {', '.join(foreign)}."
                " Name another database in CLICKHOUSE_URL"
            )
        if rebuild:
            for name in NAMES:  # the first table of all is the last one to go
                kind = "VIEW" if name in NAMES[:5] else "TABLE"
                client.command(f"DROP {kind} IF EXISTS {name} SYNC")
        for statement in TABLES:
            client.command(statement)
        copy_id = _identify(client, settings)
        for statement in VIEWS:
            client.command(statement)
        return copy_id


def _identify(client: Any, settings: Settings) -> str:  # noqa: ANN401 - untyped
    ours = (settings.kafka_topic, settings.defaults_currency, SCHEMA)
    columns = "copy_id, topic, default_currency, schema"
    question = "SELECT toString(copy_id), topic, default_currency, schema FROM copy_of"
    rows = client.query(question).result_rows
    if not rows:
        values = f"'{uuid4()}', '{ours[0]}', '{ours[1]}', {ours[2]}"
        client.command(f"INSERT INTO copy_of ({columns}) VALUES ({values})")  # noqa: S608 - checked by the settings
        rows = client.query(question).result_rows
    held = {tuple(row[1:]) for row in rows}
    if held != {ours}:
        topic, currency, schema = min(held)
        raise CopyError(
            f"it holds a copy of topic {topic} (currency {currency}, schema {schema}), not of"
            f" {ours[0]} ({ours[1]}, {ours[2]}): make it anew with `trade-stream copy clickhouse"
            " --rebuild`, or name another database in CLICKHOUSE_URL"
        )
    # Two processes may have made it at once: both go by the same one of the two.
    return min(str(row[0]) for row in rows)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the driver raises into errors of ours; a bug stays what it is."""
    from clickhouse_connect.driver import exceptions  # noqa: PLC0415 - as above

    errors: Any = exceptions
    try:
        yield
    except errors.Error as exc:
        said = str(exc).partition("\n")[0] or type(exc).__name__
        is_network = isinstance(exc, errors.OperationalError) and exc.code is None
        if is_network or exc.code in _TRANSIENT_CODES:
            raise TransportError(f"ClickHouse: {said}") from exc
        raise CopyError(f"ClickHouse refuses: {said}") from exc
    except (OSError, TimeoutError) as exc:
        raise TransportError(f"ClickHouse: {str(exc) or type(exc).__name__}") from exc
