"""Tests of `rondo benchmark` with lm-evaluation-harness, its two local tasks and the newsroom's models."""

import json
from pathlib import Path

import pytest
import torch

from jobs.benchmark import run_benchmark
from pipeline.config import UserError
from pipeline.data.pair_tokenizer import load_pair_tokenizer
from pipeline.storage.ledger import Ledger
from pipeline.training.modeling.loading import load_model
from tests.helpers.paths import JUDGE_MODEL, POLICY_MODEL, ROOT

pytest.importorskip("lm_eval", reason="the extra `benchmark` is not installed")
MODELS = [str(POLICY_MODEL), str(JUDGE_MODEL)]
ARTICLES = str(ROOT / "newsroom" / "articles.jsonl")
LOCAL = ["rondo_perplexity", "rondo_questions"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of both local tasks on the newsroom's two models."""
    out = tmp_path_factory.mktemp("benchmark")
    run_benchmark(MODELS, LOCAL, limit=4, articles=ARTICLES, out=str(out))
    return str(out)


def test_the_local_tasks_run_without_network(folder):
    artifacts = Ledger(folder).artifacts()
    assert len(artifacts) == 4
    for artifact in artifacts:
        record = artifact.record
        assert record["documents"] == 4 and record["cut"] == 0 and record["task_version"] == "1.0"
        assert record["recipe"]["settings"]["limit"] == 4
    figures = {artifact.address.rsplit("/", 1)[1]: list(artifact.record["metrics"]) for artifact in artifacts}
    assert figures == {"rondo_perplexity": ["byte_perplexity"], "rondo_questions": ["acc"]}


def test_perplexity_is_that_of_one_forward_pass(folder):
    """The log-likelihood of a whole article after the beginning-of-sequence token, and the article's bytes."""
    model = load_model(POLICY_MODEL, "float32", article_tree=False)
    tokenizer = load_pair_tokenizer(str(POLICY_MODEL)).tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def log_likelihood(text):
        ids = torch.tensor([[start, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logps = model(ids[:, :-1]).logits.log_softmax(-1)
        return logps.gather(2, ids[:, 1:, None]).sum().item()

    ledger = Ledger(folder)
    artifact = next(a for a in ledger.artifacts() if a.address.endswith("policy/rondo_perplexity"))
    lines = ledger.read(f"{artifact.address}/documents.jsonl").splitlines()
    measured = [json.loads(line)["values"]["byte_perplexity"] for line in lines]
    texts = [json.loads(line)["text"] for line in Path(ARTICLES).read_text().splitlines()]
    for log_likelihood_of_document, size in measured:
        of_this_size = [text for text in texts if len(text.encode()) == size]
        assert any(log_likelihood(text) == pytest.approx(log_likelihood_of_document, rel=1e-4) for text in of_this_size)


def test_a_finished_task_is_not_run_again(folder, monkeypatch, capsys):
    from pipeline.evaluation.benchmark import harness

    monkeypatch.setattr(harness, "BenchmarkModel", None)  # no model is loaded
    run_benchmark(MODELS, LOCAL, limit=4, articles=ARTICLES, out=folder)
    assert capsys.readouterr().out.count("made before") == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rondo_perplexty", "which lm-evaluation-harness .* does not have: did you mean rondo_perplexity"),
        ("arc_easyy", "did you mean .*arc_easy"),
    ],
)
def test_unknown_tasks_are_refused_with_close_names(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run_benchmark(MODELS, [name], articles=ARTICLES, out=str(tmp_path))
