"""Real prints replayed into a real Kafka and consumed: equal to an independent sum of the files."""

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import ROOT, World
from tests.replay.fakes import BROKEN_CSV, BROKEN_JSON

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Prints:
    """One file of real prints, and how it is replayed."""

    name: str
    options: str
    broken: list[str]

    @property
    def lines(self) -> list[str]:
        """The lines of the file."""
        body = (DATA / self.name).read_bytes()
        return (gzip.decompress(body) if self.name.endswith(".gz") else body).decode().splitlines()


EQUITY = Prints(
    "equity_prints.csv.gz",
    "--map symbol=SYMBOL --map price=PRICE --map quantity=SIZE --map timestamp=DT"
    " --tz Europe/Amsterdam --default book=EQ --default side=BUY --trade-id generate",
    BROKEN_CSV,
)
PERPETUAL = Prints(
    "perpetual_prints.jsonl",
    "--map symbol=s --map price=p --map quantity=q --map timestamp=T --map trade_id=t"
    " --side-from m=true:SELL,false:BUY --default book=PERP",
    BROKEN_JSON,
)


def independent_sums(lines: list[str]) -> tuple[int, Decimal, Decimal, dict[str, Decimal]]:
    """Give count, quantity, notional and signed quantity by symbol, by plain decimals alone."""
    is_csv = lines[0].startswith("DT,")
    rows: list[dict[str, Any]] = list(csv.DictReader(lines) if is_csv else map(json.loads, lines))
    price, size, symbol = ("PRICE", "SIZE", "SYMBOL") if is_csv else ("p", "q", "s")
    quantity, notional, held = Decimal(0), Decimal(0), defaultdict[str, Decimal](Decimal)
    with localcontext(prec=60, rounding=ROUND_HALF_EVEN):
        for row in rows:
            p, q = (Decimal(row[name]).quantize(Decimal("1e-8")) for name in (price, size))
            quantity, notional = quantity + q, notional + p * q
            held[row[symbol]] += -q if row.get("m") is True else q
    return len(rows), quantity, notional, dict(held)


@pytest.fixture
def world(kafka_bootstrap: str) -> Iterator[World]:
    """Topics and a group for one replay."""
    made = World(kafka_bootstrap)
    yield made
    made.close()


def planted(prints: Prints, folder: Path) -> tuple[Path, list[int]]:
    """Copy a file with 50 broken rows, five of each kind, in its middle; give their lines too."""
    lines = prints.lines
    places = [len(lines) // 2 + 7 * n for n in range(50)]
    for place, row in zip(places, prints.broken * 5, strict=True):
        lines.insert(place, row)
    body = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    path = folder / prints.name
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path, [place + 1 for place in places]


@pytest.mark.parametrize("is_planted", [False, True], ids=["whole", "broken"])
@pytest.mark.parametrize("prints", [EQUITY, PERPETUAL], ids=["equity", "perpetual"])
def test_replayed_prints_are_booked_to_the_last_digit(
    world: World, tmp_path: Path, prints: Prints, *, is_planted: bool
) -> None:
    """Summary, rejects, consumer and positions agree with ten lines of decimals."""
    if not (DATA / prints.name).is_file():
        pytest.skip(f"the prints {prints.name} are not beside the project")
    path, places = planted(prints, tmp_path) if is_planted else (DATA / prints.name, [])
    rows, quantity, notional, held = independent_sums(prints.lines)
    rejects = tmp_path / "rejects.jsonl"

    arguments = [str(path), *prints.options.split(), "--rejects", str(rejects), "--json"]
    summary = json.loads(world.run("replay", *arguments, timeout_s=120))
    assert (summary["rows"], summary["published"]) == (rows + len(places), rows)
    assert (summary["rejected"], summary["not_sent"], summary["unknown"]) == (len(places), 0, 0)
    assert Decimal(summary["sum_quantity"]) == quantity
    assert Decimal(summary["sum_notional"]) == notional
    assert summary["adds_up"] is True
    named = [json.loads(line) for line in rejects.read_text().splitlines()] if places else []
    assert [entry["line"] for entry in named] == places
    assert len(set(summary["rejected_by_reason"])) >= (9 if places else 0)
    assert rejects.exists() == is_planted

    fates = world.consume_all()["fates"]
    assert fates == {"booked": summary["published"]}  # none dead-lettered, none a duplicate
    assert {row["symbol"]: Decimal(row["quantity"]) for row in world.positions()} == held
    assert world.lag() == 0
