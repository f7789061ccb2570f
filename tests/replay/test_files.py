"""Readers of replay files: every row comes out once, whatever stands in the others."""

import gzip
import io
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ReplayFileError
from app.replay.files import RowFile
from app.replay.rows import MAX_RAW_BYTES, MAX_ROW_BYTES, Row

COMPRESSIONS = {"": lambda body: body, ".gz": gzip.compress, ".zst": zstandard.compress}
ROWS = [{"a": "1", "b": "x"}, {"a": "2", "b": "y, z"}, {"a": "3", "b": "ä"}]


def parquet(**columns: Any) -> bytes:
    """Write columns as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


BODIES = {
    ".CSV": b'a,b\n1,x\n2,"y, z"\n3,\xc3\xa4\n',
    ".csv": 'a,b\n1,x\n2,"y, z"\n3,ä\n'.encode(),
    ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    ".ndjson": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    ".json": "\r\n".join(json.dumps(row) for row in ROWS).encode(),
    ".parquet": parquet(a=["1", "2", "3"], b=["x", "y, z", "ä"]),
}


def read(tmp_path: Path, name: str, body: bytes) -> list[Row]:
    """Write a file and read its rows."""
    path = tmp_path / name
    path.write_bytes(body)
    with RowFile(path) as rows:
        return list(rows)


def shown(rows: list[Row]) -> list[tuple[int, str]]:
    """Give the line of each row, and its reason or `ok`."""
    return [(row.line, row.problem.reason if row.problem else "ok") for row in rows]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("extension", BODIES)
def test_every_format_gives_the_same_rows_in_every_compression(
    tmp_path: Path, extension: str, compression: str
) -> None:
    """Format and compression are told by the extensions, in any letter case."""
    body = COMPRESSIONS[compression](BODIES[extension])
    rows = read(tmp_path, f"prints{extension}{compression}", body)
    assert [dict(row.columns) for row in rows] == ROWS
    first = 2 if extension.lower() == ".csv" else 1
    assert [row.line for row in rows] == [first, first + 1, first + 2]


def test_header_is_known_ahead_of_the_rows_and_the_file_is_followed(tmp_path: Path) -> None:
    """Columns and the position in the stored file are there to be asked for."""
    path = tmp_path / "prints.csv"
    path.write_bytes(BODIES[".csv"])
    with RowFile(path) as rows:
        assert rows.columns == ("a", "b")
        list(rows)
        assert rows.bytes_read == len(BODIES[".csv"])


@pytest.mark.parametrize("cut", [10, 200, 4_000])
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_cut_off_compressed_file_gives_its_rows_and_then_an_error(
    tmp_path: Path, compression: str, cut: int
) -> None:
    """What comes before the cut is read; the cut itself is never taken for the end."""
    lines = [f"{i},{i * 7919 % 104_729}\n" for i in range(5_000)]
    body = COMPRESSIONS[compression](("a,b\n" + "".join(lines)).encode())
    path = tmp_path / f"prints.csv{compression}"
    path.write_bytes(body[:-cut])
    rows: list[Row] = []
    with pytest.raises(ReplayFileError, match=r"prints\.csv.*cannot be read"):
        collect(path, rows)
    assert [row.columns["a"] for row in rows] == [str(i) for i in range(len(rows))]


def collect(path: Path, into: list[Row]) -> None:
    """Read rows one by one, so that those ahead of an error are kept."""
    with RowFile(path) as source:
        for row in source:
            into.append(row)  # noqa: PERF402 - extend would lose them when the file ends early


def test_zstd_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    """Frames that were appended to each other count as one file."""
    body = zstandard.compress(b"a\n1\n") + zstandard.compress(b"2\n")
    rows = read(tmp_path, "prints.csv.zst", body)
    assert [row.columns["a"] for row in rows] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        ("prints.csv", b"", "has no header"),
        ("prints.csv", b"\n1,2\n", "has no header"),
        ("prints.csv", b"\xff\xfea\x00,\x00", "not UTF-8"),
        ("prints.csv", b'"a,b\n1,2\n', "not CSV"),
        ("prints.csv", b"a" * (MAX_ROW_BYTES + 1), "not UTF-8 text"),
        ("prints.parquet", b"PAR1 and no more", "Parquet"),
        ("prints.csv.gz", b"a,b\n1,2\n", "cannot be read"),
        ("prints.csv.zst", b"a,b\n1,2\n", "cannot be read"),
        ("prints.txt", b"a,b\n1,2\n", "unknown format"),
        ("prints", b"a,b\n1,2\n", "unknown format"),
    ],
)
def test_unusable_file_is_refused_when_it_is_opened(
    tmp_path: Path, name: str, body: bytes, problem: str
) -> None:
    """The message names the file and says what is wrong with it."""
    with pytest.raises(ReplayFileError, match=problem):
        read(tmp_path, name, body)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    """Neither can be read, and each is told apart."""
    with pytest.raises(ReplayFileError, match="does not exist"):
        RowFile(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ReplayFileError, match="not a regular file"):
        RowFile(tmp_path / "folder.csv")


def test_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks the optional dependency is told how to install it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ReplayFileError, match=r"trade-stream\[parquet\]"):
        read(tmp_path, "prints.parquet", BODIES[".parquet"])


def test_csv_dialect_of_other_programs_is_read(tmp_path: Path) -> None:
    """BOM, CRLF, quoted line ends and delimiters, doubled quotes and NUL are all plain CSV."""
    body = b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n"2,5","say ""hi"""\r\n3,\x00\r\n4,'
    rows = read(tmp_path, "prints.csv", body)
    assert [dict(row.columns) for row in rows] == [
        {"a": "1", "b": "x\r\ny"},
        {"a": "2,5", "b": 'say "hi"'},
        {"a": "3", "b": "\x00"},
        {"a": "4", "b": None},
    ]
    assert [row.line for row in rows] == [2, 4, 5, 6]
    assert rows[0].raw() == '1,"x\r\ny"'
    assert not rows[0].is_typed


