"""NAME=VALUE: the type of the setting decides how the value is read, and every character of it counts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Alignment, Config, UserError
from pipeline.config.loader import apply_overrides, load_config
from tests.helpers.paths import DEMO


def value_of(override: str, model: Any = Config) -> Any:
    raw: Any = apply_overrides({}, [override], model)
    for name in override.partition("=")[0].split("."):
        raw = raw[name]
    return raw


@pytest.mark.parametrize("name", ["run", "articles.id_column", "policy.instruction", "judge.model", "start_from"])
@pytest.mark.parametrize(
    "text",
    [
        "Sum up {article} as tweet with #news",
        "runs/x #1",
        "#1",
        "Note: be brief, {article}",
        "&a *b !c %d @e `f`",
        "- a",
        "yes",
        "off",
        "2026",
        "2026-01-31",
        "1e-5",
        "1_000",
        "[a, b",
        "[a, b]",
        "{article}",
        "two\nlines",
        " spaces ",
        '"Sum up" {article} "now"',
        "'a' # b",
        "'",
    ],
)
def test_text_is_taken_as_it_is(name: str, text: str) -> None:
    assert value_of(f"{name}={text}") == text


@given(st.text(min_size=1).filter(lambda text: text[0] not in "'\""))
def test_any_text_that_is_not_in_quotes_is_taken_as_it_is(text: str) -> None:
    assert value_of(f"policy.instruction={text}") == text
    assert value_of(f"pairs={text}", Alignment) == text


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run=~", "~"),
        ("run=null", "null"),
        ('run="a b"', "a b"),
        ("run='a # b'", "a # b"),
        (r'policy.instruction="a\n{article}"', "a\n{article}"),
        ("judge.model=null", None),
        ("judge.model=~", None),
        ("judge.model=", None),
        ("judge.model='null'", "null"),
        ("articles.limit=null", None),
        ("rounds=3", 3),
        ("rounds=1_000", 1000),
        ("rounds=010", "010"),  # pydantic reads 10, where YAML 1.1 reads 8
        ("articles.limit=1:30", "1:30"),  # no number, where YAML 1.1 reads 90
        ("rounds=2 # two", "2 # two"),
        ("training.beta=0.05", 0.05),
        ("training.learning_rate=1e-5", "1e-5"),  # pydantic reads the number
        ("training.lora.merge=yes", True),
        ("training.loss_type=ipo", "ipo"),
        ("training.loss_type=[ipo, sft]", ["ipo", "sft"]),
        ("training.lora.target_modules=all-linear", "all-linear"),
        ("training.lora={r: 8}", {"r": 8}),
        ("training.lora=null", None),
        ("hardware.servers.a.base_url=http://x/#v1", "http://x/#v1"),
        ("hardware.judge.replicas={min: 1, max: 2}", {"min": 1, "max": 2}),
        ("judge.settings.instruction=Topic: #1 of {article}", "Topic: #1 of {article}"),
        ("judge.settings.x=1e-5", 1e-5),
        ("judge.settings.x=3", 3),
        ("judge.settings.x=007", "007"),
        ("judge.settings.x=on", True),
        ("judge.settings.x=[1, '#2']", [1, "#2"]),
        ("judge.members.b.model=a #b", "a #b"),
        ("judge.served.extra_body.seed=3", 3),
    ],
)
def test_the_type_of_a_setting_decides_how_its_value_is_read(override: str, value: Any) -> None:
    assert value_of(override) == value and type(value_of(override)) is type(value)


@pytest.mark.parametrize("value", ["{r: 8} # small", "[ipo, # first\n sft]", "# nothing"])
def test_a_comment_is_refused_where_yaml_would_leave_it_out(value: str) -> None:
    with pytest.raises(UserError, match="has a comment, which YAML leaves out: remove it, or put a text with # in quo"):
        apply_overrides({}, [f"training.lora={value}"])


def test_the_reported_cases() -> None:
    config = load_config(
        DEMO,
        [
            "policy.instruction=Sum up {article} as tweet with #news",
            "run=runs/x #1",
            "training.learning_rate=1e-5",
            "rounds=010",
            "articles.id_column=1",
        ],
    )
    assert config.policy.instruction == "Sum up {article} as tweet with #news"
    assert (config.run, config.training.learning_rate, config.rounds) == ("runs/x #1", 1e-5, 10)
    assert config.articles.id_column == "1"
    with pytest.raises(UserError, match=r"rounds is '2 # two': input should be a valid integer"):
        load_config(DEMO, ["rounds=2 # two"])
