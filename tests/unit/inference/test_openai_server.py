"""HttpEngine against a server of ours that misbehaves, and against vLLM's own server with the newsroom judge."""

import itertools
import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import httpx
import pytest

from judges.base import Prompt, Question, line_logps, user
from judges.mcq import McqJudge
from judges.prompts import NEWSROOM
from pipeline.config import UserError, hardware
from pipeline.config.loader import load_config
from pipeline.config.servers import ComparedModel, ServedModel
from pipeline.inference.base import count_tokens
from pipeline.inference.openai_server import OpenAIServerEngine, retry_after
from pipeline.inference.server_check import check_server
from pipeline.judging.scoring import score_summaries
from tests.helpers.chat_server import KEY, Server
from tests.helpers.cli import rondo
from tests.helpers.paths import DEMO, ROOT
from tests.helpers.paths import JUDGE_MODEL as JUDGE
from tests.helpers.tables import write_table


def script(prompt, sample):
    return "Q1 A" if prompt.regex else f"said {sample}"


@pytest.fixture
def server():
    with Server(script) as running:
        yield running


def engine(server, served=None, **settings):
    quick = {"timeout": 2, "tries": 3} | settings
    return OpenAIServerEngine(
        "judge", served or ServedModel(server="ours"), hardware.Server(base_url=server.url, **quick)
    )


def ask(text="hello", **changes):
    return Prompt(user(text), max_tokens=20, **changes)


@pytest.mark.parametrize("fault", ["busy", "broken", "hang", "cut", "short", "reset", "shape", "list", "fewer", "drip"])
def test_what_passes_is_tried_again(server, fault):
    replies = engine(server, timeout=1).generate([ask("one"), ask(f"{fault}: two"), ask("three")])
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
    replies = engine(server, timeout=0.5).generate([ask("one"), ask(poisonous), ask("three")])
    assert [reply.error for reply in replies] == [None, reason, None]
    assert server.tries[poisonous] == tries, (
        "as often as is asked for, and so once more if it may be the server's fault"
    )
    assert [len(reply.samples) for reply in replies] == [1, 0, 1]


@pytest.mark.parametrize(("fault", "least", "most"), [("busy", 1.25, 2.0), ("until", 1.15, 3.5)])
def test_the_server_says_how_much_later_to_come_again(server, fault, least, most):
    (reply,) = engine(server).generate([ask(f"{fault}: x")])
    first, second = server.times[f"{fault}: x"]
    assert reply.error is None
    assert least <= second - first < most


def test_waits_grow_and_differ(server):
    several = [ask(f"broken!: {i}") for i in range(4)]
    engine(server, tries=4).generate([ask("one"), *several])
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
    with Server(script, delay=0.05) as server:
        patient = engine(server, concurrency=4, timeout=3, tries=1)
        replies = patient.generate([ask("hang!: x"), *(ask(f"{i}") for i in range(36))])
        hung, _ = server.times.pop("hang!: x")
        *others, _ = server.times.values()  # the last is whether the server serves anything at all
        assert max(others) < [hung + 3]
        assert server.most == 4
        assert [reply.error for reply in replies] == ["timed out"] + [None] * 36
        with ThreadPoolExecutor(3) as threads:  # calls under way together share the bound
            list(threads.map(patient.generate, [[ask(f"{k} {i}") for i in range(8)] for k in range(3)]))
        assert server.most == 4


def test_a_server_that_is_gone_stops_the_run_and_not_a_row_after_the_other():
    with Server(script) as server:
        tried = engine(server, concurrency=2, tries=2)
        assert tried.generate([ask()])[0].error is None
    began = time.monotonic()
    with pytest.raises(UserError, match=r"served none of \d+ prompts in a row \(connection failed\)"):
        tried.generate([ask(f"{i}") for i in range(5000)])
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("prompts", [1, 7, 18])  # 18: as many as it takes not to try the next
def test_a_server_that_is_gone_costs_no_prompt_of_a_small_batch(prompts):
    with Server(script) as server:
        tried = engine(server, concurrency=2, tries=1)
    with pytest.raises(UserError, match=r"served none of \d+ prompts in a row \(connection failed\): when it serves"):
        tried.generate([ask(f"{i}") for i in range(prompts)])


