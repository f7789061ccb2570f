"""Options of the command line to the mapping of columns to fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.errors import ConfigError, InvalidTradeError
from app.models import Side, TradeEvent
from app.replay.values import BOOLEANS, ValueReader

FIELDS: Final = tuple(
    name
    for name in TradeEvent.__struct_fields__
    if name not in {"published_at", "processed_at"}  # set by the platform
)
REQUIRED: Final = ("trade_id", "symbol", "side", "price", "quantity", "timestamp")


@dataclass(frozen=True, slots=True)
class SideFrom:
    """Which value of a column means which side.

    Attributes:
        column: The column to look at.
        sides: Side by the text of a value; `true` and `false` also match JSON and any letter case.
    """

    column: str
    sides: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FieldMapping:
    """How the fields of a trade event come out of the columns of a row.

    Attributes:
        columns: Column by field; a column with exactly the name of a field fills it unmapped.
        defaults: Text by field, for rows where the column is missing, null or an empty CSV cell.
        side_from: How the side is told, when no column holds BUY or SELL.
        generate_ids: Whether trade ids are made rather than read.
        zone: Zone of times without an offset; they are passed on as they are when `None`.
        is_strict: Whether a number with more than 8 decimals is refused rather than rounded.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    side_from: SideFrom | None = None
    generate_ids: bool = False
    zone: ZoneInfo | None = None
    is_strict: bool = False

    @classmethod
    def parse(
        cls,
        *,
        maps: Sequence[str] = (),
        defaults: Sequence[str] = (),
        side_from: str | None = None,
        generate_ids: bool = False,
        zone: str | None = None,
        is_strict: bool = False,
    ) -> Self:
        """Read the options of the command line.

        Args:
            maps: `field=COLUMN`, each.
            defaults: `field=value`, each.
            side_from: `COLUMN=value:SELL,value:BUY`.
            generate_ids: See the attribute.
            zone: A name of the IANA time zone database.
            is_strict: See the attribute.

        Raises:
            ConfigError: With every problem at once.
        """
        problems: list[str] = []
        mapping = cls(
            columns=_parse_pairs("--map", maps, problems),
            defaults=_parse_pairs("--default", defaults, problems),
            side_from=_parse_side_from(side_from, problems),
            generate_ids=generate_ids,
            zone=_parse_zone(zone, problems),
            is_strict=is_strict,
        )
        problems += _conflicts(mapping)
        if problems:
            raise ConfigError(problems)
        return mapping

    def column_of(self, name: str) -> str | None:
        """Give the column that fills a field, or `None` when none may."""
        if name == "side" and self.side_from is not None:
            return self.side_from.column
        if name == "trade_id" and self.generate_ids:
            return None
        return self.columns.get(name, name)

    def value_reader(self, *, is_typed: bool) -> ValueReader:
        """Give what reads values as this mapping says; see `ValueReader`."""
        sides = None if self.side_from is None else self.side_from.sides
        return ValueReader(is_typed=is_typed, zone=self.zone, is_strict=self.is_strict, sides=sides)

    def problems_with(self, file: str, header: Sequence[str]) -> list[str]:
        """Name what a file lacks for this mapping, given the columns that its header names."""
        problems = []
        required = set(REQUIRED) - self.defaults.keys()
        if self.generate_ids:
            required.discard("trade_id")
        for name in FIELDS:
            column = self.column_of(name)
            is_asked_for = name in self.columns or (name == "side" and self.side_from is not None)
            if column is not None and column in header:
                if list(header).count(column) > 1:
                    problems.append(f"{file}: column {column} stands twice in the header")
            elif is_asked_for:
                problems.append(f"{file}: no column {column}; there are {', '.join(header)}")
            elif name in required:
                problems.append(f"{file}: nothing gives {name}; use --map {name}=COLUMN")
        return problems


def _parse_pairs(option: str, pairs: Sequence[str], problems: list[str]) -> dict[str, str]:
    parsed: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value:
            problems.append(f"{option} {pair}: must be field=value")
        elif name not in FIELDS:
            problems.append(f"{option} {pair}: a trade event has no field {name}")
        elif name in parsed:
            problems.append(f"{option} {pair}: {name} is given twice")
        else:
            parsed[name] = value
    return parsed


def _parse_side_from(option: str | None, problems: list[str]) -> SideFrom | None:
    if option is None:
        return None
    # The column may hold an equals sign, a value may hold a colon: both are split at the last one.
    column, _, choices = option.rpartition("=")
    sides: dict[str, str] = {}
    for choice in choices.split(","):
        value, _, side = choice.rpartition(":")
        value = value.lower() if value.lower() in BOOLEANS else value
        if not column or side not in Side.__members__ or value in sides:
            problems.append(
                f"--side-from {option}: must be COLUMN=value:SELL,value:BUY, each value once"
            )
            return None
        sides[value] = side
    return SideFrom(column, sides)


def _parse_zone(name: str | None, problems: list[str]) -> ZoneInfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.append(f"--tz {name}: no such time zone; use a name such as Europe/Amsterdam")
        return None


def _conflicts(mapping: FieldMapping) -> list[str]:
    problems = []
    if mapping.side_from is not None and "side" in mapping.columns:
        problems.append("--side-from: side is also mapped; use one of both")
    if mapping.generate_ids and "trade_id" in {*mapping.columns, *mapping.defaults}:
        problems.append("--trade-id generate: trade_id is also given; use one of both")
    reader = mapping.value_reader(is_typed=False)
    for name, text in mapping.defaults.items():
        try:
            reader.default(name, text)
        except InvalidTradeError as exc:
            problems.append(f"--default {name}={text}: {exc}")
    return problems