def test_broken_csv_rows_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    """A stray quotation mark costs its own row and none of those after it."""
    lines = [b"a,b", b"1,2", b"3", b"4,5,6", b"", b"\xff,7", b'8,"9', b"10,11", b"12,13"]
    lines += [b'"14,15', b'16,"17"x', b'18,"19', b"20," + b"x" * MAX_ROW_BYTES * 2, b"21,22", b""]
    body = b"\n".join(lines)
    rows = read(tmp_path, "prints.csv", body)
    assert shown(rows) == [
        (2, "ok"),
        (3, "body-column-count"),
        (4, "body-column-count"),
        (5, "body-empty"),
        (6, "body-not-utf8"),
        (7, "body-not-csv"),
        (8, "ok"),
        (9, "ok"),
        (10, "body-not-csv"),
        (11, "body-not-csv"),
        (12, "body-not-csv"),
        (13, "body-too-large"),
        (14, "ok"),
    ]
    assert rows[4].raw() == "\\xff,7"
    assert len(rows[11].raw()) == MAX_RAW_BYTES


def test_unclosed_quotation_mark_does_not_take_the_rest_of_a_long_file(tmp_path: Path) -> None:
    """The reader looks ahead over a bounded part of the file and then comes back."""
    count = MAX_ROW_BYTES // 4
    rows = read(tmp_path, "prints.csv", b'a,b\n1,"2\n' + b"3,4\n" * count)
    assert shown(rows[:2]) == [(2, "body-not-csv"), (3, "ok")]
    assert len(rows) == count + 1
    assert rows[-1].line == count + 2


def test_broken_json_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    """Each kind of broken line has its own reason."""
    lines = [
        b'\xef\xbb\xbf{"a": 1}',
        b"",
        b"{",
        b"[1]",
        b'{"a": 1, "a": 2}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 60_000,
        b'{"a": 1e99999999999999999999}',
        b'{"a": ' + b"1" * 5_000 + b"}",
        b'{"a": "' + b"x" * MAX_ROW_BYTES + b'"}',
        b'{"a": 2} {"a": 3}',
        b'{"a": 4}',
    ]
    rows = read(tmp_path, "prints.jsonl", b"\n".join(lines))
    assert [reason for _, reason in shown(rows)] == [
        "ok",
        "body-empty",
        "body-not-json",
        "body-not-object",
        "body-duplicate-key",
        "body-not-utf8",
        "body-too-deep",
        "body-not-json",
        "body-not-json",
        "body-too-large",
        "body-not-json",
        "ok",
    ]
    assert [row.line for row in rows] == list(range(1, 13))


def test_json_numbers_keep_every_digit(tmp_path: Path) -> None:
    """No number passes through a binary fraction; nested values are columns too."""
    line = b'{"p": 0.1000000000000000055511151231257827, "e": 1e3, "n": {"x": [1]}, "t": true}'
    row = read(tmp_path, "prints.jsonl", line)[0]
    assert row.columns == {
        "p": Decimal("0.1000000000000000055511151231257827"),
        "e": Decimal("1e3"),
        "n": {"x": [1]},
        "t": True,
    }
    assert row.is_typed


