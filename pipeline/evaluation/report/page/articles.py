"""Reads everything about one article: the text, the questions, and every summary of every round with its score."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.config import Config
from pipeline.evaluation.report.page.index import ArticleIndex, RunTables
from pipeline.evaluation.report.page.passages import item_passages, question_passage
from pipeline.judging.scoring.text_faults import describe_faults
from pipeline.stages.summaries import BASELINES
from pipeline.storage import parts
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import Row

_PARTS_IN_MEMORY = 64
# Columns that people read. `token_ids` and `prompt_ids` are the largest columns, and stay on disk.
_FIELDS = (
    *("article_id", "article", "split", "questions", "scores", "pairs", "base_writer", "writer"),
    *("second_questions", "second_scores"),
    *("summaries.text", "summaries.finish_reason", "summaries.writer", "summaries.thought"),
)


class ArticleReader:
    """Reads articles by their place in an index. The parts that it read last stay in memory."""

    def __init__(self, config: Config, ledger: Ledger, tables: RunTables, index: ArticleIndex):
        self.config, self.ledger, self.tables, self.index = config, ledger, tables, index
        self._parts: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def read(self, i: int) -> dict[str, Any]:
        """Everything about the article at index `i`, as a JSON value.

        Returns:
            `writers` are the summaries that were compared: of the base, of each round, of baselines and models at
            servers. `samples` are the summaries that each round sampled to make pairs from, with the pairs. `verdicts`
            has, by round, the verdict against the base (1, 0, -1), and the judge's scores and the words of both.
            `passages` are what the items of scores are about, if the judge scores passages.
        """
        rows = list(self._rows(i))
        first = next(row for row, _ in rows if row.get("article") is not None)
        questions: list[Row] = next((row["questions"] for row, _ in rows if row.get("questions")), [])
        second: list[Row] = next((row["second_questions"] for row, _ in rows if row.get("second_questions")), [])
        return {
            "id": first["article_id"],
            "split": first["split"],
            "article": first["article"],
            "questions": [_question(question) for question in questions],
            "second_questions": [_question(question) for question in second],
            "passages": list(item_passages(self.config.judge, first["article"])),
            "verdicts": {str(number): self._verdict(i, number) for number in self.tables.rounds},
            "writers": list(self._writers(i)),
            "samples": [sample for number in self.tables.rounds if (sample := self._samples(i, number))],
        }

    def _rows(self, i: int) -> Iterator[tuple[Row, Artifact]]:
        """The article's row in each table that has it."""
        for table in self.tables.all:
            if (row := self._row(table, i)) is not None:
                yield row, table

    def _row(self, table: Artifact | None, i: int) -> Row | None:
        if table is None or (place := self.index.place(table.address, i)) is None:
            return None
        part, row = place
        return self._part(table, part).slice(row, 1).to_pylist()[0]

    def _part(self, table: Artifact, part: int) -> pa.Table:
        key = table.build, part
        if key not in self._parts:
            uri = f"{self.ledger.root}/{table.address}"
            self._parts[key] = parts.read_fields(uri, table.record["parts"][part], _FIELDS)
        self._parts.move_to_end(key)
        while len(self._parts) > _PARTS_IN_MEMORY:
            self._parts.popitem(last=False)
        return self._parts[key]

    def _verdict(self, i: int, number: int) -> dict[str, Any]:
        item = self.index.item(i, number)
        return {name: item[name] for name in ("verdict", "values", "words", "flags")}

    def _writers(self, i: int) -> Iterator[dict[str, Any]]:
        """The base and each round, then the baselines and the models at servers."""
        baselines = []
        for number, table in sorted(self.tables.evaluations.items()):
            row = self._row(table, i)
            if row is None:
                continue
            second = self._row(self.tables.second.get(number), i) or {}
            policy, *others = _summaries(row, second.get("second_scores"))
            yield {"name": f"round {number}" if number else "base", "round": number, **policy}
            # The evaluation of a round may hold the base's summary too, for a judge that compares.
            if number == 0:
                baselines = [
                    {"name": name, "round": None, **each} for name, each in zip(BASELINES, others, strict=False)
                ]
        yield from baselines
        for name, table in self.tables.compared.items():
            if (row := self._row(table, i)) is not None:
                yield {"name": name, "round": None, **_summaries(row)[0]}

    def _samples(self, i: int, number: int) -> dict[str, Any] | None:
        """The samples of a round, with the pairs that were made of them. A table of pairs may hold the base's too."""
        row = self._row(self.tables.pairs.get(number), i)
        pairs = row["pairs"] if row else []
        row = row or self._row(self.tables.scores.get(number), i)
        if row is None:
            return None
        return {
            "round": number,
            "summaries": _summaries(row),
            "pairs": [{name: pair.get(name) for name in ("chosen", "rejected", "reason", "weight")} for pair in pairs],
        }


def _question(question: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": question["question"],
        "options": question["options"],
        "answer": question["answer"],
        "asker": question.get("judge"),
        "passage": question_passage(question),
    }


def _summaries(row: Row, second_scores: Sequence[Row] | None = None) -> list[dict[str, Any]]:
    """The summaries of a row with their scores."""
    absent: list[Row | None] = [None] * len(row["summaries"])
    scores, seconds = row.get("scores") or absent, second_scores or absent
    return [
        {
            "text": summary["text"],
            "thought": summary.get("thought"),
            "by": summary.get("writer"),
            "cut_off": summary["finish_reason"] == "length",
            "score": score and _score(score),
            "second": second and _score(second),
        }
        for summary, score, second in zip(row["summaries"], scores, seconds, strict=True)
    ]


def _score(score: Row) -> dict[str, Any]:
    return {
        "answers": score["answers"],
        "correct": score["correct"],
        "unread": score["unread"],
        "words": score["words"],
        "value": score.get("value"),
        "items": score.get("items") or [],
        "faults": describe_faults(score.get("faults")),
    }
