"""Tests that hostile articles, ids and summaries are shown as text, on the terminal and in the report."""

import io

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from jobs.show.tables import show_rows
from pipeline.evaluation.report.render import terminal_tables
from pipeline.execution.progress import Display
from pipeline.storage.ledger import Ledger
from tests.helpers.tables import add_table

HOSTILE = (
    "[bold]x[/] [/red] \x1b[31mred\x1b]0;owned\x07 {article} {0.__class__} %s $(touch x) | a | "
    "<script>alert(1)</script>"
)
SHOWN = HOSTILE.replace("\x1b", "�").replace("\x07", "�")


def console():
    return Console(file=io.StringIO(), width=400, highlight=False, soft_wrap=True, force_terminal=False)


def shown_text(on):
    text = on.file.getvalue()
    assert "\x1b" not in text and "\x07" not in text
    return text


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Show a row with `rondo show`. Gives the printed text."""
    monkeypatch.setenv("COLUMNS", "400")

    def show_row(row):
        add_table(Ledger(str(tmp_path)), "pairs", [row])
        show_rows(str(tmp_path), "pairs", 1, None)
        output = capsys.readouterr().out
        assert "\x1b" not in output and "\x07" not in output
        return output

    return show_row


def test_row_is_shown_as_text(shown):
    row = {
        "article_id": f"../../etc {HOSTILE}",
        "split": "train",
        "article": HOSTILE,
        "questions": [{"question": HOSTILE, "options": [HOSTILE, "b"], "answer": 0}],
        "summaries": [{"text": HOSTILE, "finish_reason": "stop"}, {"text": "b", "finish_reason": "length"}],
        "scores": [{"answers": ["A"], "correct": 1, "words": 3}, {"answers": [None], "correct": 0, "words": 1}],
        "pairs": [{"chosen": 0, "rejected": 1, "reason": HOSTILE}],
    }
    assert shown(row).count(SHOWN) == 6


def test_drift_row_is_shown_without_its_article(shown):
    row = {"article_id": "a", "split": "train", "summaries": [{"text": "Ana led.", "finish_reason": "stop"}]}
    output = shown(row | {"policy_logps": [-3.25], "base_logps": [-4.5]})
    assert "summary 0, policy logp -3.25, base logp -4.50" in output and "Ana led." in output


@pytest.mark.parametrize("show", ["say", "warn", "line"])
def test_lines_of_a_run_are_shown_as_text(show):
    on = console()
    display = Display(on)
    display.line("stage", HOSTILE) if show == "line" else getattr(display, show)(HOSTILE)
    assert SHOWN in shown_text(on)


def test_cells_of_a_table_are_not_parsed_as_markup():
    on = console()
    on.print(*terminal_tables([["", "[red]"], ["[/]", "[bold]1[/]"]]))
    assert "[/]" in shown_text(on) and "[bold]1[/]" in shown_text(on) and "[red]" in shown_text(on)


def test_report_shows_examples_as_text(tmp_path):
    """Parse the filled template of the report with a Markdown parser."""
    from pipeline.evaluation.report.render import template_environment

    score = "1 of 1 right, 2 words"
    example = {
        "id": HOSTILE,
        "article": f"{HOSTILE}\n\n# Head",
        "questions": [1],
        "before": HOSTILE,
        "after": "![](http://t)",
    }
    section = template_environment().get_template("report.md.j2").blocks["examples"]
    context = (
        template_environment()
        .get_template("report.md.j2")
        .new_context({"examples": [example | {"before_score": score, "after_score": score}]})
    )
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse("".join(section(context)))
    inside = [child.type for token in tokens for child in token.children or ()]
    assert {token.type for token in tokens} & {"html_block", "table_open"} == set()
    assert not {"html_inline", "image", "link_open", "code_inline"} & set(inside)
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h2"], (
        "no heading but the template's own"
    )