def test_parquet_types_become_what_json_would_give(tmp_path: Path) -> None:
    """Times become ISO text to the nanosecond, floats keep their own shortest digits."""
    ns = 1_370_682_001_625_473_976
    body = parquet(
        ns=pa.array([ns, None], pa.timestamp("ns")),
        ms=pa.array([ns // 10**6, None], pa.timestamp("ms", "Europe/Amsterdam")),
        far=pa.array([10**15, None], pa.timestamp("ms")),
        f32=pa.array([0.1, None], pa.float32()),
        f64=pa.array([0.1, None], pa.float64()),
        dec=pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
        int=pa.array([7, None], pa.int64()),
        flag=pa.array([True, None]),
        day=pa.array([15_864, None], pa.date32()),
        word=pa.array(["x", None]).dictionary_encode(),
        large=pa.array(["y", None], pa.large_string()),
        bytes=pa.array([b"z", b"\xff"], pa.binary()),
        list=pa.array([[1], None], pa.list_(pa.int64())),
        times=pa.array([[ns], None], pa.list_(pa.timestamp("ns"))),
        badtext=pa.array([b"\xff", None], pa.large_binary()),
    )
    first, second = read(tmp_path, "prints.parquet", body)
    times = first.columns["times"]
    assert {name: value for name, value in first.columns.items() if name != "times"} == {
        "ns": "2013-06-08T09:00:01.625473976",
        "ms": "2013-06-08T09:00:01.625Z",
        "far": f"{10**21} ns",
        "f32": Decimal("0.1"),
        "f64": 0.1,
        "dec": Decimal("1.50"),
        "int": 7,
        "flag": True,
        "day": "2013-06-08",
        "word": "x",
        "large": "y",
        "bytes": "z",
        "list": [1],
        "badtext": b"large_binary",
    }
    assert isinstance(times, bytes | list)
    assert second.columns["bytes"] == b"\xff"
    assert second.columns["f32"] is second.columns["word"] is second.columns["ns"] is None
    assert (first.line, second.line) == (1, 2)
    assert json.loads(second.raw())["int"] is None


def test_broken_zstd_parquet_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    """It is unpacked ahead of its rows, and a cut is found then."""
    body = zstandard.compress(BODIES[".parquet"])
    with pytest.raises(ReplayFileError, match="cut off"):
        read(tmp_path, "prints.parquet.zst", body[:-5])


def test_parquet_file_broken_in_its_middle_ends_with_an_error(tmp_path: Path) -> None:
    """A page that cannot be read is a fault of the file, after the rows ahead of it."""
    sink = io.BytesIO()
    table = pa.table({"a": [f"value {i}" for i in range(50_000)]})
    pq.write_table(table, sink, row_group_size=10_000, use_dictionary=False)
    body = bytearray(sink.getvalue())
    middle = len(body) // 2
    body[middle : middle + 2_000] = b"\xff" * 2_000
    path = tmp_path / "prints.parquet"
    path.write_bytes(body)
    rows: list[Row] = []
    with pytest.raises(ReplayFileError, match=r"prints\.parquet"):
        collect(path, rows)
    assert rows[0].columns == {"a": "value 0"}


@given(
    cells=st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.booleans()),
        max_size=20,
    )
)
def test_any_text_survives_csv(tmp_path_factory: pytest.TempPathFactory, cells: Any) -> None:
    """Quoted text of any kind comes back as it was written, and so do its neighbours."""
    quoted = [f'"{text.replace(chr(34), chr(34) * 2)}",{int(flag)}\n' for text, flag in cells]
    folder = tmp_path_factory.mktemp("csv")
    rows = read(folder, "prints.csv", ("a,b\n" + "".join(quoted)).encode())
    assert [(row.columns["a"] or "", row.columns["b"]) for row in rows] == [
        (text, str(int(flag))) for text, flag in cells
    ]


@given(lines=st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20))
def test_any_bytes_are_one_row_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    """JSON Lines of rubbish give one row for each line, in order, and never raise."""
    folder = tmp_path_factory.mktemp("json")
    rows = read(folder, "prints.jsonl", b"".join(line + b"\n" for line in lines))
    assert [row.line for row in rows] == list(range(1, len(lines) + 1))
    for row in rows:
        json.dumps(row.raw()).encode()
