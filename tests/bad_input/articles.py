"""Bad files, locations and rows of articles.

A case of a file is its name, the file's name, its content (None: there is no file), and the message.
"""

import gzip
import io
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns):
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


GOOD = [{"id": i, "text": f"Article {i} tells of thing {i}."} for i in range(8)]
_LONG = parquet(id=list(range(5000)), text=[f"Article {i} tells." for i in range(5000)])
_UNUSABLE = "{at} has no article that can be used"

FILES = [
    ("missing", "x.jsonl", None, "articles.path is '{at}': no such file"),
    ("empty", "x.jsonl", b"", "{at} is empty: there is no article in it"),
    ("blank lines", "x.jsonl", b"\n \n\t\n", "{at} is empty: there is no article in it"),
    ("UTF-16", "x.jsonl", lines(*GOOD).decode().encode("utf-16"), "{at} is UTF-16 text: save it as UTF-8"),
    (
        "gzip by another name",
        "x.jsonl",
        gzip.compress(lines(*GOOD), mtime=0),
        "{at} is compressed: give it a name that ends in",
    ),
    ("Parquet by another name", "x.json", _LONG, "{at} is a Parquet file: give it a name that ends in .parquet"),
    ("no gzip", "x.jsonl.gz", lines(*GOOD), "{at} cannot be read: zlib inflate failed: incorrect header check; is it"),
    (
        "gzip cut off",
        "x.jsonl.gz",
        gzip.compress(lines(*GOOD), mtime=0)[:-12],
        "{at} cannot be read: Truncated compressed stream",
    ),
    ("a table of another kind", "x.xlsx", b"PK", "articles.path is '{at}': it should end in .jsonl, .ndjson, .json"),
    ("an array cut off", "x.json", b'[{"id": 1, "text": "a b"},', "{at} cannot be read as JSON: Expecting value"),
    ("an array too deep", "x.json", b"[" * 100_000, "{at} cannot be read as JSON: maximum recursion depth exceeded"),
    ("an array of words", "x.json", b'["a", "b"]', f"{_UNUSABLE} (not a JSON object: 2)"),
    ("a number", "x.json", b"5", f"{_UNUSABLE} (not a JSON object: 1)"),
    (
        "rows under a name",
        "x.json",
        b'{"data": [{"id": 1}]}',
        "{at} has no column 'text'; it has id: name the right one",
    ),
    (
        "no such column",
        "x.jsonl",
        lines({"id": 1, "body": "a"}),
        "{at} has no column 'text'; it has id, body: name the",
    ),
    ("old line ends", "x.jsonl", lines(*GOOD).replace(b"\n", b"\r"), f"{_UNUSABLE} (not JSON: 1)"),
    ("nothing in the rows", "x.jsonl", lines({"id": None, "text": None}), f"{_UNUSABLE} (no id: 1)"),
    ("one article", "x.jsonl", lines(GOOD[0]), "{at} has no article for "),
    ("no Parquet", "x.parquet", b"hello", "{at} cannot be read: Parquet file size is 5 bytes, smaller than"),
    ("Parquet cut off", "x.parquet", _LONG[:-9], "{at} cannot be read: Parquet magic bytes not found in footer"),
    ("Parquet damaged", "x.parquet", _LONG[:200] + b"\xff" * 20_000 + _LONG[20_200:], "; is it cut off or damaged?"),
    (
        "Parquet of no rows",
        "x.parquet",
        parquet(id=pa.array([], "int64"), text=pa.array([], "string")),
        "{at} is empty:",
    ),
    ("text as lists", "x.parquet", parquet(id=[1, 2], text=[["a b"], ["c d"]]), f"{_UNUSABLE} (no text: 2)"),
    ("text as bytes", "x.parquet", parquet(id=[1], text=[b"\xff\xfe"]), f"{_UNUSABLE} (no text: 1)"),
    ("another Parquet", "x.parquet", parquet(id=[1], body=["a"]), "{at} has no column 'text'; it has id, body: name"),
]

