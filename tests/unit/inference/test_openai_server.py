"""The engine for OpenAI servers: requests, replies, the API key, settings, and the check before a run."""

import logging
import socket
from dataclasses import replace

import pytest

from judges.mcq import McqJudge
from pipeline.config import UserError, hardware
from pipeline.config.loader import load_config
from pipeline.config.servers import ComparedModel, ServedModel
from pipeline.inference.base import count_tokens
from pipeline.inference.server.openai_server import OpenAIServerEngine
from pipeline.inference.server.server_check import check_server
from pipeline.judging.scoring.exam import score_summaries
from tests.helpers.chat_server import KEY, ChatServer, chat_prompt, engine_at, reply_text
from tests.helpers.paths import DEMO


@pytest.fixture
def server():
    with ChatServer(reply_text) as running:
        yield running


def test_samples_log_probabilities_usage_and_cost(server):
    prices = {"judge": {"input": 2.5, "cached": 1.25, "output": 10}}
    (reply,) = engine_at(server, prices=prices).generate(
        [chat_prompt("four", n=3, temperature=0.7, top_p=0.9, logprobs=True)]
    )
    assert [sample.text for sample in reply.samples] == ["said 0", "said 1", "said 2"]
    assert [sample.logp for sample in reply.samples] == [-7.0] * 3
    assert reply.samples[1].token_logps == [*((letter, -1.0) for letter in "said 1"), ("", -1.0)]
    assert (reply.prompt_ids, reply.samples[0].token_ids, reply.cached_tokens) == ([], [], 3)
    cost = round((4 - 3) * 2.5 + 3 * 1.25 + 21 * 10)
    assert count_tokens([reply]) == {"tokens_in": 4, "tokens_cached": 3, "tokens_out": 21, "micro_usd": cost} | {
        "replies": 3,
        "replies cut off": 0,
    }
    assert {name: server.bodies[0][name] for name in ("n", "temperature", "top_p", "max_tokens", "logprobs")} == {
        "n": 3, "temperature": 0.7, "top_p": 0.9, "max_tokens": 20, "logprobs": True,
    }  # fmt: skip


def test_fields_that_only_some_servers_know_are_sent_if_they_change_something(server):
    further = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "stop": ("END",)}
    for fields in ({}, further):
        engine_at(server).generate([chat_prompt("four", **fields)])
        expected = {name: list(value) if name == "stop" else value for name, value in fields.items()}
        assert {name: server.bodies[-1][name] for name in further if name in server.bodies[-1]} == expected


@pytest.mark.parametrize("form", ["regex", "json_schema", None])
def test_a_regex_is_sent_in_the_form_that_the_server_supports(server, form):
    served = ServedModel(server="ours", structured_outputs=form, extra_body={"seed": 7, "top_p": None})
    replies = engine_at(server, served).generate([chat_prompt("free"), chat_prompt("held", regex="Q1 [A-E]")])
    assert [reply.samples[0].text for reply in replies] == ["said 0", "Q1 A" if form else "said 0"]
    bodies = {body["messages"][0]["content"]: body for body in server.bodies}
    assert not {"structured_outputs", "response_format", "top_p"} & bodies["free"].keys()
    assert bodies["held"]["seed"] == 7
    assert bodies["held"].get("structured_outputs") == ({"regex": "Q1 [A-E]"} if form == "regex" else None)
    if form == "json_schema":
        pattern = bodies["held"]["response_format"]["json_schema"]["schema"]["properties"]["reply"]["pattern"]
        assert pattern == "^(Q1 [A-E])$"


def test_a_reply_in_json_has_no_token_log_probabilities(server):
    served = ServedModel(server="ours", structured_outputs="json_schema")
    (reply,) = engine_at(server, served).generate([chat_prompt("held", regex="Q1 A", logprobs=True)])
    assert reply.samples[0].token_logps is None


def test_a_json_reply_that_was_cut_off_has_finish_reason_length(server):
    served = ServedModel(server="ours", structured_outputs="json_schema")
    (reply,) = engine_at(server, served).generate([replace(chat_prompt("held", regex="Q1 A"), max_tokens=2)])
    assert reply.samples[0].finish_reason == "length"


