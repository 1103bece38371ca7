"""Holds examples as an Arrow table, in memory or in a mapped file, and makes an `Example` whenever one is read.

A mapped file is not memory of the process: the kernel reads a page when it is needed, and drops it when memory is
short. The process itself holds the number of each article's row, which takes 4 bytes. `dataset.py` writes such a file,
and `node_file.py` shares it among the workers of a node.
"""

import hashlib
import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.training.batches.article_tree import Ids
from pipeline.training.batches.example import Example

_IDS = pa.list_(pa.int32())
_FIELDS = {  # of `Example`
    "article_id": pa.string(),
    "prompt_ids": _IDS,
    "completions": pa.list_(_IDS),
    "pairs": pa.list_(pa.list_(pa.int32(), 2)),
    "reference_logps": pa.list_(pa.float64()),
    "sampled_logps": pa.list_(pa.float64()),
    "weights": pa.list_(pa.float64()),
    "unscored": pa.list_(pa.list_(pa.int32(), 2)),
    "reference_shared_logps": pa.list_(pa.list_(pa.float64(), 2)),
}
_SMALL_FIELDS = tuple(name for name in _FIELDS if name not in ("prompt_ids", "completions"))
# Properties of `Example`, stored so that a training can be planned without reading the token ids.
_PLANNED = {"weight": pa.float64(), "longest": pa.int32()}
_SCHEMA = pa.schema(_FIELDS | _PLANNED)
# Of a record batch in a file, about. Its examples are in memory while it is written, each with a few Python objects.
_BATCH_TOKENS, _BATCH_ROWS = 1_000_000, 4000
# Reads after which the pages that were read leave this process, so that its RSS stays small as well. One read brings
# 64 KiB of each column in. Pages stay in the kernel's cache, from which they come back fast.
_READS_BEFORE_RELEASE = 64


class ExampleTable(Sequence[Example]):
    """Examples in order of article_id, or some of them in another order. Several tables can share the same rows.

    Attributes:
        stored: the rows.
        rows: (examples,) int32, the number of each example's row.
    """

    def __init__(self, stored: "_StoredRows", rows: np.ndarray):
        self.stored, self.rows = stored, rows

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "ExampleTable":
        """A table in memory."""
        return cls._sorted(_StoredRows([_to_batch(examples)]))

    @classmethod
    def map_file(cls, path: Path) -> "ExampleTable":
        """The table in a file that `write_file` wrote. The file may be removed afterwards: its contents stay readable.

        Raises:
            OSError: the file cannot be read.
            pa.ArrowInvalid: it is not such a file.
        """
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        pages.madvise(mmap.MADV_RANDOM)  # no reading ahead: neighbours in the file are not neighbours in a step
        reader = pa.ipc.open_file(pa.py_buffer(pages))
        return cls._sorted(_StoredRows([reader.get_batch(n) for n in range(reader.num_record_batches)], pages))

    @classmethod
    def _sorted(cls, stored: "_StoredRows") -> "ExampleTable":
        order = pc.sort_indices(pa.chunked_array(stored.columns["article_id"], pa.string()))
        rows = order.to_numpy().astype(np.int32)
        del order
        pa.default_memory_pool().release_unused()
        stored.release_pages()
        return cls(stored, rows)

    def select(self, places: np.ndarray) -> "ExampleTable":
        """A table of the examples at these places, in this order."""
        return ExampleTable(self.stored, self.rows[places])

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> "ExampleTable": ...

    def __getitem__(self, place: int | slice) -> "Example | ExampleTable":
        if isinstance(place, slice):
            return ExampleTable(self.stored, self.rows[place])
        return self.stored.read(int(self.rows[place]))

    def map_ids(self, function: Callable[[str], int]) -> np.ndarray:
        """(examples,) uint64: what a function gives for each article_id."""
        ids = (name for column in self.stored.columns["article_id"] for name in column.to_pylist())
        values = np.fromiter(map(function, ids), np.uint64, self.stored.count)
        self.stored.release_pages()
        return values[self.rows]

    def sort_by(self, key: Callable[[str], int]) -> "ExampleTable":
        """The examples sorted by a number that a function gives for each article_id. Equal ones keep their order."""
        return self.select(np.argsort(self.map_ids(key), kind="stable"))

    @property
    def weights(self) -> np.ndarray:
        """(examples,) float64, `Example.weight`."""
        return self.stored.values("weight")[self.rows]

    @property
    def longest(self) -> int:
        """The largest `Example.longest`."""
        return int(self.stored.values("longest")[self.rows].max())

    @property
    def has_reference(self) -> bool:
        """Whether each example has reference log-probabilities."""
        counts = np.concatenate([pc.list_value_length(c).to_numpy() for c in self.stored.columns["reference_logps"]])
        return bool(counts[self.rows].all())


