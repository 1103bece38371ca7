"""Finds articles of a run: an index with what the page filters by, and where each article's rows are.

The index has a line for each article that the run asked questions about, except the test articles, at which nobody
should look by chance. It is made from a few columns of the Parquet tables, in some seconds for 100,000 articles. The
texts stay in the tables: a search by text scans them (`search_articles`).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.judging import Pairs
from pipeline.evaluation.comparison import CountingSettings, verdicts_by_article
from pipeline.judging.preference import judged_value, needs_texts
from pipeline.judging.scoring.text_faults import NOTICEABLE
from pipeline.storage import parts
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.run_folder import TEST, round_number

Filter = Literal["all", "won", "lost", "tie", "gain", "loss", "cut_off", "repeated", "unread"]
FILTERS: tuple[str, ...] = get_args(Filter)
FLAGS = ("cut_off", "repeated", "unread")
VERDICTS = {"won": 1, "lost": -1, "tie": 0}
NO_VERDICT = 2  # in place of a verdict: the article was not compared
_TITLE = 160  # characters of an article that a list shows
_READERS = 4  # parts that are read at the same time; each needs memory for its columns
_VERSION = 2  # of the saved form


@dataclass(frozen=True)
class RunTables:
    """The tables of a run that the page shows, without those of the test articles.

    Attributes:
        asked: tables with the articles and their questions.
        evaluations: the evaluation of each round on held-out articles, by its number; 0 is the base.
        scores: the judged samples of each round, by its number.
        pairs: the pairs of each round, by its number.
        compared: the evaluations of models at servers, by name.
        second: the evaluations by the second judge, by the round's number.
    """

    asked: tuple[Artifact, ...] = ()
    evaluations: Mapping[int, Artifact] = field(default_factory=dict)
    scores: Mapping[int, Artifact] = field(default_factory=dict)
    pairs: Mapping[int, Artifact] = field(default_factory=dict)
    compared: Mapping[str, Artifact] = field(default_factory=dict)
    second: Mapping[int, Artifact] = field(default_factory=dict)

    @property
    def all(self) -> tuple[Artifact, ...]:
        """Every table, those with articles first."""
        by_round = (self.evaluations, self.scores, self.pairs, self.second)
        return (*self.asked, *(table for tables in by_round for table in tables.values()), *self.compared.values())

    @property
    def rounds(self) -> tuple[int, ...]:
        """The numbers of the rounds with something to look at, without the base."""
        return tuple(sorted({*self.evaluations, *self.scores} - {0}))

    @property
    def digest(self) -> str:
        """Names these builds of the tables: an index of other builds is out of date."""
        builds = sorted((table.address, table.build) for table in self.all)
        return hashlib.sha256(json.dumps([_VERSION, builds]).encode()).hexdigest()[:24]


def find_tables(ledger: Ledger, rounds: Sequence[int] | None = None) -> RunTables:
    """The finished tables of a run.

    Args:
        rounds: numbers of the rounds to look at; None: all that are there.
    """
    kinds: dict[str, dict[int, Artifact]] = {"evaluation": {}, "scores": {}, "pairs": {}, "second_scores": {}}
    asked, compared = [], {}
    for table in ledger.artifacts():
        folder, _, stage = table.address.rpartition("/")
        number = round_number(folder)
        if "parts" not in table.record or folder.split("/")[0] == TEST:
            continue
        if number is not None and rounds is not None and number not in (0, *rounds):
            continue
        if stage == "questions" and (number is not None or not folder):
            asked.append(table)
        elif number is not None and stage in kinds:
            kinds[stage][number] = table
        elif folder.startswith("compare/") and stage == "evaluation":
            compared[folder.removeprefix("compare/")] = table
    evaluations, scores, pairs, second = kinds.values()
    return RunTables(tuple(asked), evaluations, scores, pairs, compared, second)


@dataclass(frozen=True)
class ArticleIndex:
    """What the page filters articles by. All columns are aligned: index i is the same article in each.

    Attributes:
        ids: article ids, in ascending order.
        titles: the first characters of the articles.
        splits: `train` or `eval`.
        columns: by name: `verdict_R` (1: round R won against the base, 0: a tie, -1: it lost, 2: not compared),
            `value_R` and `words_R` (the judge's score of the summary of round R, 0 for the base, and its words; NaN:
            none) and, for each of `FLAGS`, `cut_off_R` and so on: whether a summary of round R has it.
        places: for each address the index of the part in the table's record, and the row in it; -1 where the table
            does not have the article.
    """

    ids: pa.Array
    titles: pa.Array
    splits: pa.Array
    columns: Mapping[str, np.ndarray]
    places: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, only: str, number: int, split: str | None = None, among: np.ndarray | None = None) -> np.ndarray:
        """The articles that pass a filter, as indices in the order in which the page lists them.

        Args:
            only: one of `FILTERS`. `gain` and `loss` have the articles with a better or worse score, and those that won
                or lost all the same. They order by the difference in score, then by the words that were saved or
                added; the other filters order by id.
            number: the round that the filter is about.
            split: keep only this split; None: all.
            among: whether each article may be in the result; None: all may.
        """
        keep = np.ones(len(self), bool) if among is None else among.copy()
        if split is not None:
            keep &= pc.equal(self.splits, split).to_numpy(zero_copy_only=False)
        gains, verdicts = self.gains(number), self.column("verdict", number)
        if only in VERDICTS:
            keep &= verdicts == VERDICTS[only]
        elif only in FLAGS:
            keep &= self.column(only, number)
        elif only in ("gain", "loss"):
            keep &= (gains > 0) | (verdicts == 1) if only == "gain" else (gains < 0) | (verdicts == -1)
        found = np.flatnonzero(keep)
        if only in ("gain", "loss"):
            saved = (self.column("words", 0) - self.column("words", number))[found]
            best_first = 1 if only == "gain" else -1
            found = found[np.lexsort((-best_first * saved, -best_first * gains[found]))]
        return found

    def gains(self, number: int) -> np.ndarray:
        """The judge's score of each summary of a round minus that of the base's; NaN where one is missing."""
        return self.column("value", number) - self.column("value", 0)

    def column(self, name: str, number: int) -> np.ndarray:
        """A column of a round. If the round has none, every article has the value for "not there"."""
        absent: dict[str, Any] = {
            "verdict": np.int8(NO_VERDICT),
            "value": np.float32("nan"),
            "words": np.float32("nan"),
        }
        if (column := self.columns.get(f"{name}_{number}")) is not None:
            return column
        return np.full(len(self), absent.get(name, False))

    def item(self, i: int, number: int) -> dict[str, Any]:
        """A line of the page's list: an article, and how the base and round `number` did on it."""

        def both(name: str) -> list[float] | None:
            values = [float(self.column(name, n)[i]) for n in (0, number)]
            return None if any(value != value for value in values) else [round(value, 4) for value in values]

        verdict = int(self.column("verdict", number)[i])
        return {
            "id": self.ids[i].as_py(),
            "title": " ".join((self.titles[i].as_py() or "").split()),
            "split": self.splits[i].as_py(),
            "verdict": None if verdict == NO_VERDICT else verdict,
            "values": both("value"),
            "words": both("words"),
            "flags": [flag for flag in FLAGS if self.column(flag, number)[i]],
        }

    def find(self, article_id: str) -> int | None:
        """The index of an article; None if it is not there."""
        i = pc.index(self.ids, article_id).as_py()
        return None if i < 0 else i

    def place(self, address: str, i: int) -> tuple[int, int] | None:
        """The part and the row in it that hold an article in a table; None if the table does not have it."""
        if address not in self.places:
            return None
        part, row = (int(values[i]) for values in self.places[address])
        return None if part < 0 else (part, row)

    # Saved form

    def to_table(self) -> pa.Table:
        """The index as a table that `from_table` reads."""
        names = {"ids": self.ids, "titles": self.titles, "splits": self.splits}
        columns = {f"column {name}": values for name, values in self.columns.items()}
        places: dict[str, np.ndarray] = {}
        for name, (part, row) in self.places.items():
            places |= {f"part {name}": part, f"row {name}": row}
        return pa.table({**names, **columns, **places})

    @classmethod
    def from_table(cls, table: pa.Table) -> "ArticleIndex":
        table = table.combine_chunks()

        def read(name: str) -> Any:
            column = table[name]
            return column.chunk(0) if column.num_chunks else pa.array([], column.type)

        named = [name.partition(" ") for name in table.column_names]
        arrays = {
            name: read(f"column {name}").to_numpy(zero_copy_only=False) for kind, _, name in named if kind == "column"
        }
        places = {
            name: (read(f"part {name}").to_numpy(), read(f"row {name}").to_numpy())
            for kind, _, name in named
            if kind == "part"
        }
        return cls(read("ids"), read("titles"), read("splits"), arrays, places)


