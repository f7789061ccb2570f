"""Hostile record values, each with the fate that it must get."""
# ruff: noqa: RUF001 - characters that look like others are what is tested

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from app.codec import MAX_DEPTH, MAX_VALUE_BYTES
from app.models import MAX_ID_LENGTH
from app.validation import MAX_TEXT_LENGTH

FIELDS: Final = {
    "trade_id": '"H1"',
    "symbol": '"ABC"',
    "side": '"BUY"',
    "price": '"10.5"',
    "quantity": '"5"',
    "timestamp": '"2026-01-02T03:04:05Z"',
}


@dataclass(frozen=True, slots=True)
class Hostile:
    """One record value and what must become of it.

    Attributes:
        name: What is wrong with it.
        value: The bytes; `None` is a tombstone.
        reason: Code that it is refused with; `None` where it must be booked.
        mark: Price that it must be booked at, where its digits are the point.
        suspects: What is doubtful about it though it is booked.
    """

    name: str
    value: bytes | None
    reason: str | None = None
    mark: str | None = None
    suspects: tuple[str, ...] = ()


def body(extra: str = "", /, **literals: str | None) -> bytes:
    """Write a trade with JSON literals in place of some of its values; `None` leaves one out.

    Args:
        extra: Text in front of the closing brace.
        literals: By field, as they are to stand in the body; lone surrogates become their bytes.
    """
    fields = {**FIELDS, **literals}
    text = ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None)
    return ("{" + text + extra + "}").encode("utf-8", "surrogatepass")


def quoted(text: str) -> str:
    """Write a JSON string of text that needs no escape, or has them."""
    return f'"{text}"'


def shown(text: str) -> str:
    """Give text in a length that fits a name."""
    return text if len(text) <= 48 else f"{text[:16]}~{len(text)}"


def nested(levels: int, opening: str = "[", closing: str = "]", inner: str = "1") -> str:
    """Write a literal of so many levels."""
    return opening * levels + inner + closing * levels


_NOT_JSON: Final = (
    *("NaN", "Infinity", "-Infinity", "nan", "inf", "1e", "0x10", "01", "+1", "1_000", ".5", "5."),
    *("1.2.3", "1,5", "--1", "−1", "１２", "'1'", "True", "None", "undefined", "1/3", "1e+", "1n"),
)
_NOT_AN_AMOUNT: Final = {
    **dict.fromkeys(["NaN", "nan", "Infinity", "-inf", "+Infinity"], "not-finite"),
    **dict.fromkeys(["sNaN", "NaN1", "infinit", "1e5", "1E5", "1e999999999"], "bad-character"),
    **dict.fromkeys(
        ["1_000", "1,000", "1.000,5", "0x10", "1/3", "½", "１２", "١٢"], "bad-character"
    ),
    **dict.fromkeys(["−1", "", " ", " 1", "1 ", "1\\n", "1\\u0000", "\\u202e1"], "bad-character"),
    **dict.fromkeys([".5", "5.", ".", "-", "+", "--1", "1.2.3", "$1", "1 USD"], "bad-character"),
    **dict.fromkeys(["1" * 13, "1" * 30, "1" * 40, "1" * 41, "9" * 60_000], "out-of-range"),
    **dict.fromkeys(["1000000000000", "1000000000000.00000000"], "out-of-range"),
    **dict.fromkeys(["1.123456789", "1234567890.123456789"], "too-many-decimals"),
    "0." + "0" * 60_000: "too-many-decimals",
    **dict.fromkeys(["0", "-0", "0.00000000", "-1", "-0.00000001", "00"], "not-positive"),
}
_NUMBER_OUT_OF_RANGE: Final = (
    *("1e400", "1e1000000", "-1e1000000", "1e999999999", "1e99999999999999999999", "1e12"),
    *("1e-99999999999999999999", "1000000000000", "1" * 30, "9" * 60_000, "-1" + "0" * 400),
    *("18446744073709551616", "-9223372036854775809", "999999999999.999999999"),
)
_EXACT: Final = {
    "0.1": "0.1",
    "1e2": "100",
    "1E-8": "0.00000001",
    "999999999999.99999999": "999999999999.99999999",
    "0.30000000000000004": "0.3",
    "1234567890.123456789": "1234567890.12345679",
    "1234567890.123456785": "1234567890.12345678",  # half to even
    "1234567890.123456775": "1234567890.12345678",
    "12345678901.000000010000000000000000000001": "12345678901.00000001",
    "1." + "0" * 60_000 + "1": "1",
    "0.000000005000000000000000000000000000001": "0.00000001",
}
_ROUNDED: Final = frozenset(list(_EXACT)[4:])


