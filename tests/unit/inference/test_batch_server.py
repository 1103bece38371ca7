"""Prompts that are sent by a batch API: every request is answered and paid for once, also after a kill."""

import threading
import time

import pytest

from pipeline.config import UserError
from pipeline.config.hardware import Hardware, Server
from pipeline.config.servers import ServedModel
from pipeline.inference.base import MICRO_USD, RETRIES
from pipeline.inference.server import batch_server
from pipeline.inference.server.server_check import check_server
from tests.helpers.chat_server import BatchServer, ChatServer, batch_engine, chat_prompt, engine_at, reply_text

PROMPTS = [chat_prompt(f"{name} text") for name in "abcdef"]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(batch_server, "_FIRST_WAIT", 0.02)
    with BatchServer(lambda prompt, sample: f"{prompt.messages[0]['content']} {sample}") as server:
        yield server


def texts(replies):
    return [sample.text for reply in replies for sample in reply.samples]


def test_replies_are_those_of_single_requests_at_the_batch_price(server):
    prices = {"judge": {"input": 2, "cached": 1, "output": 10}}
    prompts = [*PROMPTS, PROMPTS[0], chat_prompt("more", n=3, logprobs=True)]
    single = engine_at(server, prices=prices).generate(prompts)
    batch = batch_engine(server, prices=prices).generate(prompts)

    assert [reply.samples for reply in batch] == [reply.samples for reply in single]
    assert len(server.requests) == len(prompts)  # equal prompts too
    for reply, full in zip(batch, single, strict=True):
        assert reply.usage[MICRO_USD] == pytest.approx(full.usage[MICRO_USD] / 2, abs=1)


def test_a_killed_run_takes_up_its_batches(server):
    server.held = True
    threading.Thread(target=batch_engine(server).generate, args=(PROMPTS[:4],), daemon=True).start()
    while not server.batches:
        time.sleep(0.01)
    server.held = False
    # The next engine gets the rows in other groups, some of them new.
    engine = batch_engine(server)
    assert texts(engine.generate(PROMPTS[3:])) == ["d text 0", "e text 0", "f text 0"]
    assert texts(engine.generate(PROMPTS[:3])) == ["a text 0", "b text 0", "c text 0"]
    assert len(server.requests) == len(set(server.requests)) == len(PROMPTS)
    # Another run at the same account has its own.
    batch_engine(server, run="runs/b").generate(PROMPTS)
    assert len(server.requests) == 2 * len(PROMPTS)


def test_a_batch_whose_answer_was_lost_is_not_made_again(server):
    server.loses_answers = 1
    assert len(texts(batch_engine(server).generate(PROMPTS))) == len(PROMPTS)
    assert len(server.batches) == 1


def test_what_a_batch_did_not_serve_is_in_the_next(server):
    server.serves = 4
    prompts = [PROMPTS[0], chat_prompt("poison"), chat_prompt("broken"), *PROMPTS[1:]]
    replies = batch_engine(server).generate(prompts)

    assert [reply.error for reply in replies] == [None, "HTTP 400", *[None] * 6]
    assert texts(replies) == ["a text 0", "broken 0", *(f"{name} text 0" for name in "bcdef")]
    assert [len(batch["requests"]) for batch in server.batches.values()] == [8, 5]
    assert [reply.usage.get(RETRIES, 0) for reply in replies] == [0, 0, 1, 0, 1, 1, 1, 1]


def test_requests_that_no_batch_serves_cost_only_their_rows(server):
    replies = batch_engine(server).generate([PROMPTS[0], chat_prompt("mute 1"), chat_prompt("mute 2")])
    assert [reply.error for reply in replies] == [None, "reply unreadable", "reply unreadable"]
    # Each try was billed.
    assert [reply.usage["tokens_in"] for reply in replies] == [6, 18, 18]
    assert [len(batch["requests"]) for batch in server.batches.values()] == [3, 2, 2]


def test_a_server_that_serves_nothing_stops_the_run(server):
    server.serves = 0
    with pytest.raises(UserError, match=r"served none of 6 requests of a batch \(left out of a batch\): when it works"):
        batch_engine(server).generate(PROMPTS)


def test_a_refused_batch_stops_the_run_and_is_made_again(server):
    server.refuses_batches = True
    with pytest.raises(UserError, match=r"refuses a batch \(token_limit_exceeded\)$"):
        batch_engine(server).generate(PROMPTS)
    server.refuses_batches = False
    assert len(texts(batch_engine(server).generate(PROMPTS))) == len(PROMPTS)
    assert len(server.batches) == 2


def test_another_api_under_the_same_names_is_told_in_one_line(server):
    engine = batch_engine(server)
    engine._list = lambda: iter([{"metadata": {"rondo": engine.key}}])
    with pytest.raises(UserError, match="answers in another form than OpenAI's .KeyError.: set batch to false"):
        engine.generate(PROMPTS)


def test_a_batch_has_no_more_requests_than_the_server_allows(server, monkeypatch):
    monkeypatch.setattr(batch_server, "_MAX_REQUESTS", 4)
    assert len(texts(batch_engine(server).generate(PROMPTS))) == len(PROMPTS)
    assert [len(batch["requests"]) for batch in server.batches.values()] == [4, 2]


def test_a_server_without_a_batch_api_is_refused_before_a_run():
    with ChatServer(reply_text) as server:
        hardware = Hardware(servers={"ours": Server(base_url=server.url, batch=True)})
        with pytest.raises(UserError, match=r"hardware.servers.ours.batch is true, and .* has no batch API"):
            check_server("judge", "judge", ServedModel(server="ours"), hardware)


def test_settings_without_effect_are_refused():
    with pytest.raises(ValueError, match="batch_price, and batch is false"):
        Server(base_url="http://x", batch_price=0.4)
    with pytest.raises(ValueError, match="batch and concurrency"):
        Server(base_url="http://x", batch=True, concurrency=8)