def build_index(
    ledger: Ledger, tables: RunTables, counting: CountingSettings, on_part: Callable[[], None] = lambda: None
) -> ArticleIndex:
    """Make the index of these tables.

    Args:
        on_part: called after each part that was read.
    """
    with_articles = [*tables.asked, *tables.evaluations.values(), *tables.scores.values()]
    first: dict[str, tuple[str, str]] = {}  # split and title of each article
    ids_by_table: dict[str, list[pa.Array]] = {}
    for table in tables.all:
        chunks = ids_by_table[table.address] = []
        fields = ("article_id", "split", "article") if table in with_articles else ("article_id",)
        for rows in _read_parts(ledger, table, fields):
            ids = rows["article_id"].combine_chunks()
            chunks.append(ids)
            if table in with_articles:
                has_text = "article" in rows.column_names
                titles = (
                    pc.utf8_slice_codeunits(rows["article"], 0, _TITLE).to_pylist() if has_text else [""] * len(ids)
                )
                for article_id, split, title in zip(ids.to_pylist(), rows["split"].to_pylist(), titles, strict=True):
                    if split != "test":
                        first.setdefault(article_id, (split, title))
            on_part()
    ids = pa.array(sorted(first), pa.string())
    places = {address: _find_places(ids, chunks) for address, chunks in ids_by_table.items()}
    columns: dict[str, np.ndarray] = {}
    for number, table in tables.scores.items():
        columns |= _flag_columns(ledger, table, number, len(ids), places[table.address], None, on_part)
    base: list[dict[str, Any]] = []
    for number, table in sorted(tables.evaluations.items()):
        flags = _flag_columns(ledger, table, number, len(ids), places[table.address], 0, on_part)
        columns |= {name: values | columns[name] if name in columns else values for name, values in flags.items()}
        rows = _compared_rows(ledger, table, counting.pairs, on_part)
        scores = {row["article_id"]: row["scores"][0] for row in rows}
        columns[f"value_{number}"] = _align(ids, _values(scores), np.nan, np.float32)
        words = {article_id: score["words"] for article_id, score in scores.items()}
        columns[f"words_{number}"] = _align(ids, words, np.nan, np.float32)
        if number == 0:
            base = rows
            continue
        verdicts = verdicts_by_article(rows, base, counting.pairs, counting.rules["strict"])
        columns[f"verdict_{number}"] = _align(ids, verdicts, NO_VERDICT, np.int8)
    splits, titles = zip(*(first[article_id] for article_id in ids.to_pylist()), strict=True) if first else ((), ())
    return ArticleIndex(ids, pa.array(titles, pa.string()), pa.array(splits, pa.string()), columns, places)


