"""What is measured: each suite takes the arena and the scale of the run, and gives its rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from benchmarks import hot_path
from benchmarks.arena import Arena
from benchmarks.backlog import PARTITIONS
from benchmarks.contestants import CONSUME, DRAIN, OURS_NONE, OURS_POSITIONS, PRODUCE, Contestant
from benchmarks.rounds import Entry, Row, measure, quartiles
from benchmarks.workload import Workload

BASE: Final = Workload()
_PRODUCED: Final = 500_000  # all of them lie in memory
Columns = tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        is_quick: A look that is over in minutes, rather than figures to be published.
        with_peers: Whether others take part.
    """

    is_quick: bool
    rounds: int
    seed: int
    with_peers: bool
    is_soak: bool = False

    @property
    def rounds_among_ours(self) -> int:
        """Rounds of what takes long and compares ours with itself."""
        return 1 if self.is_quick else min(3, self.rounds)

    @property
    def count(self) -> int:
        """Trades of a full share."""
        return 200_000 if self.is_quick else 1_000_000


@dataclass
class Table:
    """What a suite came to.

    Attributes:
        about: What was done, in a sentence or two.
        baseline: Name of the row that ratios are made with.
        label: Heading of the first column.
        columns: Heading, figure and digits of each further column.
        notes: Sentences below the table.
    """

    name: str
    about: str
    rows: list[Row]
    baseline: str | None = None
    label: str = "contestant"
    columns: Columns = (
        ("CPU s/M", "cpu_s_per_million", 2),
        ("at reference speed", "scaled_cpu", 2),
        ("per second", "rate", 0),
        ("at reference speed", "scaled_rate", 0),
        ("RSS MB", "peak_rss_mb", 0),
    )
    notes: list[str] = field(default_factory=list)


def drain(arena: Arena, scale: Scale) -> Table:
    """Decode, validate, position, PnL of a backlog; ours also with the positions written."""

    def run(contestant: Contestant, count: int) -> dict[str, Any]:
        return arena.drain(contestant, arena.backlogs.get(BASE, count))

    rows = _race(arena, scale, DRAIN, run)
    about = (
        f"{scale.count:,} trades (slow peers a share of it) of 2,000 position keys in {PARTITIONS}"
        " partitions, zstd: decode, validate, position, PnL, manual commits."
    )
    columns = (*Table.columns, ("largest stall ms", "largest_stall_ms", 0))
    return Table("drain", about, rows, DRAIN[0].name, columns=columns)


def consume(arena: Arena, scale: Scale) -> Table:
    """Take the same records off the topic and do nothing with them: what a client costs."""

    def run(contestant: Contestant, count: int) -> dict[str, Any]:
        return arena.drain(contestant, arena.backlogs.get(BASE, 2 * count), mode="consume")

    rows = _race(arena, scale, CONSUME, run)
    about = (
        f"{2 * scale.count:,} such records: fetch, touch each value, commit; no pipeline. CPU is"
        " the figure here: what a client takes apart before it hands out the first record is not on"
        " the clock of the rate."
    )
    return Table("consume", about, rows, CONSUME[0].name)


