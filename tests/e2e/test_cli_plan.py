"""`rondo plan`, held against a real run."""

import json
from pathlib import Path

import pytest

from tests.helpers.cli import RUN_TIMEOUT, run_rondo
from tests.helpers.paths import ROOT

DEMO = str(ROOT / "configs" / "demo.yaml")


@pytest.mark.slow
def test_tokens_are_near_those_of_a_real_run(tmp_path):
    """A small round with real vLLM gives the rates of one three times as large."""
    for name, limit in (("small", 120), ("large", 360)):
        run = ["run", DEMO, f"run={tmp_path}/{name}", f"articles.limit={limit}", "rounds=1"]
        finished = run_rondo(*run, timeout=2 * RUN_TIMEOUT)
        assert finished.returncode == 0, finished.stdout + finished.stderr
    plan = ["plan", DEMO, f"run={tmp_path}/none", "articles.limit=360", "rounds=1"]
    finished = run_rondo(*plan, "--rates", f"{tmp_path}/small", "--json", f"{tmp_path}/plan.json")
    assert finished.returncode == 0, finished.stdout + finished.stderr

    stages = {stage["address"]: stage for stage in json.loads((tmp_path / "plan.json").read_text())["stages"]}
    for address in ("questions", "round-01/summaries", "round-01/scores", "round-01/references"):
        real = json.loads(Path(f"{tmp_path}/large/{address}/record.json").read_text())["tally"]
        for what in ("tokens_in", "tokens_out"):
            assert stages[address]["tally"].get(what, 0) == pytest.approx(real.get(what, 0), rel=0.2), (address, what)