def count_parts(tables: RunTables) -> int:
    """How often `build_index` will call `on_part`."""
    total = sum(len(table.record["parts"]) for table in tables.all)
    total += sum(len(table.record["parts"]) for table in tables.scores.values())
    return total + 2 * sum(len(table.record["parts"]) for table in tables.evaluations.values())


def search_words(text: str) -> list[str]:
    """What a search looks for: all words of it, in any order; a text in double quotes counts as one word."""
    words = [(quoted or plain).strip('"') for quoted, plain in re.findall(r'"([^"]+)"|(\S+)', text)]
    return [word for word in words if word]


def search_articles(ledger: Ledger, tables: RunTables, index: ArticleIndex, text: str) -> np.ndarray:
    """Whether each article of the index has all words of a text in itself, its id and the compared summaries.

    Case is ignored, and so are the limits of words: `park` is found in `parking`.
    """
    found = {}
    for word in search_words(text):
        found[word] = pc.match_substring(index.ids, word, ignore_case=True).to_numpy(zero_copy_only=False).copy()
    searched = [(table, ("article",)) for table in tables.asked]
    searched += [(table, ("summaries.text",)) for table in tables.evaluations.values()]
    if not tables.asked:
        searched += [(table, ("article",)) for table in (*tables.evaluations.values(), *tables.scores.values())]
    for table, fields in searched:
        part, row = index.places[table.address]
        for i, rows in enumerate(_read_parts(ledger, table, fields)):
            in_part = np.flatnonzero(part == i)
            for word, matches in found.items():
                matches[in_part] |= _matches(rows, word)[row[in_part]]
    return np.logical_and.reduce([np.ones(len(index), bool), *found.values()])


