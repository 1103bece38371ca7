"""Settings of models that think: what is accepted, what is refused in one line, and what makes nothing stale."""

import pytest
from pydantic import ValidationError

from pipeline.config import Alignment, UserError
from pipeline.config.base import Thinking
from pipeline.config.loader import load_config
from pipeline.execution.recipe import compare_recipes, stage_recipe
from pipeline.stages.questions import ask_questions
from pipeline.stages.references import reference_logprobs
from pipeline.stages.summaries import sample_summaries
from tests.helpers.paths import DEMO

ROOM = "policy.max_model_len=4096"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["policy.thinking={}"],
            "summaries.max_tokens is 160, policy.thinking.budget is 1024 and policy.max_model_len is 1024: no room is "
            "left for the prompt. Lower summaries.max_tokens or policy.thinking.budget, or raise policy.max_model_len",
        ),
        (["policy.thinking={tags: [x, x]}"], "thinking.tags is ['x', 'x']: it should be two texts, such as"),
        (["policy.thinking={tags: ['', x]}"], "thinking.tags is ['', 'x']: it should be two texts, such as"),
        (["policy.thinking.budget=-1"], "policy.thinking.budget is -1: input should be greater than or equal to 0"),
        (
            ["training.loss_on=answer"],
            "training.loss_on is answer, which leaves out thoughts, and the policy does not think: remove it, or set "
            "policy.thinking",
        ),
        (["training.loss_on=answer", "policy.thinking.budget=0"], "training.loss_on is answer, which leaves out"),
        (
            ["judge={kind: cloze, thinking: {}}"],
            "judge.thinking is set, and judge.kind is cloze, which asks no model: remove it",
        ),
        (
            ["judge={kind: likelihood, model: x/y, thinking: {}}"],
            "judge.thinking is set, and judge.kind is likelihood, which writes no text: remove it",
        ),
        (["judge={kind: 'm:C', thinking: {}}"], "judge.thinking is set, and judge.model is not: name a model"),
    ],
)
def test_a_mistake_gives_one_line(overrides, line):
    with pytest.raises(UserError) as error:
        load_config(DEMO, overrides)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("section", "values"), [("policy", {"thinking": {}}), ("training", {"loss_on": "answer"})])
def test_training_on_pairs_from_elsewhere_refuses_settings_of_thoughts(section, values):
    raw = {"run": "r", "pairs": "p.jsonl", "policy": {"model": "x/y"}}
    raw[section] = raw.get(section, {}) | values
    with pytest.raises(ValidationError, match=r"is set, but `rondo train` samples no summaries, so no model thinks"):
        Alignment.model_validate(raw)


def test_every_model_that_writes_text_has_the_setting():
    config = load_config(
        DEMO,
        [
            ROOM,
            "policy.thinking={budget: 100}",
            "judge.thinking={budget: 200, tags: [<a>, </a>]}",
            "second_judge={model: x/y, thinking: {budget: 300}}",
            "hardware.servers={s: {base_url: 'http://x/v1'}}",
            "compare={other: {server: s, model: m, thinking: {budget: 400}}}",
        ],
    )
    models = (config.policy, config.judge, config.second_judge, config.compare["other"])
    assert [model.thinking.budget for model in models] == [100, 200, 300, 400]
    assert config.judge.thinking.tags == ("<a>", "</a>")
    assert Thinking().tags is None


@pytest.mark.parametrize("stage", [sample_summaries, ask_questions, reference_logprobs])
def test_a_recipe_from_before_these_settings_is_unchanged(stage):
    config = load_config(DEMO)
    old = stage_recipe(stage, [], config)
    for name in ("policy", "judge"):
        if name in old["settings"]:
            del old["settings"][name]["thinking"]
    old["settings"].pop("training.loss_on", None)
    assert compare_recipes(old, stage_recipe(stage, [], config), config) == []

    thinking = load_config(
        DEMO, [ROOM, "policy.thinking.budget=9", "judge.thinking.budget=9", "training.loss_on=answer"]
    )
    assert compare_recipes(old, stage_recipe(stage, [], thinking), thinking)
