"""Tests of what is said about the articles that are left before a run costs anything."""

from collections import Counter

import pytest

from judges.base import Prompt, user
from pipeline.config.loader import load_config
from pipeline.config.run import Articles
from pipeline.execution.planning import articles_left
from pipeline.execution.planning.articles_left import find_too_long, skipped_note
from pipeline.execution.planning.prompt_lengths import count_prompt, load_tokenizer
from pipeline.inference.sampling import fill_article
from pipeline.inference.thinking import Thinker
from tests.helpers.paths import ROOT

SENTENCE = "Reports say the plan was opposed by Grace Lopez. "


@pytest.fixture(autouse=True)
def _work_in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)  # the demo's paths of models are relative to it


def config(*overrides):
    return load_config(str(ROOT / "configs" / "demo.yaml"), ["run=runs/none", *overrides])


def record(train, held_out, **skipped):
    rows = train + held_out + sum(skipped.values())
    return {"in": rows, "kept": train + held_out, "skipped": skipped, "tally": {"train": train, "eval": held_out}}


def test_a_limit_that_counts_skipped_rows_says_what_is_left_and_what_to_set():
    left = record(104, 12, **{"over 800 words": 140, "duplicate id": 4})
    assert skipped_note(left, Articles(path="a.jsonl", limit=260, max_words=800)) == (
        "articles.limit=260 counts rows of the file, also those that are skipped: 116 of 260 rows are left, 104 to "
        "train on and 12 held out (skipped: over 800 words 140, duplicate id 4). To have more, raise it to about 590 "
        "or raise articles.max_words=800"
    )


def test_other_corpora_get_the_note_that_fits():
    short = record(30, 3, **{"under 20 words": 60})
    assert skipped_note(short, Articles(path="a.jsonl")) == (
        "33 of 93 rows are left, 30 to train on and 3 held out (skipped: under 20 words 60). To have more, lower "
        "articles.min_words=20"
    )
    assert skipped_note(record(80, 10), Articles(path="a.jsonl", limit=260)) == (
        "90 of 90 rows are left, 80 to train on and 10 held out: a.jsonl has no more rows, and articles.limit is 260"
    )
    assert skipped_note(record(200, 20, empty=40), Articles(path="a.jsonl", limit=260)) == ""
    assert skipped_note(record(60, 5, empty=40), Articles(path="a.jsonl")) == ""
    unknown = skipped_note(record(1, 1, **{"not JSON": 9}), Articles(path="a.jsonl"))
    assert unknown.endswith("(skipped: not JSON 9)"), "no setting helps"


def test_articles_too_long_for_the_policy_are_counted_as_its_engine_counts_them():
    settings = config("policy.max_model_len=300", "summaries.max_tokens=60", "evaluation.max_tokens=20")
    texts = [("eval" if i % 4 == 3 else "train", SENTENCE * i) for i in range(1, 41)]
    tokenizer = load_tokenizer("policy", settings.policy.model, [])
    expected = Counter()
    for split, text in texts:
        messages = fill_article(Prompt(user(settings.policy.instruction), 0), text).messages
        expected[split] += count_prompt(tokenizer, messages, Thinker()) + {"train": 60, "eval": 20}[split] > 300
    assert 0 < expected["train"] < 30 and 0 < expected["eval"] < 10
    (found,) = find_too_long(settings, texts, Counter(split for split, _ in texts), ["policy_engine"])
    assert found.section == "policy" and found.counts == expected and found.is_exact
    train, held_out = 30 - expected["train"], 10 - expected["eval"]
    assert str(found) == (
        f"{expected.total()} of 40 articles are too long for policy.max_model_len=300 with a reply of 60, and will be "
        f"skipped: {train} to train on and {held_out} held out are left. To have more, raise policy.max_model_len (the "
        "model's limit is 2,048) or raise articles.limit=480"
    )
    half = texts[::2]
    (about,) = find_too_long(settings, half, {"train": 60, "eval": 0}, ["policy_engine"])
    assert not about.is_exact and str(about).startswith("about ") and about.counts["train"] > 1.5 * len(half) / 3


def test_a_judge_that_cannot_read_an_article_counts_too():
    texts = [("train", SENTENCE * count) for count in (1, 1, 200)]
    found = find_too_long(config("policy.max_model_len=1024"), texts, {"train": 3, "eval": 0})
    assert [each.section for each in found] == ["policy", "judge"]
    assert all(each.counts == {"train": 1} for each in found)
    served = ("judge.served={server: s}", "hardware.servers={s: {base_url: 'http://127.0.0.1:1/v1'}}")
    others = ("judge.dtype=bfloat16", "judge.max_model_len=null")
    (alone,) = find_too_long(config(*served, *others), texts, {"train": 3, "eval": 0})
    assert alone.section == "policy", "the server decides what it can read"


def test_transformers_is_not_imported_for_articles_that_surely_fit(monkeypatch, tmp_path):
    monkeypatch.setattr(articles_left, "load_tokenizer", None)
    room = config("policy.max_model_len=200", "summaries.max_tokens=60")
    assert find_too_long(room, [("train", SENTENCE * 4)], {"train": 1}, ["policy_engine"]) == []
    assert find_too_long(room, [], {}) == []
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(ROOT / "newsroom" / "models" / "policy" / name)
    without_tokenizer = config(f"policy.model={tmp_path}", "policy.max_model_len=600")
    assert find_too_long(without_tokenizer, [("train", "Short.")], {"train": 1}, ["policy_engine"]) == []
    with pytest.raises(TypeError, match="not callable"):  # more bytes than there is room for tokens
        find_too_long(without_tokenizer, [("train", SENTENCE * 12)], {"train": 1}, ["policy_engine"])
