"""Tests of the engine that scores given texts, on the newsroom's policy: its values are those of a plain forward."""

import pytest

from judges.base import Prompt, user
from pipeline.inference.vllm import encode_messages
from pipeline.judging.engines.likelihood import LikelihoodEngine
from pipeline.training.modeling.logprobs import plain_logps
from tests.helpers.paths import POLICY_MODEL


@pytest.fixture(scope="module")
def engine():
    return LikelihoodEngine(str(POLICY_MODEL), "float32", None, on_gpu=False)


def test_a_continuation_has_the_log_probability_of_a_plain_forward(engine):
    texts = ("Ana Santos leads Northwind.", "Northwind hired 93 people in Lima.")
    prompts = [Prompt(user(text), 1, continuations=texts) for text in ("Summarize.", "Say something else.")]
    for prompt, reply in zip(prompts, engine.generate(prompts), strict=True):
        ids = [engine.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        plain = plain_logps(
            engine.policy.policy.model, encode_messages(engine.tokenizer, prompt.messages), ids
        ).tolist()
        assert [sample.logp for sample in reply.samples] == pytest.approx(plain, abs=1e-3)
        assert [sample.token_ids for sample in reply.samples] == ids
        for sample in reply.samples:
            assert sum(logp for _, logp in sample.token_logps) == pytest.approx(sample.logp)


def test_marks_of_special_tokens_in_a_text_stay_text(engine):
    mark = engine.tokenizer.eos_token
    (reply,) = engine.generate([Prompt(user("x"), 1, continuations=(f"a {mark} b",))])
    assert engine.tokenizer.eos_token_id not in reply.samples[0].token_ids


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        (Prompt(user("x"), 1), "prompt without continuations"),
        (Prompt(user("x"), 1, continuations=("",)), "empty continuation"),
        (Prompt(user("x"), 1, continuations=("word " * 100_000,)), "prompt too long"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_an_error_and_the_others_are_served(engine, prompt, error):
    refused, served = engine.generate([prompt, Prompt(user("x"), 1, continuations=("It rained.",))])
    assert refused.error == error and not refused.samples
    assert served.error is None and len(served.samples) == 1


def test_the_setting_limits_the_length():
    limited = LikelihoodEngine(str(POLICY_MODEL), "float32", 20, on_gpu=False)
    short, long = limited.generate([Prompt(user("x"), 1, continuations=(text,)) for text in ("It rained.", "a " * 30)])
    assert short.error is None and long.error == "prompt too long"


def test_a_continuation_that_does_not_fit_leaves_the_others_scored(engine):
    texts = ("It rained.", "word " * 100_000, "")
    (reply,) = engine.generate([Prompt(user("x"), 1, continuations=texts)])
    assert [sample.logp is None for sample in reply.samples] == [False, True, True]
