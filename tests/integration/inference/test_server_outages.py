"""How long the engine for OpenAI servers waits between tries, and when it gives up: in real seconds."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.config import UserError
from pipeline.config.servers import ServedModel
from pipeline.inference.base import count_tokens
from tests.helpers.chat_server import ChatServer, chat_prompt, engine_at, reply_text


@pytest.fixture
def server():
    with ChatServer(reply_text) as running:
        yield running


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
def test_a_permanent_failure_costs_only_its_own_prompt(server, fault, reason, tries):
    poisonous = f"{fault}!: secret words"
    replies = engine_at(server, timeout=0.5).generate(
        [chat_prompt("one"), chat_prompt(poisonous), chat_prompt("three")]
    )
    assert [reply.error for reply in replies] == [None, reason, None]
    assert server.tries[poisonous] == tries, "all tries, and all of them once more if the server may be at fault"
    assert [len(reply.samples) for reply in replies] == [1, 0, 1]


@pytest.mark.parametrize(("fault", "least", "most"), [("busy", 1.25, 2.0), ("until", 1.15, 3.5)])
def test_retry_after_is_waited_for(server, fault, least, most):
    (reply,) = engine_at(server).generate([chat_prompt(f"{fault}: x")])
    first, second = server.times[f"{fault}: x"]
    assert reply.error is None
    assert least <= second - first < most


def test_backoff_grows_and_has_jitter(server):
    several = [chat_prompt(f"broken!: {i}") for i in range(4)]
    engine_at(server, tries=4).generate([chat_prompt("one"), *several])
    firsts = [times[:4] for times in server.times.values() if len(times) > 3]  # before all tries are made once more
    waits = [[b - a for a, b in itertools.pairwise(times)] for times in firsts]
    for first, second, third in waits:
        assert 0.25 <= first < 0.75
        assert 0.5 <= second < 1.25
        assert 1.0 <= third < 2.25
    assert len({round(three_waits[2], 3) for three_waits in waits}) > 1


def test_exactly_concurrency_requests_are_in_flight_while_prompts_wait():
    """A prompt that hangs takes one of four slots. In waves of four, only three other prompts would pass it."""
    with ChatServer(reply_text, delay=0.05) as server:
        engine = engine_at(server, concurrency=4, timeout=3, tries=1)
        replies = engine.generate([chat_prompt("hang!: x"), *(chat_prompt(f"{i}") for i in range(36))])
        hung, _ = server.times.pop("hang!: x")
        *others, _ = server.times.values()  # the last is the probe whether the server serves anything at all
        assert max(others) < [hung + 3]
        assert server.most_in_flight == 4
        assert [reply.error for reply in replies] == ["timed out"] + [None] * 36
        with ThreadPoolExecutor(3) as threads:  # concurrent calls share the limit
            list(threads.map(engine.generate, [[chat_prompt(f"{k} {i}") for i in range(8)] for k in range(3)]))
        assert server.most_in_flight == 4


def test_a_server_that_is_down_stops_the_run_before_every_row_is_tried():
    with ChatServer(reply_text) as server:
        engine = engine_at(server, concurrency=2, tries=2)
        assert engine.generate([chat_prompt()])[0].error is None
    started = time.monotonic()
    with pytest.raises(UserError, match=r"served none of \d+ prompts in a row \(connection failed\)"):
        engine.generate([chat_prompt(f"{i}") for i in range(5000)])
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("down", [0.1, 0.9, 1.6])
def test_a_server_that_is_down_for_a_while_costs_no_prompt(server, down):
    """Down for longer than a prompt's tries take, but not long enough for the server to count as down."""
    engine = engine_at(server, concurrency=4, tries=2)
    server.down(down)
    replies = engine.generate([chat_prompt(f"{i}") for i in range(60)])
    assert [reply.error for reply in replies] == [None] * 60
    assert max(server.tries.values()) > 2 or down < 0.5, "otherwise the second try would have been enough"


REPLIED, NO_REPLY = {"replies": 1, "replies cut off": 0}, {"replies": 0, "replies cut off": 0}


def test_tokens_of_failed_tries_are_counted(server):
    prices = {"judge": {"input": 1, "output": 1}}
    served = ServedModel(server="ours", structured_outputs="json_schema")
    once, never = (
        count_tokens(engine_at(server, served, prices=prices).generate([chat_prompt(text, regex="Q1 A")]))
        for text in ("prose: x", "prose!: x")
    )
    assert once == {"tokens_in": 16, "tokens_cached": 6, "tokens_out": 10, "retries": 1, "micro_usd": 26, **REPLIED}
    assert never == {"tokens_in": 54, "tokens_cached": 18, "tokens_out": 30, "retries": 4, "micro_usd": 84, **NO_REPLY}
    (reply,) = engine_at(server).generate([chat_prompt("endless: x")])
    assert (reply.error, reply.usage["tokens_in"]) == (None, 1 << 31), "no table holds more"
