"""Thoughts: found in chat templates, divided from answers, closed within their budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from judges.base import user
from pipeline.config import UserError
from pipeline.config.base import Thinking
from pipeline.inference.thinking import (
    KNOWN_TAGS,
    Thinker,
    answer_tokens,
    check_folder,
    close_thought,
    make_thinker,
    strip_thoughts,
)
from pipeline.inference.vllm import encode_messages
from tests.helpers.paths import POLICY_MODEL
from tests.helpers.tiny_models import ALWAYS_OPEN, NO_SWITCH, SWITCH

THINK = KNOWN_TAGS[0]
HARMONY = (  # gpt-oss
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
GRANITE = "{% if thinking %}Think between <think> and </think>.{% endif %}{{ messages[0].content }}"


def tokenizer_with(template):
    tokenizer = AutoTokenizer.from_pretrained(POLICY_MODEL)
    tokenizer.chat_template = template
    return tokenizer


def prompt_of(template, thinking):
    tokenizer = tokenizer_with(template)
    return tokenizer.decode(encode_messages(tokenizer, user("Hi"), make_thinker(tokenizer, thinking, "policy", "m")))


@pytest.mark.parametrize(
    ("template", "budget", "end"),
    [
        (SWITCH, None, "<|assistant|><think>\n\n</think>\n\n"),
        (SWITCH, 9, "<|assistant|><think>"),
        (SWITCH, 0, "<|assistant|><think>\n\n</think>\n\n"),
        (ALWAYS_OPEN, 9, "<|assistant|><think>\n"),
        (ALWAYS_OPEN, 0, "<|assistant|><think>\n\n</think>\n\n"),
        (NO_SWITCH, 9, "<|assistant|><think>"),
        (HARMONY, 9, "<|start|>assistant<|channel|>analysis<|message|>"),
        (GRANITE, None, "Hi"),
        (GRANITE, 9, "Hi<think>"),
    ],
)
def test_the_prompt_opens_or_closes_a_thought(template, budget, end):
    thinking = None if budget is None else Thinking(budget=budget)
    assert prompt_of(template, thinking).endswith(end)


def test_a_template_that_knows_no_thoughts_gets_the_prompt_as_before():
    tokenizer = AutoTokenizer.from_pretrained(POLICY_MODEL)
    assert make_thinker(tokenizer, None, "policy", "m") == Thinker()
    assert encode_messages(tokenizer, user("Hi")) == encode_messages(
        tokenizer, user("Hi"), make_thinker(tokenizer, None, "policy", "m")
    )


@pytest.mark.parametrize("template", [ALWAYS_OPEN, NO_SWITCH, HARMONY])
def test_a_model_that_cannot_be_told_to_stop_thinking_is_refused(template):
    with pytest.raises(UserError, match=r"judge.model is 'm', which cannot be told to stop thinking .*budget") as error:
        make_thinker(tokenizer_with(template), None, "judge", "m")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"use another model$"):
        make_thinker(tokenizer_with(template), None, "judge", "m", can_think=False)


def test_a_model_without_thoughts_cannot_think_unless_its_tags_are_named():
    tokenizer = AutoTokenizer.from_pretrained(POLICY_MODEL)
    with pytest.raises(UserError, match=r"^policy.thinking is set, and the chat template of m has no thoughts: remove"):
        make_thinker(tokenizer, Thinking(), "policy", "m")
    assert make_thinker(tokenizer, Thinking(tags=("First", "Then")), "policy", "m").tags == ("First", "Then")


def test_tags_among_the_added_tokens_alone_do_not_make_a_model_think(tmp_path):
    """Qwen3's instruct models share the tokenizer of those that think."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY_MODEL)
    tokenizer.add_tokens(list(THINK))
    tokenizer.save_pretrained(tmp_path)
    check_folder("policy", "m", str(tmp_path), None)
    with pytest.raises(UserError, match="has no thoughts"):
        check_folder("policy", "m", str(tmp_path), Thinking())


