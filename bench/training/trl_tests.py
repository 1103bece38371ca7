"""Runs TRL's own tests of its DPOTrainer, with TRL's class and with Rondo's drop-in, and compares the results.

`.venv/bin/python -m bench.training.trl_tests FILE`, where FILE is the test of DPOTrainer in a checkout of TRL's
repository. No code of TRL's is here. Tests with images are left out. The models and data sets that the tests name are
replaced by tiny ones of the same kinds, with random weights, in a folder that looks like the Hub's cache; so nothing is
downloaded. Prompts repeat in these data sets, so that trees have something to share.

`trl_test_models.py` makes the models and data sets, `trl_test_plugin.py` is the pytest plugin that swaps the class.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from bench.print_table import print_table
from bench.training import trl_test_models

ROOT = Path(__file__).parents[2]
SIDES = {"trl": "DPOTrainer", "dropin": "TreeDPOTrainer"}
NOT_TEXT = "not VLM and not Vision and not vision and not vlm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", type=Path, metavar="FILE", help="tests/test_dpo_trainer.py in a checkout of TRL")
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="run only tests that match, as in pytest")
    parser.add_argument("--json", metavar="FILE", help="write the outcome of every test")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        missing = trl_test_models.make_hub(Path(folder))
        for name, reason in missing.items():
            print(f"{name} cannot be made here: {reason}")
        results = {side: run_tests(side, options.tests, options.k, Path(folder)) for side in SIDES}
    show(results)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def run_tests(side: str, tests: Path, expression: str, hub: Path) -> dict[str, dict[str, str]]:
    """Run the tests with the class of one side. Returns the `outcome` of each, and how many `trees` it computed."""
    report = hub / f"{side}.xml"
    selected = f"({NOT_TEXT}) and ({expression})" if expression else NOT_TEXT
    command = [sys.executable, "-m", "pytest", str(tests), "-p", "bench.training.trl_test_plugin", "-k", selected]
    command += [f"--rootdir={tests.parent}", f"--junitxml={report}", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", "-p", "no:xdist", "--tb=line"]
    environment = {
        "RONDO_TRL_SIDE": side,
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    subprocess.run(command, env=os.environ | environment, cwd=hub, check=False)
    if not report.exists():
        raise SystemExit(f"pytest wrote no results of {tests}: see its messages above")
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = next((kind for kind in ("failure", "error", "skipped") if kind in kinds), "passed")
        trees = next((each.get("value", "0") for each in case.iter("property") if each.get("name") == "trees"), "0")
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = {"outcome": outcome, "trees": trees}
    return outcomes


def show(results: dict[str, dict[str, dict[str, str]]]) -> None:
    """Print how many tests passed on each side, and which pass with TRL's class only."""
    theirs, ours = results["trl"], results["dropin"]
    rows = []
    for side, name in SIDES.items():
        counts = Counter(test["outcome"] for test in results[side].values())
        failed = counts["failure"] + counts["error"]
        rows.append({"class": name, "passed": counts["passed"], "failed": failed, "skipped": counts["skipped"]})
    print_table("TRL's tests of DPOTrainer, without those of images", rows)
    passed = [name for name, test in theirs.items() if test["outcome"] == "passed"]
    lost = [name for name in passed if ours.get(name, {}).get("outcome") != "passed"]
    on_trees = sum(ours[name]["trees"] != "0" for name in passed if name in ours)
    share = 1 - len(lost) / len(passed) if passed else 0.0
    print(
        f"Of the {len(passed)} tests that DPOTrainer passes here, TreeDPOTrainer passes {len(passed) - len(lost)} "
        f"({share:.1%}); in {on_trees} of them it computed trees."
    )
    for name in lost:
        print(f"lost: {name}")
    for name in (name for name, test in theirs.items() if test["outcome"] in ("failure", "error")):
        print(f"fails with DPOTrainer too, or only with it: {name}: {ours.get(name, {}).get('outcome')}")


if __name__ == "__main__":
    main()
