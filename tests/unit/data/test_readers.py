"""Every kind of file gives the same rows, a large one in little memory, and a kind that is not read says what is."""

import bz2
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import UserError
from pipeline.data import readers
from pipeline.data.readers import UNREADABLE
from tests.helpers.paths import ROOT

ROWS = [{"id": str(i), "text": f"Ärticle {i}, “quoted”\nof two lines"} for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1).encode()
TABLE = b"id,text\r\n" + "".join(f'{row["id"]},"{row["text"]}"\r\n' for row in ROWS).encode()
BOM = b"\xef\xbb\xbf"


def compress(name: str, data: bytes) -> bytes:
    if name.lower().endswith(".zst"):
        return pa.Codec("zstd").compress(data, asbytes=True)
    return {".gz": gzip.compress, ".bz2": bz2.compress}.get(name.lower()[name.rfind(".") :], bytes)(data)


def read(path: Path, data: bytes | None = None, **more: Any) -> list[dict[str, Any]]:
    if data is not None:
        path.write_bytes(data)
    return list(readers.read_rows(str(path), "articles.path", **more))


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".bz2", ".GZ"])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.jsonl", LINES),
        ("x.JSONL", LINES),
        ("x.ndjson", LINES.replace(b"\n", b"\r\n")),
        ("x.jsonl", BOM + LINES),
        ("x.json", LINES),
        ("x.json", ARRAY),
        ("x.json", b'{"version": 1, "data": ' + ARRAY + b"}"),
        ("x.json", json.dumps({"data": ROWS}, indent=2).encode()),
        ("x.csv", TABLE),
        ("x.CSV", BOM + TABLE),
        ("x.tsv", TABLE.replace(b"id,", b"id\t").replace(b',"', b'\t"')),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, data: bytes, ending: str) -> None:
    assert read(tmp_path / (name + ending), compress(name + ending, data)) == ROWS


def test_a_folder_of_texts_is_an_article_each(tmp_path: Path) -> None:
    for name, data in [
        ("b.txt", b"B\r\nb"),
        ("a.TXT", BOM + b"A"),
        ("c.txt", b"\xe9"),
        ("d.txt", "D".encode("utf-16")),
    ]:
        (tmp_path / name).write_bytes(data)
    (tmp_path / ".DS_Store").write_bytes(b"")
    assert read(tmp_path) == [
        {"id": "a", "text": "A"},
        {"id": "b", "text": "B\nb"},
        {"id": "c", UNREADABLE: "not UTF-8"},
        {"id": "d", UNREADABLE: "UTF-16 text"},
    ]


@pytest.mark.parametrize("other", ["rows.jsonl", "folder"])
def test_a_folder_of_texts_with_something_else_is_refused(tmp_path: Path, other: str) -> None:
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / other).mkdir()
    with pytest.raises(UserError, match=f"a folder of .txt files that also has {other}: name a folder"):
        read(tmp_path)


def test_files_put_together_keep_every_row(tmp_path: Path) -> None:
    assert read(tmp_path / "x.jsonl", (BOM + LINES) * 2) == ROWS * 2
    assert read(tmp_path / "x.jsonl.gz", gzip.compress(BOM + LINES) * 2) == ROWS * 2
    assert read(tmp_path / "x.json", (BOM + LINES) * 2) == ROWS * 2


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("x.xlsx", b"PK\x03\x04", "it should end in .jsonl, .ndjson, .json, .csv or .tsv, each with or without .gz"),
        ("x.parquet.gz", b"PAR1", "it should end in .jsonl,"),
        ("x.txt", b"a", "be a folder of .txt files; or begin with hf:"),
        ("x.jsonl", ARRAY, "holds one JSON value, and not one object per line: give it a name that ends in .json"),
        ("x.jsonl", json.dumps(ROWS).encode(), "give it a name that ends in .json"),
        ("x.jsonl", json.dumps({"data": ROWS}, indent=1).encode(), "give it a name that ends in .json"),
        ("x.json", json.dumps({"data": ROWS}, indent=1).encode()[:-9], "cannot be read as JSON: Expecting"),
        ("x.json", json.dumps({"a": ROWS, "b": ROWS}).encode(), "an object with several lists of rows (a, b): save"),
        ("x.csv", TABLE.decode().encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        ("x.jsonl", LINES.decode().encode("utf-16-le"), "is UTF-16 text: save it as UTF-8"),
        ("x.csv", gzip.compress(TABLE, mtime=0), "is compressed: give it a name that ends in .csv.gz"),
        ("x.jsonl", compress(".zst", LINES), "is compressed: give it a name that ends in .jsonl.zst"),
        ("x.csv", b"PK\x03\x04", "is a zip archive, as a spreadsheet is: unpack it, or save it as CSV"),
        ("x.csv", b"id;text\n1;a\n", "has columns separated by ';': save it with commas"),
        ("x.tsv", b"id,text\n1,a\n", "has columns separated by ',': save it with tabs"),
        ("x.csv", b"id,text,id\n", "has two columns called 'id': rename one of them"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_do(tmp_path: Path, name: str, data: bytes, line: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, data)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_bad_row_of_a_table_is_lost_alone(tmp_path: Path) -> None:
    data = b'id,text\n1,a,b\n2\n3,\xe9\n4,"a"b\n\n5,"007"\n6,"a\n'
    assert read(tmp_path / "x.csv", data) == [
        {UNREADABLE: "not as many cells as the header has names"},
        {UNREADABLE: "not as many cells as the header has names"},
        {UNREADABLE: "not UTF-8"},
        {UNREADABLE: "not a row of a table: ',' expected after '\"'"},
        {"id": "5", "text": "007"},
        {UNREADABLE: "not a row of a table: unexpected end of data"},
    ]


def test_an_article_of_a_table_may_be_long(tmp_path: Path) -> None:
    assert len(read(tmp_path / "x.csv", b"id,text\n1," + b"word " * 100_000)[0]["text"]) == 500_000


def test_an_object_that_is_a_row_stays_one(tmp_path: Path) -> None:
    row = {"id": "1", "text": "a", "questions": [{"q": 1}]}
    assert read(tmp_path / "x.json", json.dumps(row).encode(), is_row=lambda row: "text" in row) == [row]


def test_a_relative_path_that_does_not_exist_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        list(readers.read_rows("data/x.jsonl", "articles.path"))
    assert str(caught.value) == f"articles.path is 'data/x.jsonl': no such file ({tmp_path}/data/x.jsonl)"


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    text = "word " * 2000
    line, cells = json.dumps({"id": "1", "text": text}).encode() + b"\n", f'1,"{text}"\n'.encode()
    for name, row in [("x.jsonl", line), ("x.json", line), ("x.csv", cells), ("x.jsonl.gz", line)]:
        data = (b"id,text\n" if row is cells else b"") + row * 5_000  # 50 MB
        (tmp_path / name).write_bytes(compress(name, data) if name.endswith(".gz") else data)
    code = (
        "import resource, sys; from pathlib import Path; from pipeline.data import readers\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, files = peak(), Path(sys.argv[1]).iterdir()\n"
        "rows = [sum(1 for _ in readers.read_rows(str(path), 'x')) for path in files]\n"
        "print(*rows, peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    *rows, kib = map(int, printed.split())
    assert rows == [5_000] * 4 and kib < 25_000