@pytest.mark.parametrize("inside_config", [False, True])
def test_a_folder_is_checked_without_its_weights(tmp_path, inside_config):
    tokenizer_with(ALWAYS_OPEN).save_pretrained(tmp_path, save_jinja_files=not inside_config)
    assert (tmp_path / "chat_template.jinja").exists() != inside_config
    with pytest.raises(UserError, match="cannot be told to stop"):
        check_folder("policy", "m", str(tmp_path), None)
    check_folder("policy", "m", str(tmp_path), Thinking())


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("An answer.", None, "An answer."),
        (" 2 < 3 and [1] \n", None, " 2 < 3 and [1] \n"),
        ("<think>\nhm\n</think>\n\nOslo.", "hm", "Oslo."),
        ("hm\n</think>\n\nOslo.", "hm", "Oslo."),  # the prompt opened the thought
        ("<think>hm, and so on", "hm, and so on", ""),  # cut off
        ("Oslo.<think>or not", "or not", "Oslo."),
        ("hm <think>again</think>Oslo.", "hm\nagain", "Oslo."),  # inside a thought that the prompt opened
        ("<think>a</think>b</think>c", "a\nb", "c"),
        ("<think>a</think>b<think>c", "a\nc", "b"),
        ("<think></think>Oslo.", "", "Oslo."),
        ("[THINK]hm[/THINK]Oslo.", "hm", "Oslo."),
        (f"{KNOWN_TAGS[2][0]}hm{KNOWN_TAGS[2][1]}Oslo.", "hm", "Oslo."),
    ],
)
def test_a_thought_is_divided_from_the_answer(text, thought, answer):
    assert strip_thoughts(text) == (thought, answer)


@given(st.lists(st.sampled_from(["<think>", "</think>", "[THINK]", "[/THINK]", "a", " b\n"]), max_size=9))
def test_no_tag_is_left_in_an_answer(pieces):
    thought, answer = strip_thoughts("".join(pieces))
    assert not any(tag in answer for tags in KNOWN_TAGS[:2] for tag in tags)
    if thought is None:
        assert answer == "".join(pieces)


def test_the_tokens_of_an_answer_are_the_last_ones():
    tokens = [
        ("<think>", -1.0),
        ("A", -2.0),
        ("</think>", -3.0),
        ("\n\n", -4.0),
        ("Q1", -5.0),
        (" A", -6.0),
        ("", -7.0),
    ]
    assert answer_tokens(tokens, "Q1 A") == tokens[4:]
    assert answer_tokens(tokens, "Q2 A") is None
    assert answer_tokens(tokens, "") is None


def decode(ids):
    return "".join(map(chr, ids))


def encode(text):
    return list(map(ord, text))


@pytest.mark.parametrize(
    ("tokens", "kept", "forced"),
    [
        (["hm", "</think>"], 2, ""),
        (["hm", "</", "think", ">\n\n"], 4, ""),
        (["hm"], 1, "</think>"),
        (["hm", "</", "thi"], 3, "nk>"),  # the budget ended in the middle of the tag
        (["hm", "</", "think", ">Oslo"], 3, ">"),  # the answer must begin with its own token
        ([], 0, "</think>"),
    ],
)
def test_a_thought_is_closed_once(tokens, kept, forced):
    result = close_thought(
        list(range(len(tokens))),
        THINK,
        lambda ids: "".join(tokens[i] for i in ids),
        lambda text: [text] if text else [],
    )
    assert result == (kept, [forced] if forced else [])


@given(st.text("</think>x\n ", max_size=30))
def test_a_closed_thought_has_nothing_after_it(text):
    kept, forced = close_thought(encode(text), THINK, decode, encode)
    closed = decode(encode(text)[:kept] + forced)
    assert closed.rstrip().endswith("</think>")
    assert closed.rstrip().count("</think>") == 1
