"""The ledger that DATABASE_URL names: found or started, migrated where it is ours, and opened."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar

from app.config import EMBEDDED_DATABASE, IdentityScope, Settings
from app.embedded.postgres import EmbeddedPostgres, default_data_dir
from app.errors import ConfigError, TransportError
from app.kafka_io.connect import until_connected
from app.kafka_io.groups import commit_offsets, committed_offsets
from app.lifecycle import or_stopped
from app.ports import Ledger, LedgerWrite
from app.stores.backfill_ledger import BackfillLedger
from app.stores.database import migrate_database, recreate_database
from app.stores.ledger_queries import LedgerReader, open_reader
from app.stores.postgres import LedgerSums, open_ledger
from app.stores.retention import Pruner, open_pruner

T = TypeVar("T")

_HINT: Final = "Start the database, or set DATABASE_URL to one that runs"


async def database_url(settings: Settings) -> str:
    """Give the address of the database; the embedded one is started, and left running.

    Raises:
        EmbeddedError: It does not start.
    """
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    if url != EMBEDDED_DATABASE:
        return url
    postgres = EmbeddedPostgres(default_data_dir())
    await asyncio.to_thread(postgres.start)
    return postgres.url


async def new_database(name: str, identity: IdentityScope) -> str:
    """Make a database of the embedded server anew, with the tables; give its address."""
    postgres = EmbeddedPostgres(default_data_dir())
    await asyncio.to_thread(postgres.start)
    await recreate_database(postgres.url, name)
    await migrate_database(postgres.url_of(name), identity)
    return postgres.url_of(name)


async def read_sums(settings: Settings) -> LedgerSums:
    """Add up what the ledger that DATABASE_URL names has booked."""
    async with open_ledger(settings, await database_url(settings)) as ledger:
        return await ledger.sums()


async def migrate_ledger(settings: Settings) -> list[str]:
    """Bring the database to the newest version of the tables; where IDENTITY is set, keep it so.

    Returns:
        What was done, a line each.

    Raises:
        LedgerError: It has taken other steps than ours, or cannot be kept so.
        TransportError: It is away.
    """
    is_asked = "identity" in settings.model_fields_set
    identity = settings.identity if is_asked else None
    return await migrate_database(await database_url(settings), identity, is_asked=is_asked)


async def group_offsets(settings: Settings) -> dict[int, int]:
    """Give where the group goes on in each partition: by the ledger, or without one by Kafka."""
    if settings.database_url is None:
        return await committed_offsets(settings)
    async with open_ledger(settings, await database_url(settings)) as ledger:
        return await ledger.next_offsets()


async def move_group(settings: Settings, next_offsets: Mapping[int, int]) -> None:
    """Let a group that is stopped go on at other offsets; a ledger never goes back.

    The brokers come first, since they refuse while the group has members, and what they have is no
    more than a hint beside a ledger: until that has followed, nothing goes on elsewhere.

    Raises:
        TransportError: The group has members, or broker or database are away; doing it again does
            what is left.
        LedgerError: The database is not fit; nothing was moved.
    """
    if settings.database_url is None:
        await commit_offsets(settings, next_offsets)
        return
    async with open_ledger(settings, await database_url(settings)) as ledger:
        await commit_offsets(settings, next_offsets)
        for number, offset in next_offsets.items():
            held = await ledger.claim(number)
            if held is None or offset > held:
                moved = LedgerWrite(expected=held, next_offset=offset)
                for why in (await ledger.write({number: moved})).values():
                    raise TransportError(f"partition {number} of the ledger: {why}")


@asynccontextmanager
async def open_ledger_of(
    settings: Settings, stop: asyncio.Event, *, connect_timeout_s: float
) -> AsyncIterator[Ledger | None]:
    """Wait for the database and give the ledger for the block; `None` where none is wanted.

    Args:
        settings: DATABASE_URL, group and topic. The embedded database is migrated as well.
        stop: Breaks off the waiting.
        connect_timeout_s: Longest wait for the database.

    Raises:
        KeyboardInterrupt: `stop` was set before the database answered.
        LedgerError: The database is not fit; says what to do.
        TransportError: It did not answer in time.
    """
    if settings.database_url is None:
        yield None
        return
    url = await database_url(settings)
    if settings.database_url.get_secret_value() == EMBEDDED_DATABASE:
        await migrate_database(url, settings.identity)
    async with AsyncExitStack() as stack:

        async def connect() -> Ledger:
            return await stack.enter_async_context(open_ledger(settings, url, settings.identity))

        connecting = until_connected(
            connect, timeout_s=connect_timeout_s, to="database", hint=_HINT
        )
        yield await or_stopped(connecting, stop)


def require_ledger(settings: Settings, what: str) -> None:
    """See that a ledger is set.

    Raises:
        ConfigError: None is; says what needs it.
    """
    if settings.database_url is None:
        form = "`postgresql://…` of a ledger, or `embedded`"
        raise ConfigError([f"DATABASE_URL: must be set for {what}, to {form}"])


def open_reader_of(
    settings: Settings, *, connect_timeout_s: float
) -> AbstractAsyncContextManager[LedgerReader]:
    """Wait for the database and give a reader of the ledger for the block.

    Raises:
        LedgerError: The tables are not there, or may not be read.
        TransportError: It did not answer in time.
    """
    return _opened(settings, open_reader, connect_timeout_s)


def open_pruner_of(
    settings: Settings, *, connect_timeout_s: float
) -> AbstractAsyncContextManager[Pruner]:
    """Wait for the database and give what prunes the ledger for the block; raises likewise."""
    return _opened(settings, open_pruner, connect_timeout_s)


def open_backfill_of(
    settings: Settings, *, connect_timeout_s: float
) -> AbstractAsyncContextManager[Ledger]:
    """Wait for the database and give the ledger that a backfill writes; raises likewise."""
    return _opened(
        settings,
        lambda url: open_ledger(settings, url, settings.identity, kind=BackfillLedger),
        connect_timeout_s,
        identity=settings.identity,
    )


@asynccontextmanager
async def _opened(
    settings: Settings,
    open_: Callable[[str], AbstractAsyncContextManager[T]],
    connect_timeout_s: float,
    *,
    identity: IdentityScope | None = None,
) -> AsyncIterator[T]:
    url = await database_url(settings)
    if settings.database_url is not None and (
        settings.database_url.get_secret_value() == EMBEDDED_DATABASE
    ):
        await migrate_database(url, identity)
    async with AsyncExitStack() as stack:
        yield await until_connected(
            lambda: stack.enter_async_context(open_(url)),
            timeout_s=connect_timeout_s,
            to="database",
            hint=_HINT,
        )
