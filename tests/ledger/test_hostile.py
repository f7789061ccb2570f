"""Hostile records in a real ledger: none of them is something that PostgreSQL does not take."""

import pytest

from tests.contract.postgres import Database
from tests.fuzz.corpus import CORPUS
from tests.ledger.filling import book

pytestmark = [pytest.mark.integration, pytest.mark.slow]


async def test_every_hostile_record_has_its_place_and_is_known_when_it_comes_again(
    database: Database,
) -> None:
    """Booked, parked or refused; what is booked is compared with what the tables have of it."""
    # Trades of their own: of one trade all but the first would be refused as other versions.
    values = [
        hostile.value.replace(b'"H1"', b'"H%d"' % number)
        for number, hostile in enumerate(CORPUS)
        if hostile.value is not None
    ]
    await book(database.ledger(), values)
    tables = "trades", "parked_events", "dead_letters"
    places = [await offsets(database, table) for table in tables]
    assert set().union(*places) == set(range(len(values)))
    assert sum(map(len, places)) == len(values)
    await book(database.ledger(), values, first=len(values))
    booked, parked, refused = [await offsets(database, table) for table in tables]
    assert booked == places[0]
    again = {offset - len(values) for offset in (parked | refused) if offset >= len(values)}
    assert again <= places[1] | places[2]


async def offsets(database: Database, table: str) -> set[int]:
    """Give where the records stand that a table has."""
    rows = await database.pool.fetch(f"SELECT source_offset FROM {table}")  # noqa: S608 - ours
    return {row["source_offset"] for row in rows}