def test_prompts_that_alone_are_not_served_are_their_own_fault(server):
    tried = engine(server, tries=1)
    for _ in range(3):  # batches of nothing else
        assert [reply.error for reply in tried.generate([ask("broken!: x"), ask("reset!: y")])] == [
            "HTTP 500",
            "connection failed",
        ]
    assert server.tries["Reply with one word."] == 6, "before they are asked again, and before they are given up"
    assert [reply.error for reply in tried.generate([ask("poison!: z"), ask("one")])] == ["HTTP 400", None]
    assert server.tries["Reply with one word."] == 6


@pytest.mark.parametrize("down", [0.1, 0.9, 1.6])
def test_a_server_that_is_gone_for_a_while_costs_no_prompt(server, down):
    """Longer than the prompts under way are tried for, and shorter than it takes to call the server gone."""
    tried = engine(server, concurrency=4, tries=2)
    server.down(down)
    replies = tried.generate([ask(f"{i}") for i in range(60)])
    assert [reply.error for reply in replies] == [None] * 60
    assert max(server.tries.values()) > 2 or down < 0.5, "or the second try would have been enough"


def test_what_was_paid_for_is_counted_whatever_came_of_it(server):
    prices = {"judge": {"input": 1, "output": 1}}
    served = ServedModel(server="ours", structured_outputs="json_schema")
    once, never = (
        count_tokens(engine(server, served, prices=prices).generate([ask(text, regex="Q1 A")]))
        for text in ("prose: x", "prose!: x")
    )
    assert once == {"tokens_in": 16, "tokens_cached": 6, "tokens_out": 10, "retries": 1, "micro_usd": 26}
    assert never == {"tokens_in": 54, "tokens_cached": 18, "tokens_out": 30, "retries": 4, "micro_usd": 84}
    (reply,) = engine(server).generate([ask("endless: x")])
    assert (reply.error, reply.usage["tokens_in"]) == (None, 1 << 31), "no table holds more"


def test_poisonous_prompts_in_a_row_stop_nothing(server):
    replies = engine(server, concurrency=1).generate([*(ask(f"poison!: {i}") for i in range(40)), ask("fine")])
    assert [reply.error for reply in replies] == ["HTTP 400"] * 40 + [None]


def test_samples_log_probabilities_usage_and_cost(server):
    prices = {"judge": {"input": 2.5, "cached": 1.25, "output": 10}}
    (reply,) = engine(server, prices=prices).generate([ask("four", n=3, temperature=0.7, top_p=0.9, logprobs=True)])
    assert [sample.text for sample in reply.samples] == ["said 0", "said 1", "said 2"]
    assert [sample.logp for sample in reply.samples] == [-7.0] * 3
    assert reply.samples[1].token_logps == [*((letter, -1.0) for letter in "said 1"), ("", -1.0)]
    assert (reply.prompt_ids, reply.samples[0].token_ids, reply.cached_tokens) == ([], [], 3)
    cost = round((4 - 3) * 2.5 + 3 * 1.25 + 21 * 10)
    assert count_tokens([reply]) == {"tokens_in": 4, "tokens_cached": 3, "tokens_out": 21, "micro_usd": cost}
    assert {name: server.bodies[0][name] for name in ("n", "temperature", "top_p", "max_tokens", "logprobs")} == {
        "n": 3, "temperature": 0.7, "top_p": 0.9, "max_tokens": 20, "logprobs": True,
    }  # fmt: skip


@pytest.mark.parametrize("form", ["regex", "json_schema", None])
def test_the_form_of_a_reply_is_asked_for_as_the_server_can(server, form):
    served = ServedModel(server="ours", structured_outputs=form, extra_body={"seed": 7, "top_p": None})
    replies = engine(server, served).generate([ask("free"), ask("held", regex="Q1 [A-E]")])
    assert [reply.samples[0].text for reply in replies] == ["said 0", "Q1 A" if form else "said 0"]
    bodies = {body["messages"][0]["content"]: body for body in server.bodies}
    assert not {"structured_outputs", "response_format", "top_p"} & bodies["free"].keys()
    assert bodies["held"]["seed"] == 7
    assert bodies["held"].get("structured_outputs") == ({"regex": "Q1 [A-E]"} if form == "regex" else None)
    if form == "json_schema":
        pattern = bodies["held"]["response_format"]["json_schema"]["schema"]["properties"]["reply"]["pattern"]
        assert pattern == "^(Q1 [A-E])$"


def test_tokens_of_json_are_not_those_of_the_reply(server):
    served = ServedModel(server="ours", structured_outputs="json_schema")
    (reply,) = engine(server, served).generate([ask("held", regex="Q1 A", logprobs=True)])
    assert reply.samples[0].token_logps is None


