"""`rondo plan`, held against a real run."""

import json
from pathlib import Path

import pytest

from pipeline.config.loader import load_config
from pipeline.execution.planning.estimator import Estimator
from pipeline.execution.planning.throughput import Throughput
from pipeline.round import rounds
from pipeline.storage.ledger import Ledger
from tests.helpers.cli import RUN_TIMEOUT, start_rondo
from tests.helpers.paths import ROOT

DEMO = str(ROOT / "configs" / "demo.yaml")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)  # the demo names its models from there


def config(*overrides):
    return load_config(DEMO, overrides)


def planned(settings, rates=(), price=None):
    made = Estimator(settings, Ledger(settings.run), Throughput([Ledger(root) for root in rates], settings), price)
    for _ in rounds(made):
        pass
    return {line.address: line for line in made.estimates}


@pytest.mark.slow
def test_tokens_are_near_those_of_a_real_run(tmp_path):
    """A small round with real vLLM gives the rates of one three times as large."""
    for name, limit in (("small", 120), ("large", 360)):
        driver = start_rondo("run", DEMO, f"run={tmp_path}/{name}", f"articles.limit={limit}", "rounds=1")
        output, _ = driver.communicate(timeout=2 * RUN_TIMEOUT)
        assert driver.returncode == 0, output
    lines = planned(config(f"run={tmp_path}/none", "articles.limit=360", "rounds=1"), [f"{tmp_path}/small"])

    for address in ("questions", "round-01/summaries", "round-01/scores", "round-01/references"):
        real = json.loads(Path(f"{tmp_path}/large/{address}/record.json").read_text())["tally"]
        for what in ("tokens_in", "tokens_out"):
            assert lines[address].tally.get(what, 0) == pytest.approx(real.get(what, 0), rel=0.2), (address, what)
