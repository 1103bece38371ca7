"""KL to the base: the base scores what was sampled, and the mean difference is what it should be."""

from functools import partial

import pytest
import torch

from pipeline.config import UserError
from pipeline.config.hardware import EngineHardware, TrainerHardware
from pipeline.evaluation.stopping.kl import estimate_kl
from pipeline.inference.pool import EnginePool
from pipeline.stages.drift import drift_from_base, is_compared
from pipeline.stages.references import load_reference
from pipeline.storage.schema import to_dataset
from pipeline.training.modeling import loading
from pipeline.training.modeling.logprobs import plain_logps
from tests.helpers.tiny_models import save_tiny_model

VOCABULARY, PROMPT = 11, [1, 2, 3]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a base and of a policy that went away from it."""
    sizes = {"vocab_size": VOCABULARY, "initializer_range": 0.3}
    return [str(save_tiny_model(tmp_path_factory.mktemp("model"), seed=seed, **sizes)) for seed in (0, 1)]


@torch.no_grad()
def test_both_score_one_article_in_16_and_the_mean_is_the_kl(ray_cluster, models):
    """Summaries of one token, of which the KL is a sum over the vocabulary."""
    base, policy = (loading.load_model(folder, "float32", article_tree=False) for folder in models)
    last = torch.tensor([PROMPT])
    p, q = (model(input_ids=last).logits[0, -1].log_softmax(-1) for model in (policy, base))
    exact = float((p.exp() * (p - q)).sum())
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(1600):
        tokens = torch.multinomial(p.exp(), 4, replacement=True, generator=draw).tolist()
        summaries = [{"text": "", "token_ids": [t], "finish_reason": "stop", "logp": None} for t in tokens]
        rows.append({"article_id": f"a{i}", "article": "", "split": "train", "writer": "w", "prompt_ids": PROMPT})
        rows[-1]["summaries"] = summaries
    by_policy, by_base = (
        EnginePool(
            partial(load_reference, model, "float32", loading.weights_digest(model), TrainerHardware()),
            EngineHardware(),
            at_once=1,
        )
        for model in reversed(models)
    )
    found = drift_from_base(
        to_dataset(rows),
        "policy",
        "base",
        dtype="float32",
        policy_scorer=by_policy,
        base_scorer=by_base,
        trainer=TrainerHardware(),
    ).take_all()
    assert {row["article_id"] for row in found} == {f"a{i}" for i in range(1600) if is_compared(f"a{i}")}
    for row in found[:5]:
        tokens = [list(summary["token_ids"]) for summary in row["summaries"]]
        for column, model in (("policy_logps", policy), ("base_logps", base)):
            assert row[column] == pytest.approx(plain_logps(model, PROMPT, tokens).tolist(), abs=1e-4)
    drift = estimate_kl(found)
    assert drift.articles == len(found) > 60
    assert abs(drift.per_summary - exact) < 4 * drift.per_summary_error < exact
    assert drift.per_token == pytest.approx(drift.per_summary), "of one token each"


class Refusing:
    def __getattr__(self, name):
        raise UserError("these weights are under lock and key")


def test_what_the_first_of_both_has_to_say_is_told_in_one_line(ray_cluster):
    row = {"article_id": next(f"a{i}" for i in range(99) if is_compared(f"a{i}")), "split": "train", "writer": "w"}
    row |= {"article": "", "prompt_ids": PROMPT, "summaries": [{"text": "", "token_ids": [1], "finish_reason": "stop"}]}
    pool = EnginePool(Refusing, EngineHardware(), at_once=1)
    with pytest.raises(UserError, match="^these weights are under lock and key$"):
        drift_from_base(
            to_dataset([row]),
            "policy",
            "base",
            dtype="float32",
            policy_scorer=pool,
            base_scorer=pool,
            trainer=TrainerHardware(),
        )


def test_the_kl_is_the_mean_difference_with_the_articles_as_units():
    def article(*gaps, tokens=4):
        return {
            "summaries": [{"token_ids": [1] * tokens} for _ in gaps],
            "policy_logps": [-5.0 for _ in gaps],
            "base_logps": [-5.0 - gap for gap in gaps],
        }

    drift = estimate_kl([article(1.0, 3.0), article(4.0, 4.0), article(0.0, 0.0, tokens=8)])
    assert drift.articles == 3
    assert drift.per_summary == pytest.approx(2.0)
    assert drift.per_summary_error == pytest.approx(2 / 3**0.5)  # of the articles' means 2, 4 and 0
    assert drift.per_token == pytest.approx(12 / 32)
    assert estimate_kl([article(1.0)]).per_summary_error is None
    assert estimate_kl([]) is None
