"""Preference pairs of every known format are read alike. A row that is not a pair gives the reason."""

import json

import numpy as np
import pandas as pd
import pytest

from judges.base import Skip
from pipeline.data.preference_formats import (
    NO_PROMPT_COLUMN,
    Preference,
    has_known_columns,
    parse_row,
    read_columns,
)
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
                "system": " Be brief.",
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


# Rows with the columns of public data sets. Each one is the same pair, with a system message or without.
SCORES = {"id": "7", "source": "x", "score_chosen": 8.0, "score_rejected": 2.0}
PUBLIC = {
    "argilla/distilabel-intel-orca-dpo-pairs": (
        {"system": "Be brief.", "input": ASK["content"], **ANSWERS, "labelling_prompt": [ASK], "rating": [9, 8]},
        [SYSTEM, ASK],
    ),
    "argilla/distilabel-math-preference-dpo": (
        {"instruction": ASK["content"], "chosen_response": "It is blue.", "rejected_response": "It is green."},
        [ASK],
    ),
    "jondurbin/truthy-dpo-v0.1": ({"system": "Be brief.", "prompt": ASK["content"], **ANSWERS}, [SYSTEM, ASK]),
    "the same, system prompt empty": ({"system": "", "prompt": ASK["content"], **ANSWERS}, [ASK]),
    "HuggingFaceH4/ultrafeedback_binarized": (
        SCORES | {"prompt": ASK["content"], "chosen": [ASK, BLUE], "rejected": [ASK, GREEN], "messages": [ASK, BLUE]},
        [ASK],
    ),
    "mlabonne/orpo-dpo-mix-40k": (
        {"prompt": ASK["content"], "question": "", "chosen": [ASK, BLUE], "rejected": [ASK, GREEN]},
        [ASK],
    ),
    "allenai/tulu-3 preferences": (
        SCORES | {"prompt": ASK["content"], "chosen": [*HELLO, ASK, BLUE], "rejected": [*HELLO, ASK, GREEN]},
        [*HELLO, ASK],
    ),
    "Skywork-Reward-Preference": (SCORES | {"chosen": [ASK, BLUE], "rejected": [ASK, GREEN]}, [ASK]),
    "nvidia/HelpSteer3": (
        {"domain": "general", "context": [*HELLO, ASK], "response1": "It is green.", "response2": "It is blue."}
        | {"overall_preference": 2, "individual_preference": [{"score": 2}]},
        [*HELLO, ASK],
    ),
    "LLaMA-Factory, alpaca": (
        {"instruction": "", "input": ASK["content"], "system": "Be brief.", "history": [["Hi", "Hello"]], **ANSWERS},
        [SYSTEM, *HELLO, ASK],
    ),
    "OpenAI": (
        {"input": {"messages": [SYSTEM, ASK]}, "preferred_output": [BLUE], "non_preferred_output": [GREEN]},
        [SYSTEM, ASK],
    ),
    "a system message beside messages": ({"system": "Be brief.", "prompt": [ASK], **ANSWERS}, [SYSTEM, ASK]),
    "a system message beside whole conversations": (
        {"system_prompt": "Be brief.", "chosen": [ASK, BLUE], "rejected": [ASK, GREEN]},
        [SYSTEM, ASK],
    ),
    "a system message in the answers only": (
        {"prompt": [ASK], "chosen": [SYSTEM, ASK, BLUE], "rejected": [SYSTEM, ASK, GREEN]},
        [SYSTEM, ASK],
    ),
    "a system message in the prompt only": (
        {"prompt": [SYSTEM, ASK], "chosen": [ASK, BLUE], "rejected": [GREEN]},
        [SYSTEM, ASK],
    ),
    "columns that another file has": ({"prompt": None, "question": ASK["content"], **ANSWERS}, [ASK]),
    "other names of roles": (
        {
            "conversations": [{"from": "System", "value": "Be brief."}, {"from": "Human", "value": ASK["content"]}],
            "chosen": {"role": "Assistant", "content": "It is blue."},
            "rejected": {"role": "model", "content": "It is green."},
        },
        [SYSTEM, ASK],
    ),
    "messages as JSON text": (
        {"prompt": json.dumps([SYSTEM, ASK]), "chosen": json.dumps([BLUE]), "rejected": json.dumps(GREEN)},
        [SYSTEM, ASK],
    ),
    "keys that Arrow adds": (
        {
            "prompt": [ASK | {"tool_calls": None, "name": None, "from": None}],
            "chosen": [BLUE | {"tool_calls": None}],
            "rejected": [GREEN | {"name": None}],
        },
        [ASK],
    ),
    "content in parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": ASK["content"], "image": None}]}], **ANSWERS},
        [ASK],
    ),
    "arrays of numpy": (
        {
            "prompt": np.array([SYSTEM, ASK]),
            "chosen": np.array([BLUE]),
            "rejected": np.array([GREEN]),
            "x": np.int64(3),
        },
        [SYSTEM, ASK],
    ),
    "a row of pandas": (pd.Series({"question": ASK["content"], "system": float("nan"), **ANSWERS}), [ASK]),
    "pandas' empty values": ({"question": ASK["content"], "system": pd.NA, **ANSWERS}, [ASK]),
}