def _matches(rows: pa.Table, text: str) -> np.ndarray:
    """Whether each row has the text in its only column, a text or a list of structs with a text."""
    column = rows.column(0).combine_chunks()
    if not pa.types.is_list(column.type):
        return pc.match_substring(column, text, ignore_case=True).fill_null(False).to_numpy(zero_copy_only=False)
    texts = pc.struct_field(pc.list_flatten(column), "text")
    is_match = pc.match_substring(texts, text, ignore_case=True).fill_null(False).to_numpy(zero_copy_only=False)
    return np.bincount(pc.list_parent_indices(column).to_numpy(), weights=is_match, minlength=len(column)) > 0


def _read_parts(ledger: Ledger, table: Artifact, fields: Sequence[str]) -> Iterator[pa.Table]:
    """Some fields of each part, in the order of the record; a few parts are read ahead."""
    uri, names = f"{ledger.root}/{table.address}", list(table.record["parts"])
    with ThreadPoolExecutor(_READERS) as pool:
        waiting = []
        for name in names:
            waiting.append(pool.submit(parts.read_fields, uri, name, fields))
            if len(waiting) >= 2 * _READERS:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _find_places(ids: pa.Array, chunks: Sequence[pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """The part and the row of each id in a table with these ids; -1 where it does not have it."""
    sizes = [len(chunk) for chunk in chunks]
    parts_of_rows = np.repeat(np.arange(len(chunks), dtype=np.int32), sizes)
    rows_in_parts = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes] or [np.zeros(0, np.int32)])
    found = pc.index_in(pa.chunked_array(chunks, pa.string()), ids).fill_null(-1).to_numpy()
    part, row = np.full(len(ids), -1, np.int32), np.full(len(ids), -1, np.int32)
    part[found[found >= 0]], row[found[found >= 0]] = parts_of_rows[found >= 0], rows_in_parts[found >= 0]
    return part, row