class _StoredRows:
    """Rows of examples in record batches, numbered through. If they are mapped, `pages` is the file's mapping."""

    def __init__(self, batches: Sequence[pa.RecordBatch], pages: mmap.mmap | None = None):
        self.columns = {name: [batch.column(name) for batch in batches] for name in _SCHEMA.names}
        self.prompts = [IdLists(column) for column in self.columns["prompt_ids"]]
        self.completions = [IdLists(column.values) for column in self.columns["completions"]]
        self.completions_of = [column.offsets.to_numpy() for column in self.columns["completions"]]
        self.starts = list(accumulate(map(len, batches), initial=0))  # number of the first row of each batch
        self.pages, self.reads = pages, 0

    @property
    def count(self) -> int:
        return self.starts[-1]

    def values(self, name: str) -> np.ndarray:
        """(rows,) the values of a column of numbers."""
        values = np.concatenate([column.to_numpy() for column in self.columns[name]])
        self.release_pages()
        return values

    def read(self, row: int) -> Example:
        """Make the example of a row. Its token ids stay where they are stored."""
        batch = bisect_right(self.starts, row) - 1
        row -= self.starts[batch]
        first, last = self.completions_of[batch][row : row + 2]
        self.reads += 1
        if self.reads % _READS_BEFORE_RELEASE == 0:
            self.release_pages()
        return Example(
            prompt_ids=self.prompts[batch][row],
            completions=tuple(self.completions[batch][number] for number in range(first, last)),
            **{name: _as_tuples(self.columns[name][batch][row].as_py()) for name in _SMALL_FIELDS},
        )

    def release_pages(self) -> None:
        """Let the pages of a mapped file leave this process."""
        if self.pages is not None:
            self.pages.madvise(mmap.MADV_DONTNEED)


class IdLists:
    """Reads lists of token ids as arrays, faster than Arrow's scalars do."""

    def __init__(self, lists: pa.ListArray):
        self.offsets, self.ids = lists.offsets.to_numpy(), lists.values.to_numpy()

    def __getitem__(self, number: int) -> np.ndarray:
        return self.ids[self.offsets[number] : self.offsets[number + 1]]


def stable_hash(*parts: object) -> int:
    """A number in [0, 2**64) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode()).digest()[:8], "big")


def write_file(examples: Iterable[Example], path: Path) -> None:
    """Write examples to a file that can be mapped, one batch of them in memory at a time.

    Raises:
        OSError: the file cannot be written.
    """
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        for batch in _batches(examples):
            writer.write_batch(_to_batch(batch))


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    tokens = 0
    for example in examples:
        batch.append(example)
        tokens += example.tokens
        if tokens >= _BATCH_TOKENS or len(batch) == _BATCH_ROWS:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def _to_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    completions = _token_lists([ids for example in examples for ids in example.completions])
    columns = {
        "prompt_ids": _token_lists([example.prompt_ids for example in examples]),
        "completions": pa.ListArray.from_arrays(_offsets([e.completions for e in examples]), completions),
    }
    for field in _SCHEMA:
        if field.name not in columns:
            columns[field.name] = pa.array([getattr(example, field.name) for example in examples], field.type)
    return pa.record_batch([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)


def _token_lists(lists: Sequence[Ids]) -> pa.ListArray:
    ids = np.concatenate([np.asarray(ids, np.int32) for ids in lists]) if lists else np.zeros(0, np.int32)
    return pa.ListArray.from_arrays(_offsets(lists), pa.array(ids))


def _offsets(lists: Sequence[Sequence[Any] | np.ndarray]) -> pa.Array:
    return pa.array(np.cumsum([0, *map(len, lists)]), pa.int32())


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
