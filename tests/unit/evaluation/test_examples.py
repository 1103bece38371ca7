"""Tests which held-out articles the report shows as examples."""

from types import SimpleNamespace

from pipeline.evaluation.report import examples


def row(article, value):
    return {
        "article_id": article,
        "article": "Text.",
        "questions": [],
        "summaries": [{"text": f"{value}"}],
        "scores": [{"answers": [], "correct": 0, "unread": int(value is None), "words": 1, "value": value}],
    }


def test_an_article_whose_score_could_not_be_read_is_no_example(monkeypatch):
    """Counted as 0, it would be the largest loss of a judge whose values are all above 0."""
    before = [row("a", 5.0), row("b", 5.0), row("c", None), row("d", 5.0)]
    after = [row("a", None), row("b", 6.0), row("c", 6.0), row("d", 7.0)]
    rounds = [SimpleNamespace(policy=object(), results=rows) for rows in (before, after)]
    monkeypatch.setattr(examples.tables, "read_table", lambda ledger, results: results)
    assert {found["id"] for found in examples.choose_examples(rounds, None, count=4)} == {"b", "d"}