def test_judging_keeps_a_row_and_counts_why_a_summary_has_no_answers():
    def answers(prompt, sample):
        return "Q1 A"

    with ChatServer(answers) as server:
        question = {"question_id": "q", "question": "Who?", "options": ["Ana", "Ben"], "answer": 0}
        summaries = [{"text": "Ana came."}, {"text": "too long " * 500}]
        row = {"article_id": "a", "article": "Ana came.", "questions": [question], "summaries": summaries}
        (outcome,) = score_summaries(McqJudge(questions=1, options=2), engine_at(server), [row])
    assert [score["answers"] for score in outcome["scores"]] == [["A"], [None]]
    assert outcome["tally"]["no reply: prompt too long"] == 1
    assert outcome["tally"]["unread"] == 1


# The key


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    shown = []  # everything that a person or a file could get to see
    with ChatServer(reply_text, key=KEY) as server:
        place = hardware.Hardware(servers={"ours": {"base_url": server.url, "api_key_env": "OUR_KEY", "tries": 2}})
        for value in ("", KEY, f"{KEY}x", f"{KEY}\x07", f"{KEY}é"):
            monkeypatch.setenv("OUR_KEY", value)
            try:
                check_server("judge", "judge", ServedModel(server="ours"), place)
                shown.append("served")
            except UserError as error:
                shown.append(str(error))
        monkeypatch.setenv("OUR_KEY", f"{KEY}\n")  # with a line end, as `cat` of a file gives it
        engine = OpenAIServerEngine("judge", ServedModel(server="ours"), place.servers["ours"])
        replies = engine.generate(
            [chat_prompt(), chat_prompt("broken!: x"), chat_prompt("poison!: x"), chat_prompt("reset!: x")]
        )
        shown += [repr(replies), repr(vars(engine)), repr(engine.clients[0].headers)]
        monkeypatch.setenv("OUR_KEY", f"{KEY}x")
        refused = OpenAIServerEngine("judge", ServedModel(server="ours"), place.servers["ours"])
        shown.append(place.model_dump_json())
        for prompts in ([chat_prompt()], [chat_prompt(f"{i}") for i in range(60)]):
            with pytest.raises(UserError, match=r"served none of \d+ prompts in a row \(HTTP 401\)") as caught:
                refused.generate(prompts)
            shown.append(str(caught.value))
    assert shown[1] == "served"
    assert "OUR_KEY is not set" in shown[0]
    assert "which refuses the key in OUR_KEY (HTTP 401)" in shown[2]
    assert "OUR_KEY holds characters that no key can have" in shown[3]
    assert "OUR_KEY holds characters that no key can have" in shown[4]
    assert [reply.error for reply in replies] == [None, "HTTP 500", "HTTP 400", "connection failed"]
    everything = " ".join([*shown, caplog.text, *capfd.readouterr()])
    assert KEY[:12] not in everything


def settings(*overrides):
    address = "hardware.servers.ours.base_url=http://127.0.0.1:1/v1"
    return load_config(DEMO, ["judge.dtype=bfloat16", "judge.max_model_len=null", address, *overrides])


def test_settings_of_served_models():
    config = settings("judge.served.server=ours", "compare.gpt-4o={model: gpt-4o, server: ours}")
    assert config.judge.served == ServedModel(server="ours")
    assert config.compare == {"gpt-4o": ComparedModel(server="ours", model="gpt-4o")}


def test_a_second_judge_may_use_gpus_that_a_served_judge_has_no_use_for():
    gpu = ["hardware.judge.gpus_per_replica=1", "hardware.ray_cpus=null"]
    assert settings(SERVED, "second_judge={model: m}", *gpu).hardware.judge.gpus_per_replica == 1
    with pytest.raises(
        UserError, match="so no judge runs here: remove gpus_per_replica and replicas from hardware.judge"
    ):
        settings(SERVED, "second_judge={model: m, served: {server: ours}}", *gpu)