def _amounts() -> Iterator[Hostile]:
    for field in ("price", "quantity"):
        for literal in _NOT_JSON:
            value = body(**{field: literal})
            yield Hostile(f"{field} is the bare {literal}", value, "body-not-json")
        for text, problem in _NOT_AN_AMOUNT.items():
            value = body(**{field: f'"{text}"'})
            yield Hostile(f"{field} is the text {shown(text)!r}", value, f"{field}-{problem}")
        for literal in _NUMBER_OUT_OF_RANGE:
            value = body(**{field: literal})
            yield Hostile(f"{field} is {shown(literal)}", value, f"{field}-out-of-range")
        for literal in ("0", "-0", "-0.0", "0e999", "1e-9", "1e-1000000", "-5", "5e-9", "-1e-300"):
            value = body(**{field: literal})
            yield Hostile(f"{field} is {literal}", value, f"{field}-not-positive")
        for literal in ("true", "[]", "{}", '["1"]', '{"a":1}', "[[1]]"):
            value = body(**{field: literal})
            yield Hostile(f"{field} is {literal}", value, f"{field}-wrong-type")
        yield Hostile(f"{field} is null", body(**{field: "null"}), f"{field}-missing")
        yield Hostile(f"no {field}", body(**{field: None}), f"{field}-missing")
    for literal, mark in _EXACT.items():
        suspects = ("price-rounded",) if literal in _ROUNDED else ()
        yield Hostile(f"exact {shown(literal)}", body(price=literal), mark=mark, suspects=suspects)
    for text, mark in {"+1": "1", "0001": "1", "0.00000001": "0.00000001"}.items():
        yield Hostile(f"exact text {text}", body(price=f'"{text}"'), mark=mark)


def _rare_amounts() -> Iterator[Hostile]:
    for field, name in (("contract_multiplier", "multiplier"), ("fees", "fee-amount")):

        def written(literal: str, field: str = field) -> bytes:
            value = f'[{{"amount":"1"}},{{"amount":{literal}}}]' if field == "fees" else literal
            return body(**{field: value})

        for literal in _NUMBER_OUT_OF_RANGE:
            what = f"{name} is {shown(literal)}"
            yield Hostile(what, written(literal), f"{name}-out-of-range")
        for text, problem in _NOT_AN_AMOUNT.items():
            if problem == "not-positive":
                continue  # a fee may be a rebate
            what = f"{name} is the text {shown(text)!r}"
            yield Hostile(what, written(f'"{text}"'), f"{name}-{problem}")
        yield Hostile(f"{name} is true", written("true"), f"{name}-wrong-type")
        yield Hostile(f"{name} is NaN", written("NaN"), "body-not-json")
    for literal in ("0", "-1", '"0"', "1e-9"):
        value = body(contract_multiplier=literal)
        yield Hostile(f"multiplier is {literal}", value, "multiplier-not-positive")
    yield Hostile("fee of nothing", body(fees="[{}]"), "fee-amount-missing")
    fees = ",".join(['{"amount":1}'] * 1000)
    yield Hostile("a thousand fees", body(fees=f"[{fees}]"))
    yield Hostile("fees are one", body(fees='{"amount":1}'), "fees-wrong-type")
    yield Hostile("a fee is a number", body(fees="[3]"), "fees-wrong-type")
    for literal, problem in {
        *{('"NaN"', "not-finite"), ("1e300", "out-of-range"), ('"1e5"', "bad-character")},
        *{("0", "not-positive"), ('"1.123456789"', "too-many-decimals")},
    }:
        value = body(fx_rate=literal, settlement_currency='"EUR"')
        yield Hostile(f"fx_rate is {literal}", value, suspects=(f"fx-rate-{problem}",))


