"""Secrets come from the environment and go nowhere: a finished run, its records and what the driver said hold none."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import UserError
from pipeline.config.sanitize import escape_markdown, printable, redact
from tests.helpers.chat_server import Server
from tests.helpers.cli import PACE, environment
from tests.helpers.paths import ROOT

SECRETS = {
    "OPENAI_API_KEY": "sk-proj-Zq81xOpenAiKey0042",
    "HF_TOKEN": "hf_kQx7HuggingFaceTok3n",
    "AWS_ACCESS_KEY_ID": "AKIAQ7EXAMPLE0042XYZ",
    "AWS_SECRET_ACCESS_KEY": "wJalr9XutnFEMIbPxRfiCYEXAMPLEKEY",
    "WANDB_API_KEY": "5f3c0d9be1a24c7788aa00ff11ee22dd33cc44bb",
    "RAY_AUTH_TOKEN": "9a7b1c2d3e4f5061728394a5b6c7d8e9",
    "MY_PASSWORD": "correct-horse-battery",
}


def holding(data):
    return [name for name, value in SECRETS.items() if value.encode() in data]


def everything(folder):
    """Every file as its bytes, and what a Parquet part holds as text: its own bytes are compressed."""
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        yield path, path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield path, f"{table.schema.metadata} {table.to_pylist()}".encode()


def check_holds_none(run, said):
    """A finished run of rounds with a report."""
    files = list(everything(run))
    names = {"record.json", "config.yaml", "report.md", "metrics.json", "model.safetensors"}
    assert names <= {path.name for path, _ in files}
    assert any(path.suffix == ".parquet" for path, _ in files)
    assert {str(path): found for path, data in files if (found := holding(data))} == {}
    assert holding(said.encode()) == []


@pytest.mark.slow
def test_a_run_with_a_key_for_a_server_holds_no_secret(tmp_path):
    """And with every other secret about; test_round.py asks it of a run without a server."""
    run = tmp_path / "run"
    with Server(lambda prompt, i: "Officials said so.", models=("m",), key=SECRETS["OPENAI_API_KEY"]) as server:
        command = [
            *(sys.executable, "-m", "jobs.cli", "run", "configs/demo.yaml", f"run={run}", "rounds=1"),
            *("articles.limit=24", "summaries.n=2", "judge={kind: cloze, questions: 4}", "questions.min_questions=1"),
            *("pairs.threshold=1", "pairs.min_word_gap=1", "evaluation.max_skipped=1", "summaries.max_skipped=1"),
            *("questions.check=false", "questions.max_skipped=1", "compare={hired: {model: m, server: ours}}"),
            f"hardware.servers={{ours: {{base_url: '{server.url}', api_key_env: OPENAI_API_KEY}}}}",
        ]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment() | SECRETS | {"RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PACE,
        )
    assert done.returncode == 0, done.stdout
    assert server.bodies, "the key was used"
    check_holds_none(run, done.stdout)


def test_what_a_library_quotes_of_a_secret_is_not_passed_on(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    said = str(UserError(f"401 for {SECRETS['HF_TOKEN']} ({SECRETS['AWS_SECRET_ACCESS_KEY']})"))
    assert said == "401 for (HF_TOKEN) ((AWS_SECRET_ACCESS_KEY))"
    monkeypatch.setenv("A_KEY", "run")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallelism")
    assert redact("run with parallelism") == "run with parallelism", "a short value, and a name that is no secret's"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "�[2J�]0;owned�"),
        ("a\rb\x08c\x00d", "a�b�c�d"),
        ("\x9b31m", "�31m"),
        ("abc\u202etxt", "abc�txt"),
        ("[bold]a[/] 🙂 naïve\tb\n", "[bold]a[/] 🙂 naïve\tb\n"),
    ],
)
def test_a_terminal_is_not_steered(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "a | b | c",
        "![x](http://tracker/x.png)",
        "[click](javascript:alert(1))",
        "**bold** `code` ~~gone~~ # head",
        "\n\n# Heading\n\n| a |\n|---|\n",
        "&lt;img&gt;",
        "\\<b>",
    ],
)
def test_markdown_shows_a_text_as_it_is(text):
    """As a renderer reads it: nothing but the text on one line."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark").enable("table")
    block, inline, _ = reader.parse(f"x {escape_markdown(text)}")
    assert block.type == "paragraph_open"
    assert {token.type for token in inline.children} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children) == f"x {' '.join(text.split())}"
    row = reader.render(f"| a | b |\n|---|---|\n| x {escape_markdown(text)} | y |\n")
    assert row.count("<td>") == 2 and "<script" not in row and "<img" not in row and "<a" not in row