def test_a_held_reply_that_was_cut_off_is_left_unread(server):
    served = ServedModel(server="ours", structured_outputs="json_schema")
    (reply,) = engine(server, served).generate([replace(ask("held", regex="Q1 A"), max_tokens=2)])
    assert reply.samples[0].finish_reason == "length"


def test_judging_keeps_the_row_and_says_why_a_summary_has_no_answers():
    def answers(prompt, sample):
        return "Q1 A"

    with Server(answers) as server:
        question = {"question_id": "q", "question": "Who?", "options": ["Ana", "Ben"], "answer": 0}
        summaries = [{"text": "Ana came."}, {"text": "too long " * 500}]
        row = {"article_id": "a", "article": "Ana came.", "questions": [question], "summaries": summaries}
        (outcome,) = score_summaries(McqJudge(questions=1, options=2), engine(server), [row])
    assert [score["answers"] for score in outcome["scores"]] == [["A"], [None]]
    assert outcome["tally"]["no reply: prompt too long"] == 1
    assert outcome["tally"]["unread"] == 1


def _scored(tmp_path, **place):
    """Thirty rows through a served judge under Ray Data, written as a stage's are."""
    from pipeline.config import run
    from pipeline.execution.resources import _served
    from pipeline.inference.pool import EnginePool
    from pipeline.stages.scores import score_samples
    from pipeline.storage.schema import to_dataset

    question = {"question_id": "q", "question": "Who?", "options": ["Ana", "Ben"], "answer": 0}
    rows = [
        {
            "article_id": f"a{i}",
            "article": "Ana came.",
            "split": "train",
            "questions": [question],
            "summaries": [{"text": f"Ana {i}", "token_ids": [1], "finish_reason": "stop", "logp": None}],
        }
        for i in range(30)
    ]
    pool = EnginePool(
        partial(_served, "judge", ServedModel(server="ours"), hardware.Server(tries=2, concurrency=4, **place)),
        hardware.EngineHardware(),
    )
    settings = run.JudgeSettings(model="judge", questions=1, options=2)
    made = score_samples(to_dataset(rows), judge=settings, seed=0, judge_engine=pool)
    return write_table(made, f"{tmp_path}/scores")


def test_rows_are_judged_at_a_server_under_ray_data(ray_cluster, server, tmp_path):
    prices = {"judge": {"input": 1.0, "output": 1.0}}
    record = _scored(tmp_path, base_url=server.url, prices=prices)
    assert (record["kept"], record["tally"]["unread"], record["tally"]["answers"]) == (30, 0, 30)
    assert record["tally"]["micro_usd"] == record["tally"]["tokens_in"] + record["tally"]["tokens_out"]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (
            {},
            r"^the server at http://127.0.0.1:1/v1 served none of \d+ prompts in a row \(connection failed\): when it",
        ),
        ({"api_key_env": "NO_SUCH_KEY"}, r"^no key for http://127.0.0.1:1/v1: the environment variable NO_SUCH_KEY is"),
    ],
)
def test_what_a_worker_has_to_say_of_a_server_is_told_in_one_line(ray_cluster, tmp_path, place, line):
    with pytest.raises(UserError, match=line) as caught:
        _scored(tmp_path, base_url="http://127.0.0.1:1/v1", **place)
    assert "\n" not in str(caught.value)


# The key


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    said = []
    with Server(script, key=KEY) as server:
        place = hardware.Hardware(servers={"ours": {"base_url": server.url, "api_key_env": "OUR_KEY", "tries": 2}})
        for value in ("", KEY, f"{KEY}x", f"{KEY}\x07", f"{KEY}é"):
            monkeypatch.setenv("OUR_KEY", value)
            try:
                check_server("judge", "judge", ServedModel(server="ours"), place)
                said.append("served")
            except UserError as error:
                said.append(str(error))
        monkeypatch.setenv("OUR_KEY", f"{KEY}\n")  # as `cat` of a file gives it
        tried = OpenAIServerEngine("judge", ServedModel(server="ours"), place.servers["ours"])
        replies = tried.generate([ask(), ask("broken!: x"), ask("poison!: x"), ask("reset!: x")])
        said += [repr(replies), repr(vars(tried)), repr(tried.clients[0].headers)]
        monkeypatch.setenv("OUR_KEY", f"{KEY}x")
        refused = OpenAIServerEngine("judge", ServedModel(server="ours"), place.servers["ours"])
        said.append(place.model_dump_json())
        for prompts in ([ask()], [ask(f"{i}") for i in range(60)]):
            with pytest.raises(UserError, match=r"served none of \d+ prompts in a row \(HTTP 401\)") as caught:
                refused.generate(prompts)
            said.append(str(caught.value))
    assert said[1] == "served"
    assert "OUR_KEY is not set" in said[0]
    assert "which refuses the key in OUR_KEY (HTTP 401)" in said[2]
    assert "OUR_KEY holds what no key can be" in said[3]
    assert "OUR_KEY holds what no key can be" in said[4]
    assert [reply.error for reply in replies] == [None, "HTTP 500", "HTTP 400", "connection failed"]
    everything = " ".join([*said, caplog.text, *capfd.readouterr()])
    assert KEY[:12] not in everything


