"""Retries of the engine for OpenAI servers, against a server that misbehaves."""

from datetime import UTC, datetime

import pytest

from pipeline.config import UserError
from pipeline.inference.base import count_tokens
from pipeline.inference.server.openai_server import retry_after
from tests.helpers.chat_server import ChatServer, chat_prompt, engine_at, reply_text


@pytest.fixture
def server():
    with ChatServer(reply_text) as running:
        yield running


@pytest.mark.parametrize("fault", ["busy", "broken", "hang", "cut", "short", "reset", "shape", "list", "fewer", "drip"])
def test_a_temporary_failure_is_retried(server, fault):
    replies = engine_at(server, timeout=1).generate(
        [chat_prompt("one"), chat_prompt(f"{fault}: two"), chat_prompt("three")]
    )
    assert [reply.samples[0].text for reply in replies] == ["said 0"] * 3
    assert server.tries == {"one": 1, f"{fault}: two": 2, "three": 1}
    assert count_tokens(replies)["retries"] == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", 0.0),
        ("1e999", 0.0),
        ("soon", 0.0),
        ("Fri, 20 Nov 99999999999999 12:00:30 GMT", 0.0),
        ("Fri, 20 Nov 2026 12:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 12:00:30 -0000", 30.0),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
    ],
)
def test_retry_after_in_seconds_or_as_a_date(header, seconds):
    assert retry_after(header, datetime(2026, 11, 20, 12, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("prompts", [1, 7, 18])  # 18: after so many failures, no further prompt is tried
def test_a_server_that_is_down_costs_no_prompt_of_a_small_batch(prompts):
    with ChatServer(reply_text) as server:
        engine = engine_at(server, concurrency=2, tries=1)
    with pytest.raises(
        UserError, match=r"served none of \d+ prompts in a row \(connection failed\): when it works again"
    ):
        engine.generate([chat_prompt(f"{i}") for i in range(prompts)])


def test_prompts_that_fail_while_the_server_serves_others_get_errors(server):
    engine = engine_at(server, tries=1)
    for _ in range(3):  # each batch has only such prompts
        assert [reply.error for reply in engine.generate([chat_prompt("broken!: x"), chat_prompt("reset!: y")])] == [
            "HTTP 500",
            "connection failed",
        ]
    assert server.tries["Reply with one word."] == 6, "one probe before the second tries, and one before giving up"
    assert [reply.error for reply in engine.generate([chat_prompt("poison!: z"), chat_prompt("one")])] == [
        "HTTP 400",
        None,
    ]
    assert server.tries["Reply with one word."] == 6


def test_many_refused_prompts_in_a_row_do_not_stop_the_run(server):
    replies = engine_at(server, concurrency=1).generate(
        [*(chat_prompt(f"poison!: {i}") for i in range(40)), chat_prompt("fine")]
    )
    assert [reply.error for reply in replies] == ["HTTP 400"] * 40 + [None]
