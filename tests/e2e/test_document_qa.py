"""Another task, whole: questions about documents are answered, judged, paired and learned from, by settings alone."""

import json
from statistics import mean

import pytest
from transformers import AutoTokenizer

from newsroom.recipe.make_articles import documents
from tests.helpers.cli import RUN_TIMEOUT, run_rondo
from tests.helpers.paths import ROOT
from tests.helpers.tables import read_rows

BASELINES = ("lead", "shorten-only")


@pytest.mark.slow
def test_answers_to_questions_about_documents_are_learned(tmp_path):
    command = ["run", "configs/document_qa_cpu.yaml", f"run={tmp_path}", "articles.limit=80", "judge.logprobs=true"]
    done = run_rondo(*command, "pairs.weighting=margin", "training.pairs_per_step=36", timeout=2 * RUN_TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr

    story = {document.id: document for document in documents()}
    asked = read_rows(tmp_path / "questions")
    assert len(asked) >= 72
    about = [q["question"] in story[row["article_id"]].text for row in asked for q in row["questions"]]
    assert mean(about) > 0.9, "what survives the check is what the document asks"

    written = read_rows(tmp_path / "round-01" / "summaries")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "newsroom/models/policy")
    assert story[written[0]["article_id"]].text in tokenizer.decode(written[0]["prompt_ids"])

    for row in read_rows(tmp_path / "round-01" / "pairs"):
        assert all(0 <= score["soft"] <= score["correct"] for score in row["scores"])
        if row["pairs"]:
            assert mean(pair["weight"] for pair in row["pairs"]) == pytest.approx(1.0, abs=1e-5)

    before, after = (
        mean(row["scores"][0]["words"] for row in read_rows(tmp_path / name) if row["writer"] not in BASELINES)
        for name in ("round-00/evaluation", "round-01/evaluation")
    )
    assert after < 0.8 * before, "a base answer says itself several times"
    record = json.loads((tmp_path / "round-01" / "scores" / "record.json").read_text())
    assert record["tally"]["unread"] == 0
