"""Preference pairs of every known format are read alike. A row that is not a pair gives the reason."""

import pytest

from judges.base import Skip
from pipeline.data.preference_formats import Preference, has_known_columns, parse_row
from pipeline.data.readers import UNREADABLE

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "What color is the sky?"}
BLUE = {"role": "assistant", "content": "It is blue."}
GREEN = {"role": "assistant", "content": "It is green."}
HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ANSWERS = {"chosen": "It is blue.", "rejected": "It is green."}


def sharegpt(*messages):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": [ASK], "chosen": [BLUE], "rejected": [GREEN]}, [ASK]),
        ({"prompt": [SYSTEM, ASK], "chosen": [BLUE], "rejected": [GREEN]}, [SYSTEM, ASK]),
        ({"prompt": [ASK], **ANSWERS}, [ASK]),
        ({"prompt": [ASK], "chosen": [ASK, BLUE], "rejected": [ASK, GREEN]}, [ASK]),
        ({"chosen": [ASK, BLUE], "rejected": [ASK, GREEN]}, [ASK]),
        ({"chosen": [SYSTEM, *HELLO, ASK, BLUE], "rejected": [SYSTEM, *HELLO, ASK, GREEN]}, [SYSTEM, *HELLO, ASK]),
        (
            {
                "prompt": ASK["content"],
                "prompt_id": "7",
                "chosen": [ASK, BLUE],
                "rejected": [ASK, GREEN],
                "messages": [ASK, BLUE],
                "score_chosen": 8.0,
                "score_rejected": 2.0,
            },
            [ASK],
        ),
        ({"prompt": ASK["content"], "chosen": [BLUE], "rejected": [GREEN]}, [ASK]),
        ({"system": "Be brief.", "question": ASK["content"], **ANSWERS}, [SYSTEM, ASK]),
        ({"system": "", "question": ASK["content"], **ANSWERS}, [ASK]),
        (
            {
                "conversations": sharegpt(*HELLO, ASK),
                "chosen": sharegpt(BLUE)[0],
                "rejected": sharegpt(GREEN)[0],
                "system": "Be brief.",
            },
            [SYSTEM, *HELLO, ASK],
        ),
        (
            {
                "conversations": sharegpt(SYSTEM, ASK),
                "chosen": sharegpt(BLUE)[0],
                "rejected": sharegpt(GREEN)[0],
                "system": "not this one",
            },
            [SYSTEM, ASK],
        ),
        ({"instruction": ASK["content"], "input": "", **ANSWERS}, [ASK]),
        (
            {
                "instruction": "What color is",
                "input": "the sky?",
                "system": "Be brief.",
                "history": [["Hi", "Hello"]],
                **ANSWERS,
            },
            [SYSTEM, *HELLO, {"role": "user", "content": "What color is\nthe sky?"}],
        ),
    ],
)
def test_a_row_of_any_format_gives_the_same_messages(row, prompt):
    assert has_known_columns(row)
    assert parse_row(row) == Preference(prompt, [BLUE], [GREEN])


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}, ("The sky is", " blue.", " green.")),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, ("The sky is", " blue.", " green.")),
        ({"chosen": "The sky is blue", "rejected": "The sky is bluegreen"}, ("The sky is blu", "e", "egreen")),
        ({"prompt": "a\ud800", "chosen": "b\udfff", "rejected": "c"}, ("a?", "b?", "c")),
    ],
)
def test_plain_text_stays_text(row, parts):
    assert parse_row(row) == Preference(*parts)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "The sky is blue", "rejected": "The sky is bluegreen"},
        {"chosen": "a b", "rejected": "a bc"},
        {"chosen": [ASK, BLUE], "rejected": [ASK, GREEN]},
        {"chosen": [ASK, BLUE, *HELLO], "rejected": [ASK, BLUE]},
        {"chosen": [ASK, *HELLO, BLUE], "rejected": [ASK, GREEN]},
    ],
)
def test_an_implicit_prompt_equals_the_one_that_trl_extracts(row):
    from trl.data_utils import extract_prompt

    assert parse_row(row) == Preference(**extract_prompt(row))


def test_extra_keys_and_template_arguments_are_kept():
    row = {"prompt": [ASK], "chosen": [BLUE | {"reasoning": "…"}], "rejected": [GREEN]}
    assert parse_row(row).chosen == [BLUE | {"reasoning": "…"}]
    arguments = {"tools": '[{"type": "function"}]', "chat_template_kwargs": {"enable_thinking": False}}
    assert parse_row(row | arguments).template == {"tools": [{"type": "function"}], "enable_thinking": False}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({UNREADABLE: "not JSON"}, "not JSON"),
        ({"prompt": "p", "chosen": "a"}, "no chosen or no rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "no chosen or no rejected"),
        ({"prompt": None, **ANSWERS}, "no prompt"),
        ({"prompt": "", **ANSWERS}, "no prompt"),
        ({"prompt": [], **ANSWERS}, "no prompt"),
        ({"question": "", **ANSWERS}, "no prompt"),
        ({"chosen": "blue", "rejected": "green"}, "no prompt"),
        ({"chosen": [BLUE], "rejected": [GREEN]}, "no prompt"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "empty answer"),
        ({"prompt": "p", "chosen": "a", "rejected": " \n"}, "empty answer"),
        ({"prompt": [ASK], "chosen": [BLUE], "rejected": [BLUE | {"content": ""}]}, "empty answer"),
        ({"prompt": [ASK], "chosen": [ASK], "rejected": [ASK, GREEN]}, "empty answer"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": [ASK, BLUE], "rejected": [ASK, BLUE]}, "chosen and rejected are the same"),
        ({"prompt": 7, **ANSWERS}, "wrong type"),
        ({"prompt": "p", "chosen": 1, "rejected": "b"}, "wrong type"),
        ({"prompt": [ASK], "chosen": [], "rejected": [GREEN]}, "wrong type"),
        ({"prompt": ["p"], **ANSWERS}, "wrong type"),
        ({"prompt": [{"content": "no role"}], **ANSWERS}, "wrong type"),
        ({"prompt": [{"role": "user", "content": None}], **ANSWERS}, "wrong type"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], **ANSWERS}, "wrong type"),
        ({"instruction": "p", "history": [["Hi"]], **ANSWERS}, "wrong type"),
        ({"instruction": "p", "history": "Hi", **ANSWERS}, "wrong type"),
        ({"prompt": "p", "tools": "[", **ANSWERS}, "wrong type"),
        ({"prompt": "p", "chat_template_kwargs": "[", **ANSWERS}, "wrong type"),
    ],
)
def test_a_row_that_is_not_a_pair_gives_the_reason(row, reason):
    assert parse_row(row) == Skip(reason)
