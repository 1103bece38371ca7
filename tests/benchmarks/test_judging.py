"""Tests the prompts of the judging benchmark, and that it runs. Times are not tested."""

import json
import os
import random
import subprocess
import sys

import pytest

from bench.inference.judging import REFERENCE, SIDES, make_prompts, newsroom_work
from judges.prompts import NEWSROOM, PLAIN
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("wording", [PLAIN, NEWSROOM])
@pytest.mark.parametrize("side", SIDES, ids=lambda side: side.name)
def test_prompts_follow_the_settings_of_their_side(side, wording):
    work = [newsroom_work(random.Random(i), 8, equal=0.5) for i in range(2)]
    prompts = make_prompts(side, 77, work, wording, "Turn 3.\n")
    assert len(prompts) == (sum(len(set(article.summaries)) for article in work) if side.deduplicated else 16)
    for prompt in prompts:
        text = prompt.messages[0]["content"]
        summary = next(summary for article in work for summary in article.summaries if summary in text)
        (question, *_) = next(article.questions for article in work if summary in article.summaries)
        assert text.startswith("Turn 3.\n") and text.count(summary) == 1
        assert (text.index(question.question) < text.index(summary)) == side.questions_first
        assert (prompt.regex is None, prompt.max_tokens == 77) == (not side.constrained, not side.constrained)


def test_the_benchmark_runs_and_counts_tokens(tmp_path):
    sizes = "--layers 1 --heads 3 --question-tokens 150 --random-articles 2 --summaries 4 --equal 0.5 --replies 5 7"
    command = [sys.executable, "-m", "bench.inference.judging", "--cases", "random", "--runs", "1", "--threads", "1"]
    process = subprocess.run(
        [*command, *sizes.split(), "--json", str(tmp_path / "out.json")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout
    result = json.loads((tmp_path / "out.json").read_text())
    rows = {(row["side"], row["reply_limit"]): row for row in result["rows"]}
    assert [key[0] for key in rows] == [*(side.name for side in SIDES), REFERENCE]
    assert all(row["summaries"] == 8 and row["summaries_per_second"] > 0 for row in rows.values())
    # A model with random weights never ends a reply by itself.
    assert rows[REFERENCE, 5]["tokens_out_per_summary"] == 5 and rows[REFERENCE, 7]["tokens_out_per_summary"] == 7
    deduplicated = rows["… deduplicated summaries", 5]
    assert deduplicated["tokens_in_per_summary"] < 0.8 * rows[REFERENCE, 5]["tokens_in_per_summary"]
    assert rows["… questions first", 5]["prefix_cache_hit_rate"] > deduplicated["prefix_cache_hit_rate"] == 0
    assert result["vs_reference_order"] == rows["ours", None]["vs_reference_order"] > 0
    assert result["vs_reference_order_by_case"] == {"random": result["vs_reference_order"]}