def settings(*overrides):
    there = "hardware.servers.ours.base_url=http://127.0.0.1:1/v1"
    return load_config(DEMO, ["judge.dtype=bfloat16", "judge.max_model_len=null", there, *overrides])


def test_settings_of_served_models():
    config = settings("judge.served.server=ours", "compare.gpt-4o={model: gpt-4o, server: ours}")
    assert config.judge.served == ServedModel(server="ours")
    assert config.compare == {"gpt-4o": ComparedModel(server="ours", model="gpt-4o")}


def test_a_second_judge_may_need_the_gpus_that_a_served_first_one_has_no_use_for():
    gpu = ["hardware.judge.gpus_per_replica=1", "hardware.ray_cpus=null"]
    assert settings(SERVED, "second_judge={model: m}", *gpu).hardware.judge.gpus_per_replica == 1
    with pytest.raises(UserError, match="hardware.judge has no use for gpus_per_replica"):
        settings(SERVED, "second_judge={model: m, served: {server: ours}}", *gpu)


def test_a_served_judge_is_asked_by_one_actor_whatever_hardware_the_other_judge_has():
    from pipeline.execution.resources import provide_resources

    second = "second_judge={model: m, served: {server: ours}}"
    config = settings(second, "hardware.judge={replicas: 2, gpus_per_replica: 1}", "hardware.ray_cpus=null")
    pool = provide_resources(["second_judge_engine"], config, {}, "root", "address", None)["second_judge_engine"]
    assert (pool.hardware.replicas.max, pool.hardware.gpus_per_replica) == (1, 0)


SERVED = "judge.served.server=ours"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["judge.served.server=theirs"], "judge.served.server is 'theirs', and hardware.servers has ours: describe it"),
        (
            [SERVED, "judge.kind=cloze", "judge.model=null"],
            "judge.kind is cloze, which needs no model, and judge.served",
        ),
        (
            ["second_judge={model: m, served: {server: theirs}}"],
            "second_judge.served.server is 'theirs', and hardware.servers has ours: describe it",
        ),
        ([SERVED, "judge.dtype=float32"], "judge.served is set, and its server decides dtype and max_model_len"),
        ([SERVED, "hardware.judge.gpus_per_replica=1"], "hardware.judge has no use for gpus_per_replica"),
        ([SERVED, "judge.served.structured_outputs=json"], "judge.served.structured_outputs is 'json'"),
        (
            [SERVED, f"judge.served.extra_body={{api_key: {KEY}}}"],
            "extra_body has 'api_key': a key is read from the env",
        ),
        (
            [SERVED, f"judge.served.extra_body={{extra: [{{X-Api-Key: {KEY}}}]}}"],
            "extra_body has 'X-Api-Key': a key is read from the env",
        ),
        ([SERVED, f"judge.served.api_key={KEY}"], "judge.served has no 'api_key'; it has server, structured_outputs"),
        ([SERVED, "judge.served.extra_body={stream: true}"], "extra_body has 'stream', which is ours to say"),
        (["policy.served.server=ours"], "policy.served is set: a server gives neither token ids nor weights"),
        (["policy.base_url=http://x/v1"], "policy.base_url is set: a server gives neither token ids nor weights"),
        (["compare.base={model: m, server: ours}"], "compare has 'base': a column's name is of a-z, 0-9 and -"),
        (["compare.GPT={model: m, server: ours}"], "compare has 'GPT': a column's name is"),
        (["compare.x={model: m, server: theirs}"], "compare.x.server is 'theirs', and hardware.servers has ours"),
        (["compare.x={server: ours}"], "compare.x.model is missing"),
        (["compare.x={model: m, serve: ours}"], "compare.x has no 'serve' (did you mean server?)"),
        (["hardware.servers.ours.api_key_env=sk-Secret.0123456789"], "should be the name of an environment variable"),
        (["hardware.servers.ours.api_key_env=0123456789"], "should be the name of an environment variable"),
        (
            [f"hardware.servers.ours.api_key={KEY}"],
            "hardware.servers.ours has no 'api_key' (did you mean api_key_env?)",
        ),
        (["hardware.servers.ours.base_url=http://u:0123456789@h/v1"], "holds a user, a password or a query"),
        (["hardware.servers.ours.base_url=http://h/v1?key=0123456789"], "holds a user, a password or a query"),
        (["hardware.servers.ours.base_url=host:8000"], "base_url is 'host:8000': it should be an address such as"),
        (["hardware.servers.ours.concurrency=0"], "hardware.servers.ours.concurrency is 0: input should be greater"),
    ],
)
def test_a_wrong_setting_of_a_served_model_is_refused_and_no_key_is_shown(overrides, line):
    with pytest.raises(UserError) as caught:
        settings(*overrides)
    assert line in str(caught.value)
    assert "0123456789" not in str(caught.value)