PLACES = [
    ("x.jsonl\0", "cannot be read: Embedded NUL char in path"),
    ("http://x/y.jsonl", "which cannot be opened: Unrecognized filesystem type in URI"),
    ("://x.jsonl", "which cannot be opened: Cannot parse URI"),
    ("file://host/x.jsonl", "which cannot be opened: Unsupported hostname"),
    ("hf:", "it should be hf:OWNER/NAME or hf:OWNER/NAME/CONFIG, and may end in :SPLIT"),
    ("hf:../../etc", "it should be hf:OWNER/NAME"),
    ("hf:x;touch pwned", "it should be hf:OWNER/NAME"),
    ("hf:a/$(touch pwned)", "it should be hf:OWNER/NAME"),
    ("hf:tests/bad_input", "and tests/bad_input is a folder here: name one file in it, without hf:"),
    ("a" * 5000 + ".jsonl", "cannot be read: [Errno 36] Failed stat()ing path"),
    ("tests", "articles.path is 'tests', a folder: name one file in it"),
    ("README.md/x.jsonl", "articles.path is 'README.md/x.jsonl': no such file"),
]

# A case of a row is its name, the row as bytes or a value, and the reason why it is skipped (None: it is kept).
ROWS = [
    ("not JSON", b"hello", "not JSON"),
    ("cut off", b'{"id": "x", "text": "a b', "not JSON"),
    ("not UTF-8", b'{"id": "x", "text": "\xff\xfe a b"}', "not UTF-8"),
    ("too deep", b'{"id": "x", "text": ' + b"[" * 100_000, "nested too deep"),
    ("5,000 digits", b'{"id": ' + b"9" * 5000 + b', "text": "a b"}', "not JSON"),
    ("no object", b"[1, 2]", "not a JSON object"),
    ("no text", {"id": "x"}, "no text"),
    ("a number for text", {"id": "x", "text": 5}, "no text"),
    ("a list for text", {"id": "x", "text": ["a b c"]}, "no text"),
    ("not a number for text", {"id": "x", "text": math.nan}, "no text"),
    ("empty", {"id": "x", "text": ""}, "empty"),
    ("only space", {"id": "x", "text": " \n\t "}, "empty"),
    ("short", {"id": "x", "text": "one"}, "under 2 words"),
    ("long", {"id": "x", "text": "word " * 100}, "over 50 words"),
    ("no id", {"text": "A tale of two cities."}, "no id"),
    ("null for an id", {"id": None, "text": "A tale of two cities."}, "no id"),
    ("not a number for an id", {"id": math.nan, "text": "A tale of two cities."}, "no id"),
    ("true for an id", {"id": True, "text": "A tale of two cities."}, "id of a wrong type"),
    ("a list for an id", {"id": [1], "text": "A tale of two cities."}, "id of a wrong type"),
    ("an object for an id", {"id": {"a": 1}, "text": "A tale of two cities."}, "id of a wrong type"),
    ("an id that is there", {"id": "3", "text": "A tale of two cities."}, "duplicate id"),
    ("a text that is there", {"id": "x", "text": "ARTICLE 3 tells... of thing 3!"}, "near-copy of another article"),
    ("windows' line ends", b'{"id": "x", "text": "A tale of cities."}\r', None),
    ("an id given twice", b'{"id": "x", "id": "y", "text": "A tale of cities."}', None),
    ("half a letter", {"id": "x\ud800", "text": "A tale \ud800 of cities."}, None),
    ("a NUL", {"id": "x\0", "text": "A tale\0of two cities."}, None),
    ("braces and percents", {"id": "{0.__class__}%s", "text": "{article} %s $(touch pwned) `id` {{7*7}}"}, None),
    ("a path for an id", {"id": "../../etc/passwd", "text": "A tale of two cities."}, None),
    ("a long id", {"id": "x" * 100_000, "text": "A tale of two cities."}, None),
    ("marks and escapes", {"id": "[/red]", "text": "\x1b[31m [bold] </b> | a | <script>"}, None),
]
