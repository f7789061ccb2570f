"""Changes to fuzz inputs: to their bytes, and to the JSON in them."""

import json
from collections.abc import Callable
from random import Random
from typing import Any, Final

from app.models import TradeEvent
from tests.fuzz.corpus import CORPUS, body
from tests.fuzz.one_fate import ORIGIN_MARK, SEPARATOR

MAX_INPUT_BYTES: Final = 80_000  # enough for both sides of the largest value
_MAX_STEPS: Final = 4
_SHORT: Final = 200

Pair = tuple[str, str]
"""A key and a value of an object as JSON literals."""

SEEDS: Final = tuple(hostile.value for hostile in CORPUS if hostile.value is not None)


class _Literal(str):
    """A number as it is written."""

    __slots__ = ()


def _literal(value: Any) -> str:
    if isinstance(value, _Literal):
        return value
    if isinstance(value, _Object):
        return "{" + ",".join(f"{key}:{literal}" for key, literal in value.pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    return json.dumps(value)


class _Object:
    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = [(json.dumps(key), _literal(value)) for key, value in pairs]


def _parsed(value: bytes) -> list[Pair] | None:
    """Take an object apart without losing a digit or a repeated key; `None` for anything else."""
    try:
        found = json.loads(
            value, object_pairs_hook=_Object, parse_float=_Literal, parse_int=_Literal
        )
    except (ValueError, RecursionError):
        return None
    return found.pairs if isinstance(found, _Object) else None


def _harvest() -> tuple[list[str], list[str]]:
    names = {json.dumps(name) for name in TradeEvent.__struct_fields__}
    literals = {"null", "true", "0", "1", "-1", '""', "[]", "{}", "NaN", "9" * 500, "1e400"}
    for seed in SEEDS:
        for key, literal in _parsed(seed) or ():
            if len(key) <= _SHORT and len(literal) <= 10 * _SHORT:
                names.add(key)
                literals.add(literal)
    return sorted(names), sorted(literals)


_NAMES, _LITERALS = _harvest()


# -- changes to an object


def _other_value(pairs: list[Pair], rng: Random) -> None:
    at = rng.randrange(len(pairs))
    pairs[at] = (pairs[at][0], rng.choice(_LITERALS))


def _value_for_value(pairs: list[Pair], rng: Random) -> None:
    one, two = rng.randrange(len(pairs)), rng.randrange(len(pairs))
    pairs[one] = (pairs[one][0], pairs[two][1])


def _changed_literal(pairs: list[Pair], rng: Random) -> None:
    at = rng.randrange(len(pairs))
    changed = _bytes_changed(pairs[at][1].encode("utf-8", "surrogatepass"), rng)
    pairs[at] = (pairs[at][0], changed.decode("utf-8", "ignore"))


def _more(pairs: list[Pair], rng: Random) -> None:
    pairs.insert(rng.randrange(len(pairs) + 1), (rng.choice(_NAMES), rng.choice(_LITERALS)))


def _fewer(pairs: list[Pair], rng: Random) -> None:
    del pairs[rng.randrange(len(pairs))]


def _twice(pairs: list[Pair], rng: Random) -> None:
    pairs.append(rng.choice(pairs))


def _another_order(pairs: list[Pair], rng: Random) -> None:
    rng.shuffle(pairs)


def _another_name(pairs: list[Pair], rng: Random) -> None:
    at = rng.randrange(len(pairs))
    pairs[at] = (rng.choice(_NAMES), pairs[at][1])


def _deeper(pairs: list[Pair], rng: Random) -> None:
    at, levels = rng.randrange(len(pairs)), rng.choice((1, 2, 7, 8, 9, 990))
    pairs[at] = (pairs[at][0], "[" * levels + pairs[at][1] + "]" * levels)


_OBJECT_CHANGES: Final[tuple[Callable[[list[Pair], Random], None], ...]] = (
    *(_other_value, _other_value, _value_for_value, _changed_literal, _changed_literal, _more),
    *(_fewer, _twice, _another_order, _another_name, _deeper),
)
_STYLES: Final = ((",", ":"), (",", ":"), (", ", ": "), (" ,\n", "\t:\r\n"))


def _object_changed(value: bytes, rng: Random) -> bytes | None:
    pairs = _parsed(value)
    if not pairs:
        return None
    rng.choice(_OBJECT_CHANGES)(pairs, rng)
    comma, colon = rng.choice(_STYLES)
    text = "{" + comma.join(f"{key}{colon}{literal}" for key, literal in pairs) + "}"
    return text.encode("utf-8", "surrogatepass")


# -- changes to bytes

_ODD_BYTES: Final = (
    *(b"\x00", b"\xff", b"\x7f", b"\\", b'"', b",", b"{", b"}", b"[", b"]", b":", b"|", b" "),
    *(b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc2\xa0", b"\xe2\x80\xae"),
    *(b"e999999999", b".000000001", b"0" * 400, b"NaN", b"null", b"-", b'"BUY"', b'"GOOD"'),
    *(SEPARATOR, ORIGIN_MARK + b"t/0/0", ORIGIN_MARK + b"t/1/99999999999999999999"),
)


def _bytes_changed(data: bytes, rng: Random) -> bytes:
    at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    match rng.randrange(6):
        case 0 if data:
            at = min(at, len(data) - 1)
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + rng.choice(_ODD_BYTES) + data[at:]
        case 2:
            return data[:at] + data[end:]
        case 3:
            return data[:end] + data[at:end] * rng.choice((1, 1, 2, 50)) + data[end:]
        case 4:
            return data[:at]
        case _:
            return data[:at] + rng.randbytes(rng.choice((1, 1, 2, 8))) + data[at:]


# -- changes to an input


def mutate(data: bytes, seed: int, *, max_size: int = MAX_INPUT_BYTES) -> bytes:
    """Give another input that was made of one in a few steps; the same for the same seed."""
    rng = Random(seed)
    for _ in range(rng.randint(1, _MAX_STEPS)):
        data = _step(data, rng)
    return data[:max_size]


def _step(data: bytes, rng: Random) -> bytes:
    kind = rng.randrange(16)
    if kind == 0:
        return rng.choice(SEEDS)
    if kind == 1:
        return data + SEPARATOR + rng.choice(SEEDS)
    if kind == 2:
        return data + SEPARATOR + body()
    parts = data.split(SEPARATOR)
    at = rng.randrange(len(parts))
    changed = _object_changed(parts[at], rng) if kind < 12 else None
    parts[at] = _bytes_changed(parts[at], rng) if changed is None else changed
    return SEPARATOR.join(parts)
