"""Secrets come from the environment and go nowhere: a finished run, its records and what the driver said hold none."""

import pytest

from pipeline.config import UserError
from pipeline.config.messages import escape_markdown, printable, redact
from tests.helpers.chat_server import ChatServer
from tests.helpers.cli import run_rondo
from tests.helpers.secrets import SECRETS, check_holds_none


@pytest.mark.slow
def test_a_run_with_a_key_for_a_server_holds_no_secret(tmp_path):
    """And with every other secret about; test_cli_run.py asks it of a run without a server."""
    run = tmp_path / "run"
    with ChatServer(lambda prompt, i: "Officials said so.", models=("m",), key=SECRETS["OPENAI_API_KEY"]) as server:
        done = run_rondo(
            *("run", "configs/demo.yaml", f"run={run}", "rounds=1"),
            *("articles.limit=24", "summaries.n=2", "judge={kind: cloze, questions: 4}", "questions.min_questions=1"),
            *("pairs.threshold=1", "pairs.min_word_gap=1", "evaluation.max_skipped=1", "summaries.max_skipped=1"),
            *("questions.check=false", "questions.max_skipped=1", "compare={hired: {model: m, server: ours}}"),
            f"hardware.servers={{ours: {{base_url: '{server.url}', api_key_env: OPENAI_API_KEY}}}}",
            **SECRETS | {"RAY_AUTH_MODE": "disabled"},
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.bodies, "the key was used"
    check_holds_none(run, done.stdout + done.stderr)


def test_what_a_library_quotes_of_a_secret_is_not_passed_on(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    message = str(UserError(f"401 for {SECRETS['HF_TOKEN']} ({SECRETS['AWS_SECRET_ACCESS_KEY']})"))
    assert message == "401 for (HF_TOKEN) ((AWS_SECRET_ACCESS_KEY))"
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
