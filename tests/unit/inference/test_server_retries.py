"""Retries of the engine for OpenAI servers, against a server that misbehaves."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from pipeline.config import UserError
from pipeline.config.servers import ServedModel
from pipeline.inference.base import count_tokens
from pipeline.inference.openai_server import retry_after
from tests.helpers.chat_server import ChatServer, chat_prompt, engine_at, reply_text


@pytest.fixture
def server():
    with ChatServer(reply_text) as running:
        yield running


@pytest.mark.parametrize("fault", ["busy", "broken", "hang", "cut", "short", "reset", "shape", "list", "fewer", "drip"])
def test_what_passes_is_tried_again(server, fault):
    replies = engine_at(server, timeout=1).generate(
        [chat_prompt("one"), chat_prompt(f"{fault}: two"), chat_prompt("three")]
    )
    assert [reply.samples[0].text for reply in replies] == ["said 0"] * 3
    assert server.tries == {"one": 1, f"{fault}: two": 2, "three": 1}
    assert count_tokens(replies)["retries"] == 1


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [
        ("broken", "HTTP 500", 6),
        ("hang", "timed out", 6),
        ("drip", "timed out", 6),
        ("cut", "reply unreadable", 6),
        ("short", "connection failed", 6),
        ("reset", "connection failed", 6),
        ("shape", "reply unreadable", 6),
        ("fewer", "reply unreadable", 6),
        ("tomorrow", "HTTP 429", 2),
        ("poison", "HTTP 400", 1),
        ("filter", "content filter", 1),
        ("refusal_of_model", "refused by the model", 1),
    ],
)
def test_what_does_not_pass_costs_its_own_prompt_alone(server, fault, reason, tries):
    poisonous = f"{fault}!: secret words"
    replies = engine_at(server, timeout=0.5).generate(
        [chat_prompt("one"), chat_prompt(poisonous), chat_prompt("three")]
    )
    assert [reply.error for reply in replies] == [None, reason, None]
    assert server.tries[poisonous] == tries, (
        "as often as is asked for, and so once more if it may be the server's fault"
    )
    assert [len(reply.samples) for reply in replies] == [1, 0, 1]


@pytest.mark.parametrize(("fault", "least", "most"), [("busy", 1.25, 2.0), ("until", 1.15, 3.5)])
def test_the_server_says_how_much_later_to_come_again(server, fault, least, most):
    (reply,) = engine_at(server).generate([chat_prompt(f"{fault}: x")])
    first, second = server.times[f"{fault}: x"]
    assert reply.error is None
    assert least <= second - first < most


def test_waits_grow_and_differ(server):
    several = [chat_prompt(f"broken!: {i}") for i in range(4)]
    engine_at(server, tries=4).generate([chat_prompt("one"), *several])
    firsts = [times[:4] for times in server.times.values() if len(times) > 3]  # before they are asked once more
    waits = [[b - a for a, b in itertools.pairwise(times)] for times in firsts]
    for first, second, third in waits:
        assert 0.25 <= first < 0.75
        assert 0.5 <= second < 1.25
        assert 1.0 <= third < 2.25
    assert len({round(line[2], 3) for line in waits}) > 1


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


def test_no_more_at_a_time_than_asked_and_never_fewer_while_some_wait():
    """A prompt that hangs holds up one place of four: in waves of four, only three others would come beside it."""
    with ChatServer(reply_text, delay=0.05) as server:
        patient = engine_at(server, concurrency=4, timeout=3, tries=1)
        replies = patient.generate([chat_prompt("hang!: x"), *(chat_prompt(f"{i}") for i in range(36))])
        hung, _ = server.times.pop("hang!: x")
        *others, _ = server.times.values()  # the last is whether the server serves anything at all
        assert max(others) < [hung + 3]
        assert server.most == 4
        assert [reply.error for reply in replies] == ["timed out"] + [None] * 36
        with ThreadPoolExecutor(3) as threads:  # calls under way together share the bound
            list(threads.map(patient.generate, [[chat_prompt(f"{k} {i}") for i in range(8)] for k in range(3)]))
        assert server.most == 4


def test_a_server_that_is_gone_stops_the_run_and_not_a_row_after_the_other():
    with ChatServer(reply_text) as server:
        tried = engine_at(server, concurrency=2, tries=2)
        assert tried.generate([chat_prompt()])[0].error is None
    began = time.monotonic()
    with pytest.raises(UserError, match=r"served none of \d+ prompts in a row \(connection failed\)"):
        tried.generate([chat_prompt(f"{i}") for i in range(5000)])
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("prompts", [1, 7, 18])  # 18: as many as it takes not to try the next
def test_a_server_that_is_gone_costs_no_prompt_of_a_small_batch(prompts):
    with ChatServer(reply_text) as server:
        tried = engine_at(server, concurrency=2, tries=1)
    with pytest.raises(UserError, match=r"served none of \d+ prompts in a row \(connection failed\): when it serves"):
        tried.generate([chat_prompt(f"{i}") for i in range(prompts)])


def test_prompts_that_alone_are_not_served_are_their_own_fault(server):
    tried = engine_at(server, tries=1)
    for _ in range(3):  # batches of nothing else
        assert [reply.error for reply in tried.generate([chat_prompt("broken!: x"), chat_prompt("reset!: y")])] == [
            "HTTP 500",
            "connection failed",
        ]
    assert server.tries["Reply with one word."] == 6, "before they are asked again, and before they are given up"
    assert [reply.error for reply in tried.generate([chat_prompt("poison!: z"), chat_prompt("one")])] == [
        "HTTP 400",
        None,
    ]
    assert server.tries["Reply with one word."] == 6


@pytest.mark.parametrize("down", [0.1, 0.9, 1.6])
def test_a_server_that_is_gone_for_a_while_costs_no_prompt(server, down):
    """Longer than the prompts under way are tried for, and shorter than it takes to call the server gone."""
    tried = engine_at(server, concurrency=4, tries=2)
    server.down(down)
    replies = tried.generate([chat_prompt(f"{i}") for i in range(60)])
    assert [reply.error for reply in replies] == [None] * 60
    assert max(server.tries.values()) > 2 or down < 0.5, "or the second try would have been enough"


def test_what_was_paid_for_is_counted_whatever_came_of_it(server):
    prices = {"judge": {"input": 1, "output": 1}}
    served = ServedModel(server="ours", structured_outputs="json_schema")
    once, never = (
        count_tokens(engine_at(server, served, prices=prices).generate([chat_prompt(text, regex="Q1 A")]))
        for text in ("prose: x", "prose!: x")
    )
    assert once == {"tokens_in": 16, "tokens_cached": 6, "tokens_out": 10, "retries": 1, "micro_usd": 26}
    assert never == {"tokens_in": 54, "tokens_cached": 18, "tokens_out": 30, "retries": 4, "micro_usd": 84}
    (reply,) = engine_at(server).generate([chat_prompt("endless: x")])
    assert (reply.error, reply.usage["tokens_in"]) == (None, 1 << 31), "no table holds more"


def test_poisonous_prompts_in_a_row_stop_nothing(server):
    replies = engine_at(server, concurrency=1).generate(
        [*(chat_prompt(f"poison!: {i}") for i in range(40)), chat_prompt("fine")]
    )
    assert [reply.error for reply in replies] == ["HTTP 400"] * 40 + [None]
