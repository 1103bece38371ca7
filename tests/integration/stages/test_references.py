"""References: the trainer's own numbers, by digest, as rows stream by; or the sampler's; or none."""

import shutil
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from judges.base import LETTERS
from pipeline.config.hardware import EngineHardware, TrainerHardware
from pipeline.config.judging import JudgeSettings, Pairs
from pipeline.config.training import References
from pipeline.inference.pool import EnginePool
from pipeline.inference.scripted import ScriptedEngine
from pipeline.stages.pairs import make_pairs
from pipeline.stages.references import load_reference, reference_logprobs
from pipeline.stages.scores import score_samples
from pipeline.storage.schema import to_dataset
from pipeline.training.modeling import loading
from pipeline.training.modeling.logprobs import plain_logps
from tests.helpers.tiny_models import save_tiny_model

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("reference")))


def scorer(model_path: str, digest: str | None = None, **hardware) -> EnginePool:
    digest = digest or loading.weights_digest(model_path)
    return EnginePool(
        partial(load_reference, model_path, "float32", digest, TrainerHardware()), EngineHardware(**hardware), at_once=1
    )


def articles(count: int) -> list[dict]:
    """Of four summaries, the third is in no pair."""
    return [
        {
            "article_id": f"a{i}",
            "article": "",
            "split": "train",
            "prompt_ids": list(range(1, 5 + i)),
            "summaries": [
                {"text": "", "token_ids": [10 + j, 20 + i, 0], "finish_reason": "stop", "logp": -float(j + 1)}
                for j in range(4)
            ],
            "pairs": [{"chosen": 0, "rejected": 1, "reason": ""}, {"chosen": 3, "rejected": 1, "reason": ""}],
        }
        for i in range(count)
    ]


def anchored(rows: list[dict], pool: EnginePool, source: str) -> list[dict]:
    found = reference_logprobs(
        to_dataset(rows), "the digest", dtype="float32", references=References(source=source), reference_scorer=pool,
        trainer=TrainerHardware(tokens_per_batch=30),
    )  # fmt: skip
    return sorted(found.take_all(), key=lambda row: row["article_id"])


def test_the_trainers_own_numbers_for_what_is_paired(model_path: str) -> None:
    rows = articles(3)
    found = anchored(rows, scorer(model_path), "trainer")
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    for before, after in zip(rows, found, strict=True):
        with torch.no_grad():
            expected = plain_logps(model, before["prompt_ids"], [s["token_ids"] for s in before["summaries"]])
        assert after["reference_logps"][2] is None and after["reference_digest"] == "the digest"
        for j in (0, 1, 3):
            assert after["reference_logps"][j] == pytest.approx(float(expected[j]), abs=1e-4)


def test_the_samplers_numbers_and_none_start_no_model() -> None:
    pool = scorer("/nowhere", "unused")
    for row in anchored(articles(2), pool, "sampler"):
        assert list(row["reference_logps"]) == [-1.0, -2.0, -3.0, -4.0] and row["reference_digest"] == "the digest"
    for row in anchored(articles(2), pool, "none"):
        assert row["reference_logps"] is None and row["reference_digest"] is None


def test_a_flipped_weight_is_not_the_reference(model_path: str, tmp_path: Path) -> None:
    shutil.copytree(model_path, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    name = sorted(tensors)[3]
    tensors[name].view(-1)[7] *= -1
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds weights .* and its record says"):
        load_reference(str(tmp_path / "model"), "float32", loading.weights_digest(model_path), TrainerHardware())


def test_references_overlap_the_judging(model_path: str, tmp_path: Path) -> None:
    """One pipeline from summaries to references: the last article is judged only when the first is scored."""
    count, seen, late = 12, tmp_path / "seen", tmp_path / "late"

    def waits_for_the_first(prompt, sample=0):
        if "last" in prompt.messages[0]["content"]:
            deadline = time.monotonic() + 200
            while not seen.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            if not seen.exists():
                late.touch()
        return f"Q1 {LETTERS[0] if 'good' in prompt.messages[0]['content'] else 'Unsure'}"

    question = {"question_id": "q", "question": "What?", "options": ["x", "y"], "answer": 0}
    rows = articles(count)
    for row in rows:
        del row["pairs"]
        row["questions"] = [question]
        which = "last" if row is rows[-1] else "word"
        row["summaries"] = [row["summaries"][0] | {"text": f"{word} {which}"} for word in ("good", "bad")]
    one_at_a_time = EngineHardware(batch_size=1, cpus_per_replica=0.5)
    scored = score_samples(
        to_dataset(rows).repartition(count), judge=JudgeSettings(model="none", questions=1, options=2), seed=0,
        judge_engine=EnginePool(lambda: ScriptedEngine(waits_for_the_first), one_at_a_time, at_once=1),
    )  # fmt: skip
    paired = make_pairs(scored, pairs=Pairs(threshold=1, min_words=1), seed=0)
    stream = iter(reference_logprobs(
        paired, "digest", dtype="float32", references=References(), trainer=TrainerHardware(),
        reference_scorer=scorer(model_path, batch_size=1, cpus_per_replica=0.5),
    ).iter_rows())  # fmt: skip

    assert next(stream)["reference_logps"] is not None
    seen.touch()
    assert len(list(stream)) == count - 1
    assert not late.exists(), "the first came only when all were judged"
