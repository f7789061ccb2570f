"""The page about the copy shows what its queries give."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.memory_io import MemoryBroker
from app.stores.clickhouse import ClickHouseCopy
from tests.clickhouse.trades import block_of
from tests.copy_world import TOPIC

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "clickhouse.md"


async def answers(copy: ClickHouseCopy, page: str) -> list[tuple[str, str]]:
    """Copy the events of the page; give each of its queries with its answer."""
    (events,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    broker = MemoryBroker({TOPIC: 1}, now_ms=lambda: 1_790_000_000_000)
    for line in events.splitlines():
        broker.append(TOPIC, line.encode(), partition=0)
    count = broker.offset_range(TOPIC, 0)[1]
    await copy.write([block_of(broker, 0, 0, count)], {0: 0})

    def ask(query: str) -> str:
        client: Any = copy._client
        return str(client.raw_query(query, fmt="Markdown").decode()).strip()

    return [
        (query, await copy._worker.run(lambda q=query: ask(q)))  # type: ignore[misc]
        for query in re.findall(r"```sql\n(.*?)\n```", page, re.DOTALL)
    ]


async def test_the_page_shows_what_its_queries_give(copy: ClickHouseCopy) -> None:
    """Each query is followed by its answer, to the last digit."""
    page = PAGE.read_text()
    shown = await answers(copy, page)
    assert len(shown) >= 5
    for query, answer in shown:
        assert f"```sql\n{query}\n```\n\n{answer}\n" in page, answer


async def test_the_page_names_every_column_and_view(copy: ClickHouseCopy) -> None:
    """Nothing of the database is left out."""
    page = PAGE.read_text()
    rows = await copy.query(
        "SELECT table, name FROM system.columns WHERE database = currentDatabase()"
        " AND table IN ('trades', 'refused', 'trade_list')"
    )
    for table, name in rows:
        assert f"`{table}`" in page
        assert re.search(rf"\b{name}\b", page), name
