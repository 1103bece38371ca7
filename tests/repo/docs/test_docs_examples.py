"""The examples of docs/architecture.md: each is taken from the page, put where the page says, and run."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import yaml

from pipeline.config.loader import parse_config
from pipeline.judging.factory import make_judge
from tests.helpers.cli import environment
from tests.helpers.paths import ROOT
from tests.repo.docs.documentation import apply_diffs, code_blocks, commands, copy_sources, write_files

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def run_python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Run Python in a folder, with the modules of `path` or of the same folder; gives its output."""
    variables = environment() | {"PYTHONPATH": str(path or cwd), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_test_file(name: str, cwd: Path) -> None:
    run_python("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", name, cwd=cwd)


def section_command(heading: str, beginning: str) -> list[str]:
    """The arguments of the first command of a section that begins so."""
    section = "\n".join(f"```\n{block.text}```" for block in code_blocks(PAGE, heading) if not block.language)
    command = next(line for line in commands(section) if line.startswith(beginning))
    return command.removeprefix(beginning).partition(" #")[0].split()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources that an example may change."""
    copy_sources(tmp_path)
    return tmp_path


def run_rondo(*arguments: str, cwd: Path) -> str:
    """Run `rondo` as it is installed: the folder where it starts is not on Python's path."""
    code = "import sys; sys.path.remove(''); from jobs.cli import main; main()"
    return run_python("-c", code, *arguments, cwd=cwd, path=ROOT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the user's, with the configurations, the demo's news world and a few articles."""
    for name in ("configs", "newsroom"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (ROOT / "newsroom" / "articles.jsonl").open(encoding="utf-8") as articles:
        (tmp_path / "articles.jsonl").write_text("".join(islice(articles, 12)), encoding="utf-8")
    return tmp_path


def test_a_judge_of_ones_own_has_a_card(folder: Path) -> None:
    assert write_files(code_blocks(PAGE, "Add a judge"), folder)
    card = section_command("Add a judge", ".venv/bin/rondo judge-card ")
    output = run_rondo("judge-card", *card, cwd=folder)
    assert "judge_card.json" in output and (folder / "runs" / "card" / "judge_card.json").is_file()


def test_a_judge_that_gives_scores_has_a_card(folder: Path) -> None:
    assert write_files(code_blocks(PAGE, "Add a judge that gives scores"), folder)
    card = section_command("Add a judge that gives scores", ".venv/bin/rondo judge-card ")
    output = run_rondo("judge-card", *card, cwd=folder)
    assert "summaries with a score" in output and (folder / "runs" / "score-card" / "judge_card.json").is_file()


def test_settings_of_every_kind_of_judge_are_accepted() -> None:
    page = (ROOT / "docs" / "judge" / "choose.md").read_text(encoding="utf-8")
    judges = [
        yaml.safe_load(block.text)["judge"] for block in code_blocks(page, "Which judge?") if block.language == "yaml"
    ]
    for judge in judges:
        made = parse_config({"run": "r", "articles": {"path": "a"}, "policy": {"model": "p"}, "judge": judge}).judge
        if made.kind not in ("verifiable", "jury"):  # these need a function of the reader's
            make_judge(made, 0)
    assert {judge["kind"] for judge in judges} == {"rubric", "pairwise", "reward", "verifiable", "jury"}


def test_a_preference_of_ones_own(folder: Path) -> None:
    assert write_files(code_blocks(PAGE, "Add a preference"), folder)
    plan = section_command("Add a preference", ".venv/bin/rondo plan ")
    assert "round-01/pairs" in run_rondo("plan", *plan, cwd=folder)

    check = (
        "from pipeline.config.run import Pairs; from pipeline.judging.preference import evaluation_rules\n"
        "rule = evaluation_rules(Pairs(preference='my_preference:worth_the_words'))['strict']\n"
        "better, worse = {'correct': 4, 'words': 30}, {'correct': 3, 'words': 15}\n"
        "print(rule(better, worse, None), rule(worse, better, None), rule(worse, worse, None))"
    )
    assert run_python("-c", check, cwd=folder, path=ROOT).split() == ["1", "-1", "0"]


def test_a_new_loss_passes_the_tests_of_losses(checkout: Path) -> None:
    assert len(apply_diffs(code_blocks(PAGE, "Add a loss"), checkout)) == 5
    (argument,) = section_command("Add a loss", "make test ARGS=")
    run_test_file(argument, checkout)

    run = section_command("Add a loss", ".venv/bin/rondo run ")
    check = (
        "import sys; from pipeline.config.loader import load_config\n"
        "from pipeline.training.losses.objective import Objective\n"
        "import torch; training = load_config(sys.argv[1], sys.argv[2:]).training\n"
        "chosen = torch.tensor([-5.0], requires_grad=True)\n"
        "loss = Objective(training.model_dump())(chosen_logps=chosen, rejected_logps=torch.tensor([-6.0]),\n"
        "    ref_chosen_logps=torch.tensor([-5.0]), ref_rejected_logps=torch.tensor([-5.0]))\n"
        "loss.backward(); print(training.beta, float(loss), float(chosen.grad))"
    )
    beta, loss, gradient = map(float, run_python("-c", check, *run, cwd=checkout).split())
    assert loss == pytest.approx((1 - beta) ** 2) and gradient == pytest.approx(-2 * beta * (1 - beta))


def test_a_new_stage_is_made_by_a_run(checkout: Path) -> None:
    blocks = code_blocks(PAGE, "Add a stage")
    assert len(write_files(blocks, checkout)) == 2
    assert len(apply_diffs(blocks, checkout)) == 3
    (argument,) = section_command("Add a stage", "make test ARGS=")
    run_test_file(argument, checkout)

    plan = section_command("Add a stage", ".venv/bin/rondo plan ")
    assert "round-01/copying" in run_python("-m", "jobs.cli", "plan", *plan, cwd=checkout)