def produce(arena: Arena, scale: Scale) -> Table:
    """Publish records that lie in memory, with acks=all."""
    count = min(scale.count, _PRODUCED)

    def run(contestant: Contestant, share: int) -> dict[str, Any]:
        return arena.produce(contestant, share * count // scale.count, BASE)

    rows = _race(arena, scale, PRODUCE, run)
    about = (
        f"{count:,} records from memory to a fresh topic of {PARTITIONS} partitions:"
        " acks=all, keyed by murmur2; the clock starts at the first send."
    )
    return Table("produce", about, rows, PRODUCE[0].name)


def poison(arena: Arena, scale: Scale) -> Table:
    """Compare a clean backlog with one of which 1 % is refused and dead-lettered."""
    spoilt = Workload(poison=0.01)
    rows = _variants(
        arena,
        scale,
        {"clean": _Backlog(), "1 % poison": _Backlog(workload=spoilt)},
        rounds=scale.rounds_among_ours,
    )
    about = (
        "Half of the poison is no JSON, half of it breaks a rule. Every dead letter is sent and"
        " acknowledged before its offset is committed; their reasons are compared."
    )
    return Table("poison", about, rows, "clean", label="backlog")


def growth(arena: Arena, scale: Scale) -> Table:
    """Change one thing at a time: partitions, keys, size, codec."""
    backlogs = {"2,000 keys, 8 partitions, 200 B, zstd": _Backlog()}
    backlogs |= {f"{n} partition{'s' * (n > 1)}": _Backlog(partitions=n) for n in (1, 4, 32, 128)}
    backlogs["200,000 keys"] = _Backlog(workload=Workload(books=200, symbols=1_000))
    backlogs["1 KiB"] = _Backlog(workload=Workload(size=1 << 10), share=0.5)
    backlogs["10 KiB"] = _Backlog(workload=Workload(size=10 << 10), share=0.1)
    backlogs |= {
        f"codec {name}": _Backlog(codec=name) for name in ("none", "snappy", "lz4", "gzip")
    }
    rows = _variants(arena, scale, backlogs, rounds=1)
    columns = (("CPU s/M from the first record on", "open_cpu_s_per_million", 2),)
    about = (
        "Positions written. Each row differs from the first in what it names. Values of 1 KiB and"
        " 10 KiB hold one field that we do not know, and so are looked at closely."
    )
    return Table("growth", about, rows, next(iter(backlogs)), "backlog", (*Table.columns, *columns))


def layers(_: Arena, scale: Scale) -> Table:
    """Time the stages of the hot path without a broker, beside one loop written by hand."""
    timed = hot_path.nanoseconds(list(_STAGES), 5 * scale.rounds)
    rows = [
        Row(name, "ours", "none", figures={"cpu_ns": quartiles(timed[stage])})
        for stage, name in _STAGES.items()
    ]
    about = (
        "CPU ns a trade (a position in the last row), without a broker, in turns: decode, check and"
        " book as the application does it in layers; the same in one loop written by hand; texts of"
        " price and quantity to scaled integers alone; a stored zstd batch to values; a position to"
        " its record."
    )
    return Table("layers", about, rows, label="stage", columns=(("CPU ns", "cpu_ns", 0),))


_STAGES: Final = {
    "pipeline": "in layers",
    "fused": "one loop by hand",
    "money": "money step",
    "batch": "batch",
    "positions": "position record",
}


def workers(arena: Arena, scale: Scale) -> Table:
    """Drain with one process and with two of one group."""
    confluent = next(c for c in DRAIN if c.script == "confluent" and c.variant == "consume")
    groups = [(ours, members) for ours in (OURS_NONE, OURS_POSITIONS) for members in (1, 2)]
    groups += [(confluent, 1), (confluent, 2)] if scale.with_peers else []

    def run(contestant: Contestant, members: int, _: int) -> dict[str, Any]:
        backlog = arena.backlogs.get(BASE, 2 * scale.count)
        return arena.drain_together(contestant, backlog, members)

    entries = [
        Entry(
            f"{contestant.title}, {members} process{'es' * (members > 1)}",
            contestant.table,
            contestant.sink,
            partial(run, contestant, members),
            is_optional=contestant.is_peer,
        )
        for contestant, members in groups
    ]
    rows = measure(
        entries,
        rounds=scale.rounds_among_ours,
        seed=scale.seed,
        baseline=entries[0].name,
    )
    about = (
        f"{2 * scale.count:,} trades; the clock runs from the first record in any hand to the last"
        " commit. Every member has its partitions before it starts. The broker needs its share of"
        " the same cores."
    )
    return Table("workers", about, rows, entries[0].name, label="group")


def restore(arena: Arena, scale: Scale) -> Table:
    """Start a consumer whose positions were written many times over."""
    again = 200_000 if scale.is_quick else 1_000_000
    plan = [("2,000 keys", BASE, scale.count, again)]
    if scale.is_soak:
        many = Workload(books=1_000, symbols=1_000)
        plan.append(("1,000,000 keys", many, 1_000_000, 1_000_000))
    entries = [
        Entry(f"{name}, {writes:,} records", "ours", "positions", arena.restorer(of, count, writes))
        for name, of, count, writes in plan
    ]
    rows = measure(entries, rounds=1, seed=scale.seed)
    about = (
        "From before the clients are made until the last of 8 partitions is open, its positions"
        " read from the positions topic and compared with the oracle's. Compaction may have run."
    )
    columns = (
        ("s until open", "wall_s", 2),
        ("CPU s per million records", "cpu_s_per_million", 2),
        ("records/s", "rate", 0),
        ("RSS MB", "peak_rss_mb", 0),
    )
    return Table("restore", about, rows, label="positions topic", columns=columns)


@dataclass(frozen=True)
class _Backlog:
    """What a backlog is made of."""

    workload: Workload = BASE
    partitions: int = PARTITIONS
    codec: str = "zstd"
    share: float = 1.0


def _variants(
    arena: Arena, scale: Scale, backlogs: dict[str, _Backlog], *, rounds: int
) -> list[Row]:
    """Let ours drain several backlogs, positions written."""

    def run(asked: _Backlog, _: int) -> dict[str, Any]:
        # Half of the usual count: there are many of them.
        count = int(scale.count * asked.share / 2)
        backlog = arena.backlogs.get(
            asked.workload, count, partitions=asked.partitions, codec=asked.codec
        )
        return arena.drain(OURS_POSITIONS, backlog)

    entries = [
        Entry(name, "ours", "positions", partial(run, asked)) for name, asked in backlogs.items()
    ]
    return measure(entries, rounds=rounds, seed=scale.seed, baseline=next(iter(backlogs)))


def _race(
    arena: Arena,
    scale: Scale,
    contestants: Sequence[Contestant],
    run: Callable[[Contestant, int], dict[str, Any]],
) -> list[Row]:
    """Let ours and, if asked for, the peers do the same."""
    entries = [
        arena.entry(contestant, run, count=scale.count)
        for contestant in contestants
        if scale.with_peers or not contestant.is_peer
    ]
    return measure(entries, rounds=scale.rounds, seed=scale.seed, baseline=entries[0].name)
