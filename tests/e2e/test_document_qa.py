"""Another task, whole: questions about documents are answered, judged, paired and learned from, by settings alone."""

import json
import subprocess
import sys
from statistics import mean

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from newsroom.make_articles import documents
from tests.helpers.cli import PACE, environment
from tests.helpers.paths import ROOT

BASELINES = ("lead", "shorten-only")


def rows(folder):
    return [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


@pytest.mark.slow
def test_answers_to_questions_about_documents_are_learned(tmp_path):
    command = [sys.executable, "-m", "jobs.cli", "run", "configs/document_qa_cpu.yaml", f"run={tmp_path}"]
    command += ["articles.limit=80", "judge.logprobs=true", "pairs.weighting=margin", "training.pairs_per_step=36"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=2 * PACE)
    assert done.returncode == 0, done.stdout + done.stderr

    story = {document.id: document for document in documents()}
    asked = rows(tmp_path / "questions")
    assert len(asked) >= 72
    about = [q["question"] in story[row["article_id"]].text for row in asked for q in row["questions"]]
    assert mean(about) > 0.9, "what survives the check is what the document asks"

    written = rows(tmp_path / "round-01" / "summaries")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "newsroom/models/policy")
    assert story[written[0]["article_id"]].text in tokenizer.decode(written[0]["prompt_ids"])

    for row in rows(tmp_path / "round-01" / "pairs"):
        assert all(0 <= score["soft"] <= score["correct"] for score in row["scores"])
        if row["pairs"]:
            assert mean(pair["weight"] for pair in row["pairs"]) == pytest.approx(1.0, abs=1e-5)

    before, after = (
        mean(
            row["scores"][0]["words"] for row in rows(tmp_path / name / "evaluation") if row["writer"] not in BASELINES
        )
        for name in ("round-00", "round-01")
    )
    assert after < 0.8 * before, "a base answer says itself several times"
    record = json.loads((tmp_path / "round-01" / "scores" / "record.json").read_text())
    assert record["tally"]["unread"] == 0
