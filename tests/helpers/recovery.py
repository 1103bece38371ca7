"""A round of scripted stages that break where a test asks for it, and what must be true once the round is finished."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ray.data import Dataset

from judges.base import Prompt, Skip, user
from pipeline.config import Config, UserError
from pipeline.config.hardware import EngineHardware
from pipeline.execution.progress import Display
from pipeline.execution.runner import Runner
from pipeline.inference.actors.residents import ResidentPools
from pipeline.inference.base import EngineStep
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.stages.base import Stage, stage
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.schema import COLUMNS, map_rows
from tests.helpers.tables import read_rows

HARDWARE = EngineHardware(cpus_per_replica=0.5, batch_size=4)
SUMMARIES, REFERENCES = ("writer", "summaries"), ("reference_digest",)  # columns that these stages write
# 40 articles: every fourth is held out, one is empty.
TRAIN = {f"a{i}" for i in range(40) if i % 4 != 3 and i != 7}


def settings(run: object, **more: Any) -> Config:
    return Config.model_validate(
        {
            "run": str(run),
            "articles": {"path": "articles.jsonl"},
            "policy": {"model": "none"},
            "judge": {"kind": "cloze"},
            **more,
        }
    )


@stage("articles", version=1, writes=("article_id", "article", "split"))
def corpus():
    for start in range(0, 40, 10):
        numbers = range(start, start + 10)
        values = {
            "article_id": [f"a{i}" for i in numbers],
            "article": [f"text {i}" for i in numbers],
            "split": ["eval" if i % 4 == 3 else "train" for i in numbers],
            "skipped": ["empty" if i == 7 else None for i in numbers],
        }
        yield pa.table({name: pa.array(column, COLUMNS[name]) for name, column in values.items()})


def script(prompt, sample):
    if prompt.messages[0]["content"] == "text 5":
        raise ValueError("prompt too long")
    return f"about {prompt.messages[0]['content']}"


class Work:
    """The stages of a round. Each logs the ids of the rows that it computes to a file in `folder`.

    A stage raises `error` once it has logged more rows than the file `break-NAME` says, if there is such a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.error = Path(folder), UserError
        self.residents = ResidentPools()
        stages = {
            "summaries": (lambda rows: self.pool(rows, self.write, SUMMARIES), SUMMARIES, ("train",)),
            "scores": (lambda rows: self.pool(rows, self.score, ("second_scores",)), ("second_scores",), ()),
            "pairs": (lambda rows: map_rows(rows, self.pair, ("pairs",)), ("pairs",), ()),
            "references": (lambda rows: self.pool(rows, self.refer, REFERENCES), REFERENCES, ()),
        }
        self.stages = [
            Stage(name, function, version=1, writes=writes, splits=splits)
            for name, (function, writes, splits) in stages.items()
        ]

    def pool(self, rows: Dataset, step: EngineStep, writes: Sequence[str]) -> Dataset:
        return EnginePool(lambda: ScriptedEngine(script), HARDWARE, residents=self.residents).map(rows, step, writes)

    def log_rows(self, name: str, rows: list[dict]) -> None:
        log, limit = self.folder / f"{name}.log", self.folder / f"break-{name}"
        with log.open("a") as file:
            file.write("".join(row["article_id"] + "\n" for row in rows))
        if limit.exists() and len(log.read_text().split()) > int(limit.read_text()):
            raise self.error(f"{name} breaks here")

    def computed(self, name: str) -> list[str]:
        """Article ids that a stage has computed, in order; an id twice if the stage has computed it twice."""
        log = self.folder / f"{name}.log"
        return log.read_text().split() if log.exists() else []

    def write(self, engine, rows):
        self.log_rows("summaries", rows)
        replies = engine.generate([Prompt(user(row["article"]), 50) for row in rows])
        return [
            Skip(reply.error)
            if reply.error
            else {"writer": "w", "summaries": [vars(s) for s in reply.samples], "tally": {"tokens_out": 3}}
            for reply in replies
        ]

    def score(self, engine, rows):
        self.log_rows("scores", rows)
        return [{"second_scores": [], "tally": {"judged": 1}} for _ in rows]

    def pair(self, row):
        self.log_rows("pairs", [row])
        return Skip("all ties") if row["article_id"] in ("a0", "a1") else {"pairs": []}

    def refer(self, engine, rows):
        self.log_rows("references", rows)
        return [{"reference_digest": "d"} for _ in rows]


def run_stages(config: Config, work: Work) -> tuple[Artifact, ...]:
    """Produce the articles and the chain of stages; gives their tables."""
    with Runner(config, Ledger(config.run), Display()) as run:
        work.residents = run.residents
        articles = run.produce(corpus)
        first, *others = work.stages
        return articles, *run.produce_chain((first, articles), *((stage,) for stage in others), into="round-01")


def break_once(config: Config, work: Work, stage: str, after: int) -> None:
    """Run stages until one breaks, after it has computed so many rows; the next `run_stages` goes through."""
    switch = work.folder / f"break-{stage}"
    switch.write_text(str(after))
    with pytest.raises(UserError, match=f"{stage} breaks here"):
        run_stages(config, work)
    switch.unlink()


def check_counts(tables: Sequence[Artifact]) -> None:
    """Check the records of a finished round."""
    articles, summaries, scores, pairs, references = tables
    assert (articles.record["in"], articles.record["kept"], articles.record["skipped"]) == (40, 39, {"empty": 1})
    assert (summaries.record["in"], summaries.record["skipped"]) == (30, {"prompt too long": 1})
    assert summaries.record["tally"]["tokens_out"] == 87
    assert scores.record["tally"]["judged"] == scores.record["kept"] == 29
    assert (pairs.record["in"], pairs.record["kept"], pairs.record["skipped"]) == (29, 27, {"all ties": 2})
    assert references.record["in"] == references.record["kept"] == 27


def check(folder: Path, tables: Sequence[Artifact]) -> None:
    """Check the records and the files of a finished round: every article once, no file that no record names."""
    check_counts(tables)
    for table in tables:
        kept = [row["article_id"] for row in read_rows(folder / table.address)]
        assert len(kept) == len(set(kept)) == table.record["kept"]
        assert len(read_rows(folder / table.address / "skipped")) == sum(table.record["skipped"].values())
        assert sorted(table.record["parts"]) == sorted(p.name for p in (folder / table.address).glob("*.parquet"))
        assert not list((folder / table.address).rglob("*.tmp"))
    assert {row["article_id"] for row in read_rows(folder / "round-01/summaries")} == TRAIN - {"a5"}
