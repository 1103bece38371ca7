"""Runs rounds with the real control flow and ledger, where a script decides the results of every stage."""

import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.config.loader import apply_overrides, parse_config
from pipeline.execution.dry_run import DryRun
from pipeline.stages.articles import NoNewArticles
from pipeline.stages.base import Stage
from pipeline.storage.ledger import Artifact, Ledger
from tests.helpers.tables import as_table, write_table

ARTICLES = 100
TRAINING = {"steps": 1, "warnings": [], "passport": {"dtype": "float32", "attention": "sdpa"}}
TRAINING |= dict.fromkeys(("step0_loss", "final_loss", "final_kl", "chosen_fell", "eval_accuracy_last"), 0.5)
TRAINING |= {"eval_pairs": 1, "best_step": 1, "stopped_early": False}


def settings(run: Path, skills: Sequence[int], *overrides: str) -> Config:
    """The configuration of a run with a round for each skill after the first, which is the base policy's."""
    whole = {
        "run": str(run),
        "rounds": len(skills) - 1,
        "articles": {"path": "a.jsonl"},
        "policy": {"model": "m"},
        "judge": {"kind": "cloze"},
    }
    return parse_config(apply_overrides(whole, overrides))


class ScriptedRounds(DryRun):
    """Makes every artifact from a script.

    Args:
        skills: on how many of 100 held-out articles the policy of each round answers right, from round 0 on.
        yields: how many of 100 articles give a pair in each round, from round 1 on; 60 if left out.
        words: how many words a held-out summary has in each round, from round 0 on; 20 if left out.
        dry: rounds for which the corpus has no new article.
        drift: log-ratios of policy and base per summary, from round 2 on.
        remake: as in `DryRun`.
        faults: faults of every held-out summary in each round, from round 0 on; unknown if left out.
        unusable: in the tally of each table `pairs`, why summaries could not be paired.
        test_skills: as `skills`, on the test articles; the same if left out.

    Attributes:
        made: addresses of the artifacts made so far, each with the addresses of its inputs.
    """

    def __init__(
        self,
        config: Config,
        ledger: Ledger,
        skills: Sequence[int],
        yields: Sequence[int] = (),
        words: Sequence[int] = (),
        dry: Container[int] = (),
        drift: Sequence[float] = (),
        remake: str | None = None,
        faults: Sequence[dict[str, Any]] = (),
        unusable: Mapping[str, int] | None = None,
        test_skills: Sequence[int] | None = None,
    ) -> None:
        super().__init__(config, ledger, remake)
        self.faults, self.unusable = faults, unusable or {}
        self.test_skills = skills if test_skills is None else test_skills
        self.skills, self.yields, self.words, self.dry, self.drift = skills, yields, words, dry, drift
        self.made: dict[str, tuple[str, ...]] = {}

    def make(self, stage: Stage, inputs: Sequence[Artifact], address: str) -> Artifact:
        folder, is_test = address.removeprefix("test/"), address.startswith("test/")
        number = int(folder[6:8]) if folder.startswith("round-") else 0
        if stage.name == "articles" and number in self.dry:
            raise NoNewArticles("a.jsonl has no new article to train on")
        match stage.name:
            case "policy":
                result = {"model": f"models/{number}", "digest": f"d{number}", "training": TRAINING}
            case "evaluation":
                result = self.write(address, list(self.heldout_rows(number, is_test)))
            case "second_scores":
                asked = {"second_questions": [{"question": "Which?", "options": ["a", "b"], "answer": 0}]}
                rows = self.heldout_rows(number, is_test)
                result = self.write(address, [row | asked | {"second_scores": row["scores"]} for row in rows])
            case "drift":
                result = self.write(address, [drift_row(ratio) for ratio in self.drift[number - 2 : number - 1]])
            case "pairs":
                result = self.count(100, self.yields[number - 1] if self.yields else 60)
                result["tally"] |= self.unusable
            case _:
                result = self.count(100, 100)
        self.made[address] = tuple(artifact.address for artifact in inputs)
        record = {"build": uuid.uuid4().hex[:12], "recipe": self.recipe(stage, inputs), "seconds": 1.0, **result}
        return self.ledger.finish(address, record)

    def count(self, rows: int, kept: int) -> dict[str, Any]:
        skipped = {"all ties": rows - kept} if kept < rows else {}
        return {"in": rows, "kept": kept, "skipped": skipped, "tally": {"pairs": kept, "train": kept}, "parts": []}

    def heldout_rows(self, number: int, is_test: bool = False) -> Iterator[dict[str, Any]]:
        writer = self.ledger.find(f"round-{number:02d}/policy").build
        texts = 1 if number else 3  # the base's rows hold two baselines too
        words = self.words[number] if self.words else 20
        skill = (self.test_skills if is_test else self.skills)[number]
        for i in range(ARTICLES):
            score = {"answers": ["A"] * 4, "correct": int(i < skill), "unread": 0}
            score |= {"faults": self.faults[number]} if self.faults else {}
            yield {
                "article_id": f"{'t' if is_test else 'a'}{i:03d}",
                "article": "Some text.",
                "split": "test" if is_test else "eval",
                "questions": [],
                "writer": writer,
                "summaries": [{"text": f"by {number}", "token_ids": [1], "finish_reason": "stop"}] * texts,
                "scores": [score | {"words": words, "invalid_chars": 0}] * texts,
                "skipped": None,
            }

    def write(self, address: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return write_table([as_table(rows)], f"{self.ledger.root}/{address}")


def drift_row(ratio: float) -> dict[str, Any]:
    return {
        "article_id": "a",
        "split": "train",
        "summaries": [{"text": "", "token_ids": [1, 2], "finish_reason": "stop"}],
        "policy_logps": [ratio - 9.0],
        "base_logps": [-9.0],
        "skipped": None,
    }
