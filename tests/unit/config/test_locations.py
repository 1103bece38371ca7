"""Paths: `~` and variables are expanded, and a path that lies beside the configuration is not guessed but explained."""

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.config import UserError
from pipeline.config.base import expand_location
from pipeline.config.loader import load_alignment, load_config, parse_config
from tests.helpers.paths import DEMO, ROOT

DEMO_SETTINGS = yaml.safe_load(DEMO.read_text())


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.chdir(ROOT)
    return tmp_path


@pytest.mark.parametrize(
    ("location", "expanded"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("$HOME/x", "/home/me/x"),
        ("a/${DATA}b", "a//datab"),
        ("s3://bucket$DATA/x", "s3://bucket/data/x"),
        ("a~b", "a~b"),
        ("cost-5$", "cost-5$"),
        ("$5", "$5"),
        ("owner/name", "owner/name"),
        ("hf:owner/name:train", "hf:owner/name:train"),
    ],
)
def test_home_and_variables_are_expanded(location: str, expanded: str) -> None:
    assert expand_location(location) == expanded


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("$NOWHERE/x", "there is no environment variable 'NOWHERE', or it is empty: set it"),
        ("${EMPTY}/x", "there is no environment variable 'EMPTY', or it is empty"),
        ("${DATA:-x}", "there is no environment variable 'DATA:-x'"),
        ("${DATA", None),
        ("~no-such-user/x", "there is none of this name: write the whole path"),
        ("runs/$OPENAI_API_KEY", "OPENAI_API_KEY holds a secret, and settings are written into the run folder"),
    ],
)
def test_what_cannot_be_expanded_is_refused(location: str, message: str | None) -> None:
    if message is None:
        assert expand_location(location) == "/data"
        return
    with pytest.raises(ValueError, match=".") as caught:
        expand_location(location)
    assert message in str(caught.value)


def test_a_path_with_a_dollar_that_exists_stays_as_it_is(home: Path) -> None:
    (home / "$NOWHERE").mkdir()
    assert expand_location(f"{home}/$NOWHERE") == f"{home}/$NOWHERE"


@pytest.mark.parametrize("name", ["run", "articles.path", "policy.model", "judge.model"])
def test_every_setting_with_a_path_is_expanded(name: str) -> None:
    config = load_config(DEMO, [f"{name}=$DATA/x"])
    assert config.locations[name] == "/data/x"
    assert parse_config(config.model_dump(mode="json")) == config  # as from the run's config.yaml
    with pytest.raises(UserError, match=rf"^{name} is '\$NOWHERE/x': there is no environment variable 'NOWHERE'"):
        load_config(DEMO, [f"{name}=$NOWHERE/x"])


def test_models_of_a_jury_and_pairs_are_expanded() -> None:
    jury = {"kind": "jury", "members": {"a": {"model": "~/a"}, "b": {"kind": "cloze"}}}
    config = parse_config(DEMO_SETTINGS | {"judge": jury, "pairs": {}})
    assert config.locations["judge.members.a.model"] == "/home/me/a"
    assert load_alignment(DEMO, ["pairs=~/pairs.jsonl"]).pairs == "/home/me/pairs.jsonl"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "$NOWHERE/x"],
        ["plan", str(DEMO), "--rates", "$NOWHERE/x"],
        ["plan", str(DEMO), "--json", "$NOWHERE/x"],
        ["schedule", "$NOWHERE/x", "--once"],
        ["train", "$NOWHERE/x"],
        ["export", "$NOWHERE/x", "--out", "y"],
        ["export", "x", "--out", "$NOWHERE/x"],
        ["judge-card", "$NOWHERE/x"],
        ["judge-eval", str(DEMO), "$NOWHERE/x"],
        ["judge-eval", str(DEMO), "x", "--json", "$NOWHERE/x"],
        ["judge-eval", str(DEMO), "x", "--plot", "$NOWHERE/x"],
        ["status", "$NOWHERE/x"],
        ["show", "$NOWHERE/x", "scores"],
        ["merge", "$NOWHERE/x", "--out", "y"],
        ["merge", "x", "--out", "$NOWHERE/x"],
    ],
    ids=" ".join,
)
def test_every_path_of_a_command_is_expanded(arguments: list[str]) -> None:
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, UserError) and "no environment variable 'NOWHERE'" in str(error)


@pytest.fixture
def project(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with configs/, articles, a model and the user's code; the current folder is another one."""
    for folder in ("project/configs", "project/models/mine", "elsewhere"):
        (home / folder).mkdir(parents=True)
    settings = DEMO_SETTINGS | {
        "run": "runs/x",
        "articles": {"path": "articles.jsonl"},
        "policy": {"model": "models/mine"},
        "judge": {"kind": "my_judge_of_this_test:Judge"},
        "pairs": {"preference": "my_judge_of_this_test:prefer"},
    }
    settings.pop("second_judge", None)
    (home / "project/configs/x.yaml").write_text(yaml.safe_dump(settings))
    (home / "project/articles.jsonl").write_text("{}\n")
    (home / "project/configs/my_judge_of_this_test.py").write_text("")
    monkeypatch.chdir(home / "elsewhere")
    return home / "project"


def test_paths_beside_the_configuration_are_explained(project: Path) -> None:
    here = project.parent / "elsewhere"
    with pytest.raises(UserError) as caught:
        load_config(project / "configs/x.yaml")
    assert str(caught.value).splitlines() == [
        f"articles.path is 'articles.jsonl': relative paths begin in the current folder, and {here}/articles.jsonl "
        f"does not exist, but {project}/articles.jsonl does: run the command in {project}, or set "
        f"articles.path={project}/articles.jsonl",
        f"policy.model is 'models/mine': relative paths begin in the current folder, and {here}/models/mine does not "
        f"exist, but {project}/models/mine does: run the command in {project}, or set "
        f"policy.model={project}/models/mine",
        *(
            f"{name} is 'my_judge_of_this_test:{code}': relative paths begin in the current folder, and "
            f"{here}/my_judge_of_this_test.py does not exist, but {project}/configs/my_judge_of_this_test.py does: "
            f"run the command in {project}/configs, or set PYTHONPATH={project}/configs"
            for name, code in [("pairs.preference", "prefer"), ("judge.kind", "Judge")]
        ),
    ]


def test_a_run_is_not_begun_again_in_another_folder(project: Path) -> None:
    (project / "runs/x").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"run is 'runs/x': .*, but {project}/runs/x does: run the command in"):
        load_config(project / "configs/x.yaml")


def test_the_current_folder_comes_first_and_the_command_line_is_not_searched_elsewhere(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = project.parent / "elsewhere"
    shutil.copy(project / "articles.jsonl", here)
    shutil.copy(project / "configs/my_judge_of_this_test.py", here)
    config = load_config(project / "configs/x.yaml", ["policy.model=models/mine"])
    assert config.articles.path == "articles.jsonl"
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project / "configs")
    assert load_config("configs/x.yaml").policy.model == "models/mine"