def _flag_columns(
    ledger: Ledger,
    table: Artifact,
    number: int,
    articles: int,
    places: tuple[np.ndarray, np.ndarray],
    place: int | None,
    on_part: Callable[[], None],
) -> dict[str, np.ndarray]:
    """For each flag whether a summary of each article has it.

    Args:
        place: look only at the summary at this index; None: at all.
    """
    columns = {f"{flag}_{number}": np.zeros(articles, bool) for flag in FLAGS}
    part, row = places
    fields = ("summaries.finish_reason", "scores.unread", "scores.faults")
    for i, rows in enumerate(_read_parts(ledger, table, fields)):
        in_part = np.flatnonzero(part == i)
        for flag, values in _flags(rows, place).items():
            columns[f"{flag}_{number}"][in_part] = values[row[in_part]]
        on_part()
    return columns


def _flags(rows: pa.Table, place: int | None) -> dict[str, np.ndarray]:
    """For each flag whether a summary of each row has it."""
    none = np.zeros(rows.num_rows, bool)
    flags = dict.fromkeys(FLAGS, none)
    if "summaries" in rows.column_names:
        reasons = pc.equal(_inner(rows["summaries"], "finish_reason"), "length")
        flags["cut_off"] = _any_by_row(rows["summaries"], reasons, place)
    if "scores" in rows.column_names:
        flags["unread"] = _any_by_row(rows["scores"], pc.greater(_inner(rows["scores"], "unread"), 0), place)
        faults = _inner(rows["scores"], "faults")
        if faults is not None:
            is_repeated = pc.greater_equal(pc.struct_field(faults, "repeated"), NOTICEABLE["repeated"])
            flags["repeated"] = _any_by_row(rows["scores"], is_repeated, place)
    return flags


def _inner(column: pa.ChunkedArray, name: str) -> Any:
    """A field of all structs in a column of lists, one after the other; None if the structs do not have it."""
    structs = pc.list_flatten(column.combine_chunks())
    has_it = any(structs.type.field(i).name == name for i in range(structs.type.num_fields))
    return pc.struct_field(structs, name) if has_it else None


def _any_by_row(column: pa.ChunkedArray, values: Any, place: int | None) -> np.ndarray:
    """Whether any value of each row's list is true, or only the one at index `place`."""
    lists = column.combine_chunks()
    is_true = values.fill_null(False).to_numpy(zero_copy_only=False)
    parents = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    if place is not None:
        first = np.searchsorted(parents, np.arange(len(lists)))
        is_place = np.zeros(len(parents), bool)
        is_place[(first + place)[first + place < len(parents)]] = True
        is_true = is_true & is_place
    return np.bincount(parents, weights=is_true, minlength=len(lists)) > 0


def _compared_rows(
    ledger: Ledger, table: Artifact, settings: Pairs, on_part: Callable[[], None]
) -> list[dict[str, Any]]:
    """The rows of an evaluation with their first summary and score, as `verdicts_by_article` reads them.

    Texts are left out, unless the rule may look at them.
    """
    texts = ("article", "summaries.text") if needs_texts(settings) else ()
    compared = []
    for rows in _read_parts(ledger, table, ("article_id", "scores", "summaries.finish_reason", *texts)):
        articles = rows["article"].to_pylist() if texts else [""] * rows.num_rows
        scores = pc.list_element(rows["scores"], 0).to_pylist()
        summaries = pc.list_element(rows["summaries"], 0).to_pylist()
        for article_id, article, score, summary in zip(
            rows["article_id"].to_pylist(), articles, scores, summaries, strict=True
        ):
            first = {"text": "", **summary}
            compared.append({"article_id": article_id, "article": article, "scores": [score], "summaries": [first]})
        on_part()
    return compared


def _values(scores: Mapping[str, Any]) -> dict[str, float]:
    """What the judge thinks of each summary that it could read at all, by article id."""
    read = {name: score for name, score in scores.items() if not score["unread"] or score["answers"]}
    return {name: judged_value(score) for name, score in read.items()}


def _align(ids: pa.Array, values: Mapping[str, float], absent: float, dtype: Any) -> np.ndarray:
    return np.array([values.get(article_id, absent) for article_id in ids.to_pylist()], dtype)