_BAD_IN_NAMES: Final = {
    "NUL": "\\u0000",
    "a control character": "\\u001b[31m",
    "a line break": "a\\nb",
    "DEL": "\\u007f",
    "a C1 control": "\\u0085",
    "right-to-left override": "\\u202eCBA",
    "isolates": "\\u2066A\\u2069",
    "no width": "A\\u200bB",
    "byte order mark": "\\ufeffA",
    "line separator": "A\\u2028B",
    "no-break space": "A\\u00a0B",
    "tag characters": "A\\udb40\\udc41",
    "private use": "\\ue000",
    "unassigned": "\\uffff",
}
_GOOD_IN_NAMES: Final = {
    "markup": "<script>alert(1)</script>",
    "a formula": "=1+1",
    "SQL": "'; DROP TABLE trades; --",
    "a path": "../../etc/passwd",
    "a format": "%s%n{0.__class__}",
    "a lookup": "${jndi:ldap://x}",
    "a homoglyph": "АВС",
    "emoji": "😀" * MAX_ID_LENGTH,
    "combining marks": "A" + "\u0301" * (MAX_ID_LENGTH - 1),
    "a key of its objects": "__proto__",
    "a quotation mark": 'A\\"B',
    "a backslash": "A\\\\B",
    "commas": "A,B,C",
    "null": "null",
}


def _texts() -> Iterator[Hostile]:
    for field in ("trade_id", "symbol", "book"):
        name = field.replace("_", "-")
        for what, text in _BAD_IN_NAMES.items():
            value = body(**{field: f'"{text}"'})
            yield Hostile(f"{field} with {what}", value, f"{name}-bad-character")
        for what, text in _GOOD_IN_NAMES.items():
            yield Hostile(f"{field} with {what}", body(**{field: f'"{text}"'}))
        at_most = "x" * MAX_ID_LENGTH
        yield Hostile(f"{field} of {MAX_ID_LENGTH}", body(**{field: f'"{at_most}"'}))
        yield Hostile(f"longer {field}", body(**{field: f'"{at_most}x"'}), f"{name}-too-long")
        huge = "x" * 60_000
        yield Hostile(f"huge {field}", body(**{field: f'"{huge}"'}), f"{name}-too-long")
        for literal in ("17", "true", "[]", "{}", "1.5"):
            value = body(**{field: literal})
            yield Hostile(f"{field} is {literal}", value, f"{name}-wrong-type")
    for field in ("symbol", "book"):
        for what, text in {"a bar": "A|B", "a blank first": " A", "a blank last": "A "}.items():
            value = body(**{field: f'"{text}"'})
            yield Hostile(f"{field} with {what}", value, f"{field}-bad-character")
    for field in ("trade_id", "symbol"):
        name = field.replace("_", "-")
        yield Hostile(f"empty {field}", body(**{field: '""'}), f"{name}-missing")
        yield Hostile(f"{field} is null", body(**{field: "null"}), f"{name}-missing")
        yield Hostile(f"no {field}", body(**{field: None}), f"{name}-missing")
    for literal in ('""', '"buy"', '"BUY "', '"HOLD"', '"BUY\\u0000"', '"ＢＵＹ"', '"1"'):
        yield Hostile(f"side is {literal}", body(side=literal), "side-unknown")
    yield Hostile("side is a number", body(side="1"), "side-wrong-type")
    yield Hostile("side is null", body(side="null"), "side-missing")
    yield Hostile("empty book", body(book='""'))
    text = "x" * MAX_TEXT_LENGTH
    yield Hostile(f"account of {MAX_TEXT_LENGTH}", body(account=f'"{text}"'))
    yield Hostile("longer account", body(account=f'"{text}x"'), "account-too-long")
    for what, bad in _BAD_IN_NAMES.items():
        value = body(account=f'"{bad}"')
        yield Hostile(f"account with {what}", value, "account-bad-character")
    yield Hostile("fee type with NUL", body(fees='[{"amount":1,"type":"\\u0000"}]'),
                  "fee-type-bad-character")  # fmt: skip
    yield Hostile("long fee type", body(fees=f'[{{"amount":1,"type":"{text}x"}}]'),
                  "fee-type-too-long")  # fmt: skip
    yield Hostile("published_at is anything", body(published_at='"\\u0000 not a time"'))


