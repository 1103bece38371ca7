"""The engine for OpenAI servers against vLLM's own server, alone and in a whole run."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace

import httpx
import pytest

from judges.base import Prompt, Question, line_logps, user
from judges.mcq import McqJudge
from judges.prompts import NEWSROOM
from pipeline.config import UserError, hardware
from pipeline.config.base import Thinking
from pipeline.config.servers import ServedModel
from pipeline.inference.base import ENGINE_STARTS, count_tokens
from pipeline.inference.server.openai_server import OpenAIServerEngine
from pipeline.inference.server.server_check import check_server
from tests.helpers.chat_server import KEY, ChatServer, chat_prompt
from tests.helpers.cli import run_rondo
from tests.helpers.paths import DEMO, ROOT
from tests.helpers.paths import JUDGE_MODEL as JUDGE
from tests.helpers.tiny_models import save_thinking_model


@contextlib.contextmanager
def running_server(model, log, *more_options):
    """Runs a vLLM server with a model called judge while the block runs, and gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not `vllm serve`: it looks up the version of the package `vllm`, and the CPU build has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    options = ["--host=127.0.0.1", "--served-model-name=judge", "--dtype=float32", "--enforce-eager"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_API_KEY": KEY,
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options, "--enable-prompt-tokens-details", *more_options],
            env=environment,
            stdout=output,
            stderr=output,
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


@pytest.fixture(scope="module")
def newsroom(tmp_path_factory):
    with running_server(JUDGE, tmp_path_factory.mktemp("vllm") / "log") as url:
        yield url


def hardware_at(url):
    prices = {"judge": {"input": 1.0, "output": 2.0}}
    return hardware.Hardware(servers={"ours": {"base_url": url, "api_key_env": "OUR_KEY", "prices": prices}})


@pytest.fixture
def place(newsroom, monkeypatch):
    monkeypatch.setenv("OUR_KEY", KEY)
    return hardware_at(newsroom)


@pytest.mark.slow
@pytest.mark.parametrize("parser", ["--reasoning-parser=qwen3", None])
def test_a_model_that_thinks_at_vllms_own_server(tmp_path, monkeypatch, parser):
    """With a reasoning parser the grammar begins after the thought. Without one nothing is thought: refused."""
    monkeypatch.setenv("OUR_KEY", KEY)
    model = save_thinking_model(tmp_path / "model")
    prompt = Prompt(
        user("Summarize.\nOfficials said the scene was in Lima."), 60, "Q1 [A-E]", temperature=1.0, n=16, logprobs=True
    )
    with running_server(model, tmp_path / "log", "--max-model-len=512", *([parser] if parser else [])) as url:
        place, thinking = hardware_at(url), Thinking(budget=200)
        served = ServedModel(server="ours")
        (reply,) = OpenAIServerEngine("judge", served, place.servers["ours"], thinking).generate([prompt])
        check_server("judge", "judge", served, place, thinking=Thinking(budget=0))
        if parser is None:
            with pytest.raises(UserError, match="does not think: the form of replies"):
                check_server("judge", "judge", served, place, thinking=thinking)
            return
    answered = [sample for sample in reply.samples if sample.text]
    assert answered
    for sample in answered:
        assert re.fullmatch("Q1 [A-E]", sample.text)
        assert sample.thought
        assert "".join(text for text, _ in sample.token_logps).removesuffix("</s>").strip() == sample.text
    assert count_tokens([reply])["tokens_thought"] > 0


@pytest.mark.slow
def test_the_newsroom_judge_at_vllms_own_server(place):
    served = ServedModel(server="ours")
    check_server("judge", "judge", served, place)
    judge = McqJudge(wording=NEWSROOM)
    lines = (ROOT / "newsroom" / "articles.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    articles = [json.loads(line)["text"] for line in lines]
    engine = OpenAIServerEngine("judge", served, place.servers["ours"])
    replies = engine.generate([judge.ask_questions(article) for article in articles])
    questions = [judge.read_questions(reply.samples[0].text) for reply in replies]
    assert all(isinstance(question, Question) for row in questions for question in row)
    prompts = [judge.ask_answers(article, row) for article, row in zip(articles, questions, strict=True)]
    answers = engine.generate([replace(prompt, logprobs=True) for prompt in prompts])
    right = 0
    for prompt, reply, row in zip(prompts, answers, questions, strict=True):
        (sample,) = reply.samples
        assert re.fullmatch(prompt.regex, sample.text)
        assert sample.finish_reason == "stop"
        assert -20 < sample.logp <= 0
        assert None not in line_logps(sample.token_logps, len(row))
        letters = judge.read_answers(sample.text, row)
        right += sum(letter == q.letter for letter, q in zip(letters, row, strict=True))
    assert right >= 0.9 * sum(map(len, questions))
    spent = count_tokens(answers)
    assert spent["tokens_in"] > 1000
    assert spent["micro_usd"] == pytest.approx(spent["tokens_in"] + 2 * spent["tokens_out"])
    again = count_tokens(engine.generate(prompts))
    assert again["tokens_cached"] > 0.4 * again["tokens_in"]  # in blocks of 128 on a CPU
    (long,) = engine.generate([chat_prompt("Lima " * 5000)])
    assert long.error == "prompt too long"


@pytest.mark.slow
def test_a_run_with_a_served_judge_and_a_served_model_to_compare_with(place, newsroom, tmp_path):
    """vLLM's server judges; another server gives first sentences to compare with. A finished run needs no server."""

    def first_sentence(prompt, sample):
        return prompt.messages[0]["content"].split("\n")[-1].split(". ")[0] + "."

    with ChatServer(first_sentence, models=["lead-1"], key=KEY) as other:
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
        done = run_rondo("run", DEMO, *overrides, OUR_KEY=KEY)
        assert done.returncode == 0, done.stdout + done.stderr
    again = run_rondo("run", DEMO, *overrides, OUR_KEY="")
    assert again.returncode == 0, again.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    column = metrics["compared"]["lead-1"]
    assert 0 < column["vs_base"]["strict"]["n"] <= column["n"]  # fewer if an answer on the base is unread
    assert "| lead-1 against base | strict |" in (tmp_path / "run/report.md").read_text()
    record = json.loads((tmp_path / "run/compare/lead-1/evaluation/record.json").read_text())
    assert record["tally"]["tokens_in"] > 0
    assert record["tally"]["micro_usd"] > 0
    by_base = json.loads((tmp_path / "run/round-00/exam/record.json").read_text())
    assert ENGINE_STARTS not in by_base["tally"], "the policy's engine was started ahead"
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in done.stdout + done.stderr
