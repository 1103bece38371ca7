"""A judge at a server in Ray Data's workers: its answers, its prices and its errors."""

from functools import partial

import pytest

from pipeline.config import UserError, hardware, run
from pipeline.config.servers import ServedModel
from pipeline.inference.pool import EnginePool
from pipeline.inference.server.openai_server import OpenAIServerEngine
from pipeline.stages.scores import score_samples
from pipeline.storage.schema import to_dataset
from tests.helpers.chat_server import ChatServer, reply_text
from tests.helpers.cli import run_rondo
from tests.helpers.paths import DEMO
from tests.helpers.tables import write_table


@pytest.fixture
def server():
    with ChatServer(reply_text) as running:
        yield running


def _scored(tmp_path, **place):
    """Thirty rows through a served judge under Ray Data, written as a stage's are."""
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
    server = hardware.Server(tries=2, concurrency=4, **place)
    make_engine = partial(OpenAIServerEngine, "judge", ServedModel(server="ours"), server)
    pool = EnginePool(make_engine, hardware.EngineHardware())
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
def test_a_workers_error_about_a_server_is_shown_in_one_line(ray_cluster, tmp_path, place, line):
    with pytest.raises(UserError, match=line) as caught:
        _scored(tmp_path, base_url="http://127.0.0.1:1/v1", **place)
    assert "\n" not in str(caught.value)


def test_a_missing_server_is_reported_in_one_line_before_ray_starts(tmp_path):
    url = "hardware.servers.ours.base_url=http://127.0.0.1:1/v1"
    done = run_rondo("run", DEMO, f"run={tmp_path}/run", url, "compare.other={model: m, server: ours}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: hardware.servers.ours.base_url is 'http://127.0.0.1:1/v1', and no server")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
