"""An instruction of several messages reaches the policy, and its chat template is tried before anything starts."""

import json

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.config import UserError
from pipeline.config.loader import parse_config
from pipeline.config.run import PolicySettings
from pipeline.execution.preflight import check_template
from pipeline.execution.recipe import compare_recipes, stage_recipe
from pipeline.inference.sampling import fill_article, instruction_prompt
from pipeline.stages.summaries import sample_summaries
from tests.helpers.tiny_models import tiny_config

SYSTEM = {"role": "system", "content": "You edit news in {language}."}
ASK = {"role": "user", "content": "Sum up:\n{article}"}
EXAMPLE = [{"role": "user", "content": "Sum up:\nRain."}, {"role": "assistant", "content": "It rains."}]
ARTICLE = "The roof of the old town hall was red, and nobody came {language}."


def config(**policy):
    return parse_config(
        {
            "run": "r",
            "articles": {"path": "a.jsonl"},
            "policy": {"model": "m", **policy},
            "judge": {"kind": "cloze"},
        }
    )


def test_the_article_and_its_language_go_into_the_messages():
    policy = PolicySettings(model="m", instruction=[SYSTEM, *EXAMPLE, ASK])
    prompt = fill_article(instruction_prompt(policy, 32), ARTICLE)
    assert [message["content"] for message in prompt.messages] == [
        "You edit news in English.",
        "Sum up:\nRain.",
        "It rains.",
        f"Sum up:\n{ARTICLE}",
    ]
    assert (prompt.quotes, prompt.max_tokens) == ((ARTICLE,), 32)
    merging = PolicySettings(model="m", instruction=[SYSTEM, ASK], merge_system=True)
    (message,) = fill_article(instruction_prompt(merging, 32), ARTICLE).messages
    assert message == {"role": "user", "content": f"You edit news in English.\n\nSum up:\n{ARTICLE}"}


def test_messages_are_part_of_the_recipe_and_old_recipes_stay_the_same():
    old = json.loads(json.dumps(stage_recipe(sample_summaries, [], config())))
    del old["settings"]["policy"]["merge_system"]
    assert not compare_recipes(old, stage_recipe(sample_summaries, [], config()), config())
    messages = config(instruction=[SYSTEM, ASK])
    recipe = json.loads(json.dumps(stage_recipe(sample_summaries, [], messages)))
    assert recipe["settings"]["policy"]["instruction"] == [SYSTEM, ASK]
    assert not compare_recipes(recipe, stage_recipe(sample_summaries, [], messages), messages)
    (change,) = compare_recipes(old, recipe, messages)
    assert change.key == "policy.instruction"


def test_the_settings_of_a_run_folder_are_read_back():
    settings = config(instruction=[SYSTEM, ASK], merge_system=True)
    assert parse_config(yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json")))) == settings


def save_tokenizer(folder, template):
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    made.chat_template = template
    made.save_pretrained(folder)
    tiny_config().save_pretrained(folder)
    return str(folder)


def test_a_template_that_refuses_the_instruction_ends_the_run_before_it_starts(tmp_path):
    template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system!') }}{% endif %}"
    folder = save_tokenizer(tmp_path / "a", template + "{{ m.content }}{% endfor %}")
    messages = instruction_prompt(PolicySettings(model="m", instruction=[SYSTEM, ASK]), 0).messages
    with pytest.raises(
        UserError,
        match="^policy.instruction: .*: the chat template refuses the role system: 'No system!'; policy.merge_system",
    ):
        check_template("policy.instruction", folder, messages, "policy.merge_system")
    merging = PolicySettings(model="m", instruction=[SYSTEM, ASK], merge_system=True)
    check_template("policy.instruction", folder, instruction_prompt(merging, 0).messages, "policy.merge_system")
    bare = save_tokenizer(tmp_path / "b", None)
    with pytest.raises(UserError, match="is a list of messages, and the tokenizer of .* has no chat template"):
        check_template("policy.instruction", bare, messages, "policy.merge_system")