def test_where_a_server_is_and_how_it_is_asked_is_in_no_recipe(tmp_path):
    from pipeline.execution.dry_run import DryRun
    from pipeline.stages.policy import external_policy
    from pipeline.stages.questions import ask_questions as questions
    from pipeline.storage.ledger import Ledger

    def recipes(*more):
        other = "compare.other={model: m, server: ours}"
        survey = DryRun(settings(SERVED, other, *more), Ledger(str(tmp_path)))
        return [survey.recipe(stage, []) for stage in (questions, external_policy("other"))]

    ours = "hardware.servers.ours"
    moved = [
        f"{ours}.base_url=http://other:9/v1",
        f"{ours}.concurrency=7",
        f"{ours}.timeout=9",
        f"{ours}.api_key_env=K",
    ]
    assert recipes(*moved) == recipes()
    assert recipes("judge.served.structured_outputs=null") != recipes()
    assert recipes("judge.served.extra_body={seed: 1}")[0] != recipes()[0]
    assert recipes("judge.question_temperature=0.5")[0] != recipes()[0]
    assert recipes("compare.other.model=n")[1] != recipes()[1]


# The check before anything starts


def test_a_served_model_is_looked_for_at_its_server(server):
    def checked(model="judge", url=server.url, logprobs=False, **served):
        place = hardware.Hardware(servers={"ours": {"base_url": url}})
        check_server("judge", model, ServedModel(server="ours", **served), place, logprobs)

    checked()
    checked(url=f"{server.url}/")
    checked(structured_outputs="json_schema")
    checked(structured_outputs=None)
    checked(logprobs=True)
    with pytest.raises(
        UserError, match=r"judge.logprobs is true, and http://\S+ gives no log-probabilities: set it to"
    ):
        checked(logprobs=True, extra_body={"logprobs": None})
    with pytest.raises(UserError, match=r"judge.model is 'jugde', which http://\S+ does not have; it has judge"):
        checked("jugde")
    with pytest.raises(UserError, match=r"/models gives no list of models \(HTTP 404\): it should be"):
        checked(url=server.url.replace("/v1", ""))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"no server answers there \(ConnectError\)"):
            checked(url=f"http://127.0.0.1:{free.getsockname()[1]}/v1")


def test_a_server_that_cannot_hold_replies_to_a_form_is_found_out():
    with Server(lambda prompt, sample: "Sure! Q1 Unsure") as server:
        place = hardware.Hardware(servers={"ours": {"base_url": server.url}})
        with pytest.raises(
            UserError, match=r"structured_outputs is regex, and \S+ does not keep to it: set it to json_"
        ):
            check_server("judge", "judge", ServedModel(server="ours"), place)
        check_server("judge", "judge", ServedModel(server="ours", structured_outputs=None), place)


def test_a_missing_server_ends_in_one_line_before_ray_starts(tmp_path):
    url = "hardware.servers.ours.base_url=http://127.0.0.1:1/v1"
    done = rondo("run", DEMO, f"run={tmp_path}/run", url, "compare.other={model: m, server: ours}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: hardware.servers.ours.base_url is 'http://127.0.0.1:1/v1', and no server")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# vLLM's own server