def _encodings() -> Iterator[Hostile]:
    text = body().decode()
    for name in ("utf-16", "utf-32"):
        yield Hostile(name, text.encode(name), "body-not-utf8")
    for name in ("utf-16-le", "utf-16-be"):
        yield Hostile(name, text.encode(name), "body-not-json")
    yield Hostile("byte order mark first", b"\xef\xbb\xbf" + body(), "body-not-json")
    for what, raw in {
        "latin-1": "Zürich".encode("latin-1"),
        "a lone continuation byte": b"A\x80",
        "an overlong slash": b"A\xc0\xaf",
        "an overlong NUL": b"A\xc0\x80",
        "a surrogate's bytes": b"A\xed\xa0\x80",
        "beyond Unicode": b"A\xf4\x90\x80\x80",
        "a cut sequence": b"A\xe2\x82",
        "0xff": b"A\xff",
    }.items():
        for field in ("symbol", "account", "note"):
            value = body(**{field: '"A"'}).replace(b'"A"', b'"' + raw + b'"')
            yield Hostile(f"{field} with {what}", value, "body-not-utf8")
    for escape in ("\\ud800", "\\udc00", "\\udc00\\ud800", "\\ud800x", "\\x41", "\\u12", "\\U0041"):
        for field in ("symbol", "note"):
            value = body(**{field: f'"{escape}"'})
            yield Hostile(f"{field} is {escape}", value, "body-not-json")
    yield Hostile("a raw control character", body(symbol='"A\x1f"'), "body-not-json")
    yield Hostile("a raw tab", body(note='"A\tB"'), "body-not-json")