@pytest.mark.parametrize(("row", "prompt"), PUBLIC.values(), ids=PUBLIC)
def test_the_columns_of_public_data_sets_are_known(row, prompt):
    assert has_known_columns(row)
    pair = parse_row(row)
    assert pair == Preference(prompt, [BLUE], [GREEN])
    assert not pair.is_guessed
    assert not read_columns(row).suspects or "labelling_prompt" in row


def test_texts_that_are_no_messages_stay_text():
    config = '{"role": "admin", "name": "x"}'
    pair = parse_row({"prompt": "Write JSON.", "chosen": config, "rejected": "[1, 2]"})
    assert (pair.chosen, pair.rejected) == (config, "[1, 2]")


def test_pku_prefers_the_better_response():
    row = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0}
    assert parse_row(row) == Preference("p", "b", "a")
    assert read_columns(row).unread == ("safer_response_id",)


def test_the_prompt_of_a_transcript_ends_where_the_last_answer_begins():
    """Anthropic/hh-rlhf. Both answers begin with the same words, which belong to no prompt."""
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What color?\n\nAssistant:"
    pair = parse_row({"chosen": f"{start} It is blue.", "rejected": f"{start} It is green."})
    assert pair == Preference(start, " It is blue.", " It is green.")
    assert not pair.is_guessed
    unlike = {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"}
    assert parse_row(unlike) == Skip("no prompt")


def test_a_guess_and_what_is_not_read_are_told():
    row = {"chosen": "The sky is blue.", "rejected": "The sky is green.", "model": "m", "rating": 3, "chosen_text": "t"}
    assert parse_row(row).is_guessed
    assert read_columns(row).unread == ("model", "rating", "chosen_text")
    columns = read_columns({"prompt": "p", "system": "s", "context": "c", "topic": "t", **ANSWERS})
    assert (columns.prompt, columns.unread, columns.suspects) == (
        ("prompt", "system"),
        ("context", "topic"),
        ("context",),
    )


@pytest.mark.parametrize(
    ("name", "is_suspect"),
    [
        ("query", True),
        ("source_text", True),
        ("userInput", True),
        ("Article", True),
        ("prompt_id", False),
        ("prompt_source", False),
        ("score", False),
        ("input_tokens", False),
        ("contextual", False),
    ],
)
def test_a_column_that_may_hold_the_prompt_stands_out_by_its_name(name, is_suspect):
    assert bool(read_columns({"prompt": "p", name: "text", **ANSWERS}).suspects) == is_suspect
    assert not read_columns({"prompt": "p", name: 5, **ANSWERS}).suspects


def test_a_prompt_that_answers_repeat_is_counted():
    row = {"prompt": "What color is the sky?", "chosen": "What color is the sky? Blue.", "rejected": "Green."}
    assert not parse_row(row).repeats_prompt
    assert parse_row(row | {"rejected": "What color is the sky? Green."}).repeats_prompt


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
        {"chosen": [ASK, BLUE, *HELLO], "rejected": [ASK, GREEN]},
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
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], **ANSWERS}, "content that is not text"),
        ({"prompt": [{"role": "user", "content": ["p"]}], **ANSWERS}, "wrong type"),
        ({"prompt": [ASK], "images": ["a.png"], **ANSWERS}, "has images"),
        ({"prompt": [SYSTEM], "system": "Be long.", **ANSWERS}, "the system column and the system message differ"),
        ({"prompt": "p", "system": "a", "system_prompt": "b", **ANSWERS}, "two system columns that differ"),
        ({"prompt": [ASK], "chosen": [*HELLO[:1], BLUE], "rejected": [GREEN]}, "an answer begins with the role user"),
        ({"prompt": [ASK], "chosen": [BLUE, ASK], "rejected": [GREEN]}, "an answer ends with the role user"),
        ({"prompt": [ASK], "chosen": [BLUE], "rejected": [GREEN, SYSTEM]}, "an answer ends with the role system"),
        (
            {"prompt": [ASK], "chosen": [{"role": "critic", "content": "x"}], "rejected": [GREEN]},
            "an answer begins with the role critic",
        ),
        (
            {"prompt": "[{'role': 'user', 'content': 'p'}]", **ANSWERS},
            "messages as Python writes them: write them as JSON",
        ),
        ({"prompt": float("nan"), **ANSWERS}, "no prompt"),
        ({"prompt": " ", **ANSWERS}, "no prompt"),
        ({"system": "Be brief.", "chosen": "It is a", "rejected": "It is b"}, NO_PROMPT_COLUMN),
        ({"article": "The sky.", "chosen": "It is a", "rejected": "It is b"}, NO_PROMPT_COLUMN),
        (
            {"context": [ASK], "response1": "a", "response2": "b", "overall_preference": 0},
            "neither answer is preferred",
        ),
        ({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 2}, "neither answer is preferred"),
        ({"instruction": "p", "history": [["Hi"]], **ANSWERS}, "wrong type"),
        ({"instruction": "p", "history": "Hi", **ANSWERS}, "wrong type"),
        ({"prompt": "p", "tools": "[", **ANSWERS}, "wrong type"),
        ({"prompt": "p", "chat_template_kwargs": "[", **ANSWERS}, "wrong type"),
    ],
)
def test_a_row_that_is_not_a_pair_gives_the_reason(row, reason):
    assert parse_row(row) == Skip(reason)
