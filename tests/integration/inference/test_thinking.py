"""A model that thinks in vLLM: its thoughts end within their budget, and only the answer is text."""

import math
import re
from dataclasses import replace

import pytest
import torch

from judges.base import Prompt, user
from pipeline.config import UserError
from pipeline.config.base import Thinking
from pipeline.config.hardware import EngineHardware
from pipeline.inference.base import count_tokens
from pipeline.inference.sampling import sample_rows
from pipeline.inference.thinking import KNOWN_TAGS, make_thinker, strip_thoughts
from pipeline.storage.schema import sampled_logp, to_dataset, unscored_tokens
from pipeline.training.modeling import loading
from pipeline.training.modeling.logprobs import plain_logps
from tests.helpers.tiny_models import save_thinking_model

ARTICLE = "Officials said the scene was in Lima. The team was headed by Ana Santos."
BUDGET = 24
PROMPT = Prompt(user(f"Summarize.\n{ARTICLE}"), max_tokens=60, temperature=1.0, n=48, logprobs=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_thinking_model(tmp_path_factory.mktemp("thinks")))


@pytest.fixture(scope="module")
def vllm(folder):
    from pipeline.inference.vllm import VllmEngine

    engine = VllmEngine(folder, "float32", 512, 0, EngineHardware(), Thinking(budget=BUDGET))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reply(vllm):
    (reply,) = vllm.generate([PROMPT])
    assert reply.error is None
    return reply


def test_only_the_answer_is_text(vllm, reply):
    assert len(reply.samples) == PROMPT.n
    for sample in reply.samples:
        answer_ids = sample.token_ids[sample.thought_tokens :]
        decoded = vllm.tokenizer.decode(answer_ids, skip_special_tokens=True)
        assert not any(tag in sample.text + sample.thought for tag in KNOWN_TAGS[0])
        if "\ufffd" not in decoded:  # half a character is decoded in two ways
            # The model may close a thought once more: what came before was a thought too.
            assert strip_thoughts(decoded)[1].lstrip() == sample.text


def test_a_thought_is_closed_within_its_budget(vllm, reply):
    (opening, closing) = (vllm.tokenizer.convert_tokens_to_ids(tag) for tag in KNOWN_TAGS[0])
    assert reply.prompt_ids[-1] == opening
    for sample in reply.samples:
        thought = sample.token_ids[: sample.thought_tokens]
        assert thought[-1] == closing
        assert thought.count(closing) == 1
        assert vllm.tokenizer.eos_token_id not in thought
        assert len(thought) <= BUDGET + 1
        assert sample.forced_tokens <= 1
    by_model = [s for s in reply.samples if not s.forced_tokens]
    at_budget = [s for s in reply.samples if s.thought_tokens == BUDGET + 1]
    ended_early = [s for s in reply.samples if s.forced_tokens and s.thought_tokens <= BUDGET]
    assert by_model and at_budget and ended_early  # the model does each of the three


def test_log_probabilities_are_those_that_the_trainer_computes(folder, reply):
    model = loading.load_model(folder, "float32", article_tree=False)
    rows = [vars(sample) for sample in reply.samples]
    for loss_on in ("sequence", "answer"):
        unscored = [unscored_tokens(row, loss_on) for row in rows]
        with torch.no_grad():
            expected = plain_logps(model, reply.prompt_ids, [row["token_ids"] for row in rows], unscored).tolist()
        assert [sampled_logp(row, loss_on) for row in rows] == pytest.approx(expected, abs=1e-2)
    closing = reply.samples[0].token_ids[reply.samples[0].thought_tokens - 1]
    for sample in reply.samples:
        if closing not in sample.token_ids[sample.thought_tokens :]:
            answer = math.fsum(logp for _, logp in sample.token_logps)
            assert sample.logp == pytest.approx(sample.thought_logp + answer, abs=1e-3)


def test_thoughts_are_counted_apart(reply):
    counts = count_tokens([reply])
    forced = sum(sample.forced_tokens for sample in reply.samples)
    assert counts["tokens_out"] == sum(len(sample.token_ids) for sample in reply.samples) - forced
    assert counts["tokens_thought"] == sum(sample.thought_tokens for sample in reply.samples) - forced
    assert 0 < counts["tokens_thought"] < counts["tokens_out"]


def test_the_grammar_begins_after_the_thought(vllm):
    prompt = replace(PROMPT, regex="Q1 [A-E]\nQ2 [A-E]", n=8)
    (reply,) = vllm.generate([prompt])
    for sample in reply.samples:
        assert re.fullmatch(prompt.regex, sample.text)
        assert sample.thought_tokens > 1 or sample.forced_tokens


def test_an_answer_that_is_cut_off_has_finish_reason_length(vllm):
    (reply,) = vllm.generate([replace(PROMPT, max_tokens=2)])
    for sample in reply.samples:
        assert len(sample.token_ids) - sample.thought_tokens <= 2
        assert sample.finish_reason == "length" or sample.token_ids[-1] == vllm.tokenizer.eos_token_id
    assert "length" in {sample.finish_reason for sample in reply.samples}


def test_a_prompt_without_room_for_thought_and_answer_fails_alone(vllm):
    ids = len(vllm.generate([replace(PROMPT, n=1)])[0].prompt_ids)
    fits = replace(PROMPT, n=1, max_tokens=512 - ids - BUDGET - 1)
    replies = vllm.generate([PROMPT, replace(fits, max_tokens=fits.max_tokens + 1), fits])
    assert [reply.error for reply in replies] == [None, "prompt too long", None]


def test_a_row_keeps_thoughts_apart_from_text(vllm):
    prompt = Prompt(user("Summarize.\n{article}"), max_tokens=60, temperature=1.0, n=2)
    (outcome,) = sample_rows(prompt, "writer", vllm, [{"article": ARTICLE}])
    row = {"article_id": "a"} | {name: outcome[name] for name in ("writer", "prompt_ids", "summaries")}
    (stored,) = to_dataset([row]).take_all()
    for summary, sampled in zip(stored["summaries"], outcome["summaries"], strict=True):
        for name in ("text", "thought", "thought_tokens", "forced_tokens"):
            assert summary[name] == sampled[name]
        assert summary["thought_logp"] is None


@pytest.fixture
def with_tags(vllm):
    """Let the engine think between other tags for one test."""
    before = vllm.thinker, vllm.closing_ids

    def use(*tags):
        vllm.thinker = make_thinker(vllm.tokenizer, Thinking(budget=BUDGET, tags=tags), "policy", "m")
        vllm.closing_ids = vllm._encode(tags[1])

    yield use
    vllm.thinker, vllm.closing_ids = before


@pytest.mark.parametrize("closing", [" headed", " head", "headed by"])
def test_tags_of_plain_text_close_a_thought_too(vllm, with_tags, closing):
    """The model's own tokens spell the tag with a token of their own, with a part of one, or with two."""
    with_tags("Reports say", closing)
    (reply,) = vllm.generate([PROMPT])
    assert vllm.tokenizer.decode(reply.prompt_ids).endswith("Reports say")
    for sample in reply.samples:
        thought = vllm.tokenizer.decode(sample.token_ids[: sample.thought_tokens])
        assert thought.endswith(closing)
        assert thought.count(closing) == 1


def test_an_engine_refuses_at_its_first_call(vllm, folder):
    try:
        vllm.refusal = "policy.model cannot be told to stop thinking"
        with pytest.raises(UserError, match="cannot be told"):
            vllm.generate([PROMPT])
    finally:
        vllm.refusal = ""