def test_a_served_judge_has_one_actor_whatever_the_hardware_of_the_other_judge():
    from pipeline.execution.resources import provide_resources

    second = "second_judge={model: m, served: {server: ours}}"
    config = settings(second, "hardware.judge={replicas: 2, gpus_per_replica: 1}", "hardware.ray_cpus=null")
    pool = provide_resources(["second_judge_engine"], config, {}, "root", "address", None, print)["second_judge_engine"]
    assert (pool.hardware.replicas.max, pool.hardware.gpus_per_replica) == (1, 0)


SERVED = "judge.served.server=ours"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["judge.served.server=theirs"],
            "judge.served.server is 'theirs', and hardware.servers has ours: describe the server",
        ),
        (
            [SERVED, "judge.kind=cloze", "judge.model=null"],
            "judge.kind is cloze, which needs no model, and judge.served",
        ),
        (
            ["second_judge={model: m, served: {server: theirs}}"],
            "second_judge.served.server is 'theirs', and hardware.servers has ours: describe the server",
        ),
        ([SERVED, "judge.dtype=float32"], "judge.served is set, and its server decides dtype and max_model_len"),
        (
            [SERVED, "hardware.judge.gpus_per_replica=1"],
            "so no judge runs here: remove gpus_per_replica and replicas from hardware.judge",
        ),
        ([SERVED, "judge.served.structured_outputs=json"], "judge.served.structured_outputs is 'json'"),
        (
            [SERVED, f"judge.served.extra_body={{api_key: {KEY}}}"],
            "extra_body has 'api_key': keys are read from the environment only, see api_key_env",
        ),
        (
            [SERVED, f"judge.served.extra_body={{extra: [{{X-Api-Key: {KEY}}}]}}"],
            "extra_body has 'X-Api-Key': keys are read from the environment only, see api_key_env",
        ),
        ([SERVED, f"judge.served.api_key={KEY}"], "judge.served has no 'api_key'; it has server, structured_outputs"),
        ([SERVED, "judge.served.extra_body={stream: true}"], "extra_body has 'stream', which Rondo sets itself"),
        (
            ["policy.served.server=ours"],
            "policy.served is set: a model at a server cannot be trained, because a server gives neither",
        ),
        (
            ["policy.base_url=http://x/v1"],
            "policy.base_url is set: a model at a server cannot be trained, because a server gives neither",
        ),
        (
            ["compare.base={model: m, server: ours}"],
            "compare has 'base': a column's name should consist of a-z, 0-9 and -",
        ),
        (["compare.GPT={model: m, server: ours}"], "compare has 'GPT': a column's name should consist of"),
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


def test_a_servers_address_and_limits_are_in_no_recipe(tmp_path):
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


def test_a_served_model_must_be_listed_by_its_server(server):
    def check(model="judge", url=server.url, logprobs=False, **served):
        place = hardware.Hardware(servers={"ours": {"base_url": url}})
        check_server("judge", model, ServedModel(server="ours", **served), place, logprobs)

    check()
    check(url=f"{server.url}/")
    check(structured_outputs="json_schema")
    check(structured_outputs=None)
    check(logprobs=True)
    with pytest.raises(
        UserError, match=r"judge.logprobs is true, and http://\S+ gives no log-probabilities: set it to"
    ):
        check(logprobs=True, extra_body={"logprobs": None})
    with pytest.raises(UserError, match=r"judge.model is 'jugde', which http://\S+ does not have; it has judge"):
        check("jugde")
    with pytest.raises(UserError, match=r"/models gives no list of models \(HTTP 404\): it should be"):
        check(url=server.url.replace("/v1", ""))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match=r"no server answers there \(ConnectError\)"):
            check(url=f"http://127.0.0.1:{free.getsockname()[1]}/v1")


def test_a_server_that_cannot_constrain_replies_is_refused():
    with ChatServer(lambda prompt, sample: "Sure! Q1 Unsure") as server:
        place = hardware.Hardware(servers={"ours": {"base_url": server.url}})
        with pytest.raises(
            UserError, match=r"structured_outputs is regex, and \S+ does not enforce it: set it to json_"
        ):
            check_server("judge", "judge", ServedModel(server="ours"), place)
        check_server("judge", "judge", ServedModel(server="ours", structured_outputs=None), place)