def _shapes() -> Iterator[Hostile]:
    yield Hostile("tombstone", None, "body-empty")
    yield Hostile("nothing", b"", "body-empty")
    for value in (b" ", b"\x00", b"{", b"}", b"{}}", b'{"', b"\xe2\x80\xa8"):
        yield Hostile(f"{value!r}", value, "body-not-json")
    for value in (b"[]", b"null", b"true", b'"x"', b"1", b"1e400", b"[{}]"):
        yield Hostile(f"{value!r}", value, "body-not-object")
    yield Hostile("60,000 brackets", b"[" * 60_000, "body-too-deep")
    yield Hostile("100,000 brackets", b"[" * 100_000, "body-too-large")
    yield Hostile("empty object", b"{}", "trade-id-missing")
    for what, value in {
        "two bodies": body() + body(),
        "two lines": body() + b"\n" + body(),
        "rubbish after it": body() + b"x",
        "NUL after it": body() + b"\x00",
        "a comma after it": body() + b",",
        "a trailing comma": body(","),
        "a comment": body("/* */"),
        "single quotes": body().replace(b'"', b"'"),
        "no quotes": b"{trade_id:1}",
        "a number as key": b"{1:2}",
        "a schema id in front": b"\x00\x00\x00\x00\x01" + body(),
        "a form feed": b"\x0c" + body(),
        "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        "a zstd frame": b"\x28\xb5\x2f\xfd\x04\x00",
        "XML": b"<trade/>",
        "pickle": b"\x80\x04\x4e\x2e",
    }.items():
        is_utf8 = what not in {"gzip", "a zstd frame", "pickle"}
        yield Hostile(what, value, "body-not-json" if is_utf8 else "body-not-utf8")
    for end in (1, 2, len(body()) // 2, len(body()) - 1):
        yield Hostile(f"cut after {end}", body()[:end], "body-not-json")
    yield Hostile("another symbol", body(symbol='"XYZ"'))  # of another partition, in fuzzing
    yield Hostile("all on lines of its own", body().replace(b",", b" ,\r\n\t"))


def _duplicates() -> Iterator[Hostile]:
    for what, extra in {
        "the same": ',"price":"10.5"',
        "another": ',"price":"9"',
        "of another type": ',"price":9',
        "null": ',"price":null',
        "spaced": ',"price" :\n"9"',
        "escaped": ',"\\u0070rice":"9"',
        "trade_id": ',"trade_id":"H2"',
        "symbol": ',"symbol":"X"',
        "a rare one": ',"account":"a","account":"b"',
        "an unknown one": ',"x":1,"x":2',
        "an unknown one, escaped": ',"x":1,"\\u0078":2',
        "NUL": ',"\\u0000":1,"\\u0000":2',
        "in a fee": ',"fees":[{"amount":1,"amount":2}]',
        "in the second fee": ',"fees":[{"amount":1},{"type":"a","type":"b","amount":1}]',
        "deep down": ',"x":[{"y":{"a":1,"a":2}}]',
        "the empty key": ',"":1,"":2',
        "a hundred times": ',"x":1' * 100,
    }.items():
        yield Hostile(f"key twice: {what}", body(extra), "body-duplicate-key")
    yield Hostile("keys that differ in case", body(',"Price":"9","PRICE":"8"'))


def _depths() -> Iterator[Hostile]:
    yield Hostile("as deep as allowed", body(note=nested(MAX_DEPTH - 1)))
    yield Hostile("one too deep", body(note=nested(MAX_DEPTH)), "body-too-deep")
    objects = nested(MAX_DEPTH, '{"a":', "}")
    yield Hostile("objects one too deep", body(note=objects), "body-too-deep")
    for levels in (600, 995, 1000, 1024, 10_000, 30_000):
        yield Hostile(f"{levels} deep", body(note=nested(levels)), "body-too-deep")
    yield Hostile("10,000 objects", b'{"a":' * 10_000, "body-too-deep")
    for field in ("fees", "price", "trade_id"):
        yield Hostile(f"deep {field}", body(**{field: nested(10_000)}), "body-too-deep")
    for levels in (MAX_DEPTH + 1, 950, 970, 10_000):  # where the parser's own limit lies varies
        yield Hostile(f"{levels} deep and cut", body(note=nested(levels))[:-1], "body-too-deep")
    yield Hostile("deep in text", body(note=quoted(nested(10_000))))
    yield Hostile("many that do not nest", body(note="[" + "[]," * 20_000 + "{}]"))


def _sizes() -> Iterator[Hostile]:
    room = MAX_VALUE_BYTES - len(body())
    yield Hostile("as large as allowed", body() + b" " * room)
    yield Hostile("one byte too large", body() + b" " * (room + 1), "body-too-large")
    note = MAX_VALUE_BYTES - len(body(note=quoted("")))
    yield Hostile("as large as allowed, text", body(note=quoted("x" * note)))
    yield Hostile("text too large", body(note=quoted("x" * (note + 1))), "body-too-large")
    yield Hostile("300,000 bytes", b"x" * 300_000, "body-too-large")
    many = "".join(f',"k{n}":{n}' for n in range(5000))
    yield Hostile("5,000 unknown fields", body(many))
    yield Hostile("a long key", body(f",{quoted('k' * 60_000)}:1"))
    yield Hostile("20,000 values", body(note="[" + "0," * 20_000 + "0]"))
    yield Hostile("10,000 escapes", body(note=quoted("\\u0041" * 10_000)))
    yield Hostile("commas in text", body(note=quoted("," * 60_000)))
    yield Hostile("quotation marks in text", body(note=quoted('\\"' * 30_000)))


def _timestamps() -> Iterator[Hostile]:
    future = ("timestamp-in-future",)
    for text, suspects in {
        "2000-01-01T00:00:00Z": (),
        "2000-01-01T00:00:00.000000000-00:00": (),
        "1999-12-31T23:59:60Z": (),
        "2026-01-02t03:04:05z": (),
        "2026-01-02 03:04:05.123456789+23:59": (),
        "2026-01-02T03:04:05": ("timestamp-no-offset",),
        "2024-02-29T23:59:60-11:59": (),
        "2099-12-31T23:59:59.999999999Z": future,
        "2099-12-31T23:59:59.999Z": future,
    }.items():
        yield Hostile(f"time {text}", body(timestamp=f'"{text}"'), suspects=suspects)
    for text in (
        *("1999-12-31T23:59:59.999999999Z", "2100-01-01T00:00:00Z", "2099-12-31T23:59:60Z"),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "9999-12-31T23:59:60-23:59"),
        *("2000-01-01T00:00:00+00:01", "1970-01-01T00:00:00Z"),
    ):
        value = body(timestamp=f'"{text}"')
        yield Hostile(f"time {text}", value, "timestamp-out-of-range")
    for text in (
        *("", " ", "now", "0000-01-01T00:00:00Z", "2026-02-30T00:00:00Z", "2023-02-29T00:00:00Z"),
        *("2026-13-01T00:00:00Z", "2026-00-10T00:00:00Z", "2026-01-02T24:00:00Z", "2026-01-02"),
        *("2026-01-02T03:60:00Z", "2026-01-02T03:04:61Z", "2026-01-02T03:04:05.1234567890Z"),
        *("2026-01-02T03:04:05.Z", "2026-01-02T03:04:05+24:00", "2026-01-02T03:04:05+0100"),
        *("2026-1-2T3:4:5Z", "20260102T030405Z", "10000-01-01T00:00:00Z", "-2026-01-02T03:04:05Z"),
        *("２０２６-01-02T03:04:05Z", "2026-01-02T03:04:05Z\\n", "2026-01-02T03:04:05Z\\u0000"),
        *("1767323045", "NaN", "x" * 60_000, "2026-01-02T03:04:05." + "0" * 60_000 + "Z"),
    ):
        value = body(timestamp=f'"{text}"')
        yield Hostile(f"time {shown(text)!r}", value, "timestamp-unparseable")
    for literal in (
        *("0", "-1", "1", "946684799", "946684799.999999999", "4102444800", "1e400", "1e1000000"),
        *("-1e1000000", "1e20", "9223372036854775807", "253402300799", "9" * 60_000, "1e-300"),
        "1e-99999999999999999999",
    ):
        value = body(timestamp=literal)
        yield Hostile(f"epoch {shown(literal)}", value, "timestamp-out-of-range")
    for literal, suspects in {
        **dict.fromkeys(["946684800", "1767323045", "1767323045123"], ()),
        **dict.fromkeys(["1767323045.123456789", "1.767323045e9", "1767323045123456789"], ()),
        **dict.fromkeys(["4102444799", "4102444799.999999999999999999", "4.102444799e18"], future),
    }.items():
        yield Hostile(f"epoch {literal}", body(timestamp=literal), suspects=suspects)
    for literal in ("true", "[]", "{}"):
        yield Hostile(f"time is {literal}", body(timestamp=literal), "timestamp-wrong-type")
    yield Hostile("time is null", body(timestamp="null"), "timestamp-missing")
    yield Hostile("time is bare NaN", body(timestamp="NaN"), "body-not-json")