@pytest.fixture(scope="module")
def newsroom(tmp_path_factory):
    """The address of a vLLM server with the newsroom judge, in a process of ours."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not `vllm serve`: of the CPU build it asks for the version of a package `vllm`, which that build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(JUDGE), "--port", str(port)]
    options = ["--host=127.0.0.1", "--served-model-name=judge", "--dtype=float32", "--enforce-eager"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_API_KEY": KEY,
    }
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options, "--enable-prompt-tokens-details"], env=environment, stdout=output, stderr=output
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}/v1", time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def place(newsroom, monkeypatch):
    monkeypatch.setenv("OUR_KEY", KEY)
    prices = {"judge": {"input": 1.0, "output": 2.0}}
    return hardware.Hardware(servers={"ours": {"base_url": newsroom, "api_key_env": "OUR_KEY", "prices": prices}})


@pytest.mark.slow
def test_the_newsroom_judge_at_vllms_own_server(place):
    served = ServedModel(server="ours")
    check_server("judge", "judge", served, place)
    judge = McqJudge(wording=NEWSROOM)
    lines = (ROOT / "newsroom" / "articles.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    articles = [json.loads(line)["text"] for line in lines]
    tried = OpenAIServerEngine("judge", served, place.servers["ours"])
    replies = tried.generate([judge.ask_questions(article) for article in articles])
    asked = [judge.read_questions(reply.samples[0].text) for reply in replies]
    assert all(isinstance(question, Question) for line in asked for question in line)
    answers = [judge.ask_answers(article, line) for article, line in zip(articles, asked, strict=True)]
    replied = tried.generate([replace(prompt, logprobs=True) for prompt in answers])
    right = 0
    for prompt, reply, line in zip(answers, replied, asked, strict=True):
        (sample,) = reply.samples
        assert re.fullmatch(prompt.regex, sample.text)
        assert sample.finish_reason == "stop"
        assert -20 < sample.logp <= 0
        assert None not in line_logps(sample.token_logps, len(line))
        right += sum(said == q.letter for said, q in zip(judge.read_answers(sample.text, line), line, strict=True))
    assert right >= 0.9 * sum(map(len, asked))
    spent = count_tokens(replied)
    assert spent["tokens_in"] > 1000
    assert spent["micro_usd"] == pytest.approx(spent["tokens_in"] + 2 * spent["tokens_out"])
    again = count_tokens(tried.generate(answers))
    assert again["tokens_cached"] > 0.4 * again["tokens_in"]  # in blocks of 128 on a CPU
    (long,) = tried.generate([ask("Lima " * 5000)])
    assert long.error == "prompt too long"


@pytest.mark.slow
def test_a_run_with_a_served_judge_and_a_column_beside(place, newsroom, tmp_path):
    """Judged at vLLM's server, beside a model that says the first sentence; finished, the run needs no server."""

    def first_sentence(prompt, sample):
        return prompt.messages[0]["content"].split("\n")[-1].split(". ")[0] + "."

    with Server(first_sentence, models=["lead-1"], key=KEY) as other:
        overrides = [
            f"run={tmp_path}/run",
            "rounds=1",
            "articles.limit=60",
            "summaries.n=4",
            "training.num_train_epochs=1",
            "judge.model=judge",
            "judge.dtype=bfloat16",
            "judge.max_model_len=null",
            "judge.served.server=news",
            "compare.lead-1={model: lead-1, server: other}",
            f"hardware.servers.news={{base_url: '{newsroom}', api_key_env: OUR_KEY}}",
            "hardware.servers.news.prices.judge={input: 9, output: 9}",
            f"hardware.servers.other={{base_url: '{other.url}', api_key_env: OUR_KEY}}",
        ]
        done = rondo("run", DEMO, *overrides, OUR_KEY=KEY)
        assert done.returncode == 0, done.stdout + done.stderr
    again = rondo("run", DEMO, *overrides, OUR_KEY="")
    assert again.returncode == 0, again.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    column = metrics["compared"]["lead-1"]
    assert 0 < column["vs_base"]["strict"]["n"] <= column["n"]  # fewer, where the base has an answer unread
    assert "| lead-1 against base | strict |" in (tmp_path / "run/report.md").read_text()
    record = json.loads((tmp_path / "run/compare/lead-1/evaluation/record.json").read_text())
    assert record["tally"]["tokens_in"] > 0
    assert record["tally"]["micro_usd"] > 0
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in done.stdout + done.stderr
