"""Recipes: which changes are found, how they read, and which of an older version's recipes still match."""

import json

from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.loader import parse_config
from pipeline.execution.recipe import Change, compare_recipes, fingerprint, stage_recipe
from pipeline.stages.questions import ask_questions
from pipeline.stages.scores import score_heldout
from pipeline.storage.ledger import Artifact

SETTINGS = {"run": "runs/x", "articles": {"path": "a.jsonl"}, "policy": {"model": "m"}, "judge": {"kind": "cloze"}}
CONFIG = parse_config(SETTINGS)


def compare(was, now):
    return compare_recipes(was, now, CONFIG)


def test_a_change_names_the_setting_and_both_values():
    was = {"settings": {"pairs": {"threshold": 3, "min_words": 5}}, "inputs": {"scores": "a"}}
    now = {"settings": {"pairs": {"threshold": 4, "min_words": 5}}, "inputs": {"scores": "b"}}
    assert list(map(str, compare(was, now))) == [
        "settings.pairs.threshold: was 3, now 4",
        'inputs.scores: was "a", now "b"',
    ]


def test_a_change_of_stage_or_version_has_no_key():
    (change,) = compare({"version": 1}, {"version": 2})
    assert change == Change("version", "", 1, 2)
    assert str(change) == "version: was 1, now 2"


def test_a_long_value_is_shortened_in_the_message():
    change = Change("settings", "policy.instruction", "a" * 200, "b")
    assert len(str(change)) < 120


def test_only_a_new_build_of_the_same_input_is_a_new_build():
    assert Change("inputs", "scores", "a", "b").is_new_build
    assert not Change("inputs", "scores", None, "b").is_new_build
    assert not Change("settings", "seed", 0, 1).is_new_build


def test_only_an_added_or_removed_policy_is_another_policy():
    assert Change("inputs", "round-01/policy", None, "b").is_other_policy
    assert Change("inputs", "round-01/policy", "a", None).is_other_policy
    assert not Change("inputs", "round-01/policy", "a", "b").is_other_policy
    assert not Change("inputs", "round-01/scores", None, "b").is_other_policy


def recipe():
    return stage_recipe(score_heldout, [Artifact("runs/x", "round-00/exam", {"build": "b1"})], CONFIG)


def test_a_setting_that_an_older_version_did_not_have_is_no_change_at_its_default():
    was, now = recipe(), recipe()
    del was["settings"]["judge"]["logprobs"]
    del was["settings"]["judge"]["language"]
    del was["settings"]["evaluation.ask_again"]
    assert compare(was, now) == []
    now["settings"]["judge"]["logprobs"] = True
    assert list(map(str, compare(was, now))) == ["settings.judge.logprobs: was null, now true"]


def test_a_setting_that_is_required_or_gone_is_a_change():
    was, now = recipe(), recipe()
    was["settings"]["judge"]["no_longer_there"] = 1
    assert list(map(str, compare(was, now))) == ["settings.judge.no_longer_there: was 1, now null"]


def test_a_file_that_an_older_version_did_not_name_is_no_change_where_there_is_none():
    was, now = recipe(), recipe()
    now["contents"]["judge.kind"] = None
    assert compare(was, now) == []
    now["contents"]["judge.kind"] = "0123456789abcdef"
    assert [change.kind for change in compare(was, now)] == ["contents"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(json_values, json_values)
def test_two_recipes_differ_exactly_if_a_change_is_found(was, now):
    # A value that is null and one that is missing are the same to a recipe.
    if not compare({"inputs": was}, {"inputs": now}):
        assert _without_none(was) == _without_none(now)
    assert compare({"inputs": was}, {"inputs": was}) == []


def _without_none(value):
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v not in (None, {})} or None
    return value


def test_a_fingerprint_follows_the_contents(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("one")
    before = fingerprint(str(file))
    fingerprint.cache_clear()
    file.write_text("two")
    assert before != fingerprint(str(file))
    assert fingerprint(None) is fingerprint("hf:owner/name") is fingerprint(str(tmp_path / "nothing")) is None


def test_a_list_that_an_older_version_did_not_have_is_no_change_while_it_is_empty():
    was, now = (stage_recipe(ask_questions, [], CONFIG) for _ in range(2))
    del was["settings"]["questions"]["more_checks"], was["settings"]["questions"]["draft"]
    assert compare(json.loads(json.dumps(was)), now) == []
    more = stage_recipe(ask_questions, [], parse_config(SETTINGS | {"questions": {"more_checks": ["no_overlap"]}}))
    assert list(map(str, compare(was, more))) == ['settings.questions.more_checks: was null, now ["no_overlap"]']