def _rules() -> Iterator[Hostile]:
    for extra, reason in {
        ',"schema_version":2': "schema-version-unsupported",
        ',"schema_version":-9223372036854775808': "schema-version-unsupported",
        ',"schema_version":"1"': "schema-version-wrong-type",
        ',"schema_version":1e400': "schema-version-out-of-range",
        ',"version":1.5': "version-wrong-type",
        ',"version":0': "version-out-of-range",
        ',"version":18446744073709551616': "version-invalid",
        ',"version":2': "version-invalid",
        ',"action":"CANCEL"': "lifecycle-unavailable",
        ',"action":"new"': "action-unknown",
        ',"asset_class":"?"': "asset-class-unknown",
        ',"price_type":"?"': "price-type-unknown",
        ',"price_type":"YIELD"': "price-type-unsupported",
        ',"currency":"usd"': "currency-unknown",
        ',"currency":"ＵＳＤ"': "currency-unknown",
        ',"currency":"USDT"': "currency-unknown",
        ',"fees":[{"amount":1,"currency":"usd"}]': "fee-currency-unknown",
        ',"fees":[{"amount":1,"currency":7}]': "fee-currency-wrong-type",
        ',"fees":[{"amount":1,"currency":"\\u0000"}]': "fee-currency-bad-character",
        ',"short_sale":"Y"': "short-sale-wrong-type",
        ',"cleared":1': "cleared-wrong-type",
        ',"fx_rate":1e400': "fx-rate-out-of-range",
    }.items():
        yield Hostile(f"body with {extra[1:]}", body(extra), reason)
    for extra, suspect in {
        ',"isin":"US0378331006"': "isin-check-digit",
        ',"isin":"' + "9" * 256 + '"': "isin-check-digit",
        ',"figi":"١"': "figi-check-digit",
        ',"our_lei":"²³"': "lei-check-digit",
        ',"trade_date":"2026-02-30"': "trade-date-unparseable",
        ',"trade_date":"9999-12-31","settlement_date":"0001-01-01"': "settlement-before-trade",
        ',"settlement_date":"2026-W01-1T"': "settlement-date-unparseable",
    }.items():
        yield Hostile(f"doubtful: {extra[1:50]}", body(extra), suspects=(suspect,))


CORPUS: Final = tuple(
    chain(
        *(_shapes(), _encodings(), _amounts(), _rare_amounts(), _texts(), _duplicates()),
        *(_depths(), _sizes(), _timestamps(), _rules()),
    )
)
