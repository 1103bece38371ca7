"""Every conversation is written without nulls. A refusal names the role and quotes the template."""

import pickle

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.storage.model_files.chat_template import TemplateRefusal, encode, render, without_nulls
from tests.helpers.paths import ROOT

SYSTEM = {"role": "system", "content": "w1"}
ASK = {"role": "user", "content": "w2"}
REPLY = {"role": "assistant", "content": "w3"}
PLAIN = "{% for m in messages %}{{ m.role }} {{ m.content }}{% if 'name' in m %} {{ m.name }}{% endif %} {% endfor %}"
# Gemma, which also wants user and assistant by turns.
ALTERNATING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ m.content }} {% endfor %}"
)
SYSTEM_FIRST = PLAIN.replace(
    "{{ m.role }}",
    "{% if m.role == 'system' and not loop.first %}{{ raise_exception('System first.') }}{% endif %}{{ m.role }}",
)
DROPS = "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.content }} {% endif %}{% endfor %}"
FIRST_ONLY = PLAIN.replace("{{ m.role }}", "{% if m.role != 'system' or loop.first %}{{ m.role }}").replace(
    "{% endfor %}", "{% endif %}{% endfor %}"
)


def tokenizer(template):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "user": 1, "w2": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    made.chat_template = template
    return made


def test_nulls_are_removed_at_any_depth():
    call = {"function": {"name": "f", "arguments": {"a": None, "b": [{"c": None, "d": 0}]}}}
    message = {"role": "assistant", "content": "", "name": None, "tool_calls": [call]}
    assert without_nulls(message) == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"b": [{"d": 0}]}}}],
    }
    assert render(tokenizer(PLAIN), [ASK | {"name": None}]) == "user w2 "
    assert encode(tokenizer(PLAIN), [ASK | {"name": None}]) == [1, 2]


@pytest.mark.parametrize(
    ("template", "messages", "line"),
    [
        (
            ALTERNATING,
            [SYSTEM, ASK],
            "the chat template refuses the role system: 'System role not supported'",
        ),
        (
            ALTERNATING,
            [ASK, ASK],
            "the chat template refuses the messages (user, user): 'Roles must alternate'",
        ),
        (SYSTEM_FIRST, [ASK, SYSTEM], "the chat template refuses the role system: 'System first.'"),
        (ALTERNATING, [ASK, REPLY, {"role": "critic", "content": "x"}], "the chat template refuses the role critic: "),
        (PLAIN.replace("m.content", "m.content.x.y"), [ASK], "the chat template refuses the messages (user): "),
        (DROPS, [SYSTEM, ASK], "the chat template leaves out a message of the role system"),
        (DROPS, [ASK, {"role": "critic", "content": "x"}], "the chat template leaves out a message of the role critic"),
        (FIRST_ONLY, [SYSTEM, ASK, SYSTEM], "the chat template leaves out a message of the role system"),
    ],
)
def test_a_refusal_names_the_role_and_quotes_the_template(template, messages, line):
    for write in (render, encode):
        with pytest.raises(TemplateRefusal) as caught:
            write(tokenizer(template), messages)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)
        remedy = "; x.merge_system=true puts its text into the first user message"
        assert caught.value.with_remedy("x.merge_system").endswith(remedy) == (" role system" in line)
        again = pickle.loads(pickle.dumps(caught.value))  # an engine raises it in a Ray actor
        assert (str(again), again.role) == (str(caught.value), caught.value.role)


def test_the_template_may_be_exchanged():
    made = tokenizer(DROPS)
    with pytest.raises(TemplateRefusal):
        render(made, [SYSTEM, ASK])
    made.chat_template = PLAIN
    assert render(made, [SYSTEM, ASK]) == "system w1 user w2 "


def test_no_other_module_applies_a_template():
    """A call elsewhere would give a template nulls, and end in a traceback where a template refuses."""
    calls = [
        path.name
        for folder in ("pipeline", "jobs", "judges")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if ".apply_chat_template(" in path.read_text()
    ]
    # The snippets of a model card call it in the programs of other people.
    assert sorted(calls) == ["chat_template.py", "snippets.py"]
