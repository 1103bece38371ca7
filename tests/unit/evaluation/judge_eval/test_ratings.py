"""Tests the reader of ratings and choices: every form of a row, several raters, and rows that cannot be used."""

import json

import numpy as np
import pytest

from jobs.judge.ratings import read_human_ratings
from pipeline.config import UserError
from tests.helpers.paths import ROOT

SAMPLE = ROOT / "bench/judge_quality/people_sample.jsonl"
RATINGS = ["relevance", "consistency", "coherence", "fluency"]


def read(tmp_path, rows, **options):
    path = tmp_path / "ratings.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return read_human_ratings(str(path), **options)


def test_a_row_per_article_and_a_row_per_summary_give_the_same(tmp_path):
    flat = []
    for row in map(json.loads, SAMPLE.read_text().splitlines()):
        for i, summary in enumerate(row["machine_summaries"]):
            experts = [{name: row[name][i] + shift for name in RATINGS} for shift in (-0.5, 0, 0.5)]
            flat.append({"id": row["id"], "text": row["text"], "decoded": summary, "expert_annotations": experts})
    by_article, by_summary = read_human_ratings(str(SAMPLE)), read(tmp_path, flat)
    assert by_article.names == by_summary.names == RATINGS and not by_article.left_out
    assert len(by_article.articles) == len(by_summary.articles) == 10
    assert by_summary.raters["fluency"] == ["1", "2", "3"] and len(by_article.raters["fluency"]) == 1
    for a, b in zip(by_article.articles, by_summary.articles, strict=True):
        assert (a.article_id, a.article, a.texts) == (b.article_id, b.article, b.texts)
        for name in RATINGS:
            table = by_summary.rater_table(b, name)
            assert table.mean(1) == pytest.approx(by_article.rater_table(a, name)[:, 0])


def test_systems_crowd_and_lists_of_raters_are_read(tmp_path):
    rows = [
        {
            "id": 1,
            "text": "A.",
            "decoded": "x",
            "model_id": "M1",
            "expert_annotations": [{"relevance": 4, "fluency": 5}, {"relevance": 2, "fluency": 3}],
            "turker_annotations": [{"relevance": 1}, {"relevance": 2}, {"relevance": 3}],
        },
        {"id": 1, "text": "A.", "summary": "y", "system": "M2", "relevance": [1, None, 3]},
        {"id": 2, "article": "B.", "summaries": ["p", "q"], "systems": ["M1", "M2"], "relevance": [[1, 2], [3, 4]]},
    ]
    view = read(tmp_path, rows)
    assert view.names == ["relevance", "fluency", "relevance (crowd)"]
    first, second = view.articles
    assert first.systems == ["M1", "M2"] and second.systems == ["M1", "M2"]
    np.testing.assert_array_equal(view.rater_table(first, "relevance"), [[4, 2, np.nan], [1, np.nan, 3]])
    np.testing.assert_array_equal(view.rater_table(first, "relevance (crowd)"), [[1, 2, 3], [np.nan] * 3])
    np.testing.assert_array_equal(view.rater_table(second, "relevance"), [[1, 2, np.nan], [3, 4, np.nan]])


def test_rows_of_several_raters_are_one_summary(tmp_path):
    rows = [
        {"article": "A.", "summary": text, "rater": rater, "overall": number}
        for text, rater, number in (("x", "ann", 1), ("y", "ann", 2), ("x", "bob", 3), ("y", "bob", 4))
    ]
    (article,) = (view := read(tmp_path, rows)).articles
    assert article.texts == ["x", "y"] and view.raters == {"overall": ["ann", "bob"]}
    np.testing.assert_array_equal(view.rater_table(article, "overall"), [[1, 3], [2, 4]])
    # Without a rater, equal summaries are two summaries: two systems may write the same.
    assert len(read(tmp_path, [row | {"rater": None} for row in rows]).articles[0].texts) == 4


def test_choices_are_read(tmp_path):
    rows = [
        {"prompt": "A.", "chosen": "x", "rejected": "y"},
        {"prompt": "A.", "chosen": "x", "rejected": "z"},
        {"article": "A.", "summary": "x", "overall": 3},
    ]
    (article,) = read(tmp_path, rows).articles
    assert article.texts == ["x", "y", "z", "x"] and article.choices == [(0, 1), (0, 2)]


def test_other_columns_are_named(tmp_path):
    rows = [{"article": "A.", "summary": "x", "helpfulness": 3, "relevance": 2}]
    assert read(tmp_path, rows, wanted=["helpfulness"]).names == ["helpfulness"]
    with pytest.raises(UserError, match="--ratings names charm, which no row of .* has: it has article, summary, help"):
        read(tmp_path, rows, wanted=["charm", "relevance"])
    with pytest.raises(UserError, match="--ratings names charm, which no row of .* has: it has article, summary, help"):
        read(tmp_path, rows, wanted=["charm"])


def test_only_the_first_articles_are_used(tmp_path):
    rows = [{"id": i % 3, "text": f"A{i % 3}.", "summary": f"x{i}", "overall": i} for i in range(6)]
    view = read(tmp_path, rows, limit=2)
    assert [article.texts for article in view.articles] == [["x0", "x3"], ["x1", "x4"]] and not view.left_out


GOOD = {"id": "good", "text": "A.", "summary": "x", "overall": 3}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": 1, "text": "B.", "overall": 1}, "rows without a summary"),
        ({"id": 1, "summary": "x", "overall": 1}, "rows without an article"),
        ({"id": 1, "text": "B.", "summary": "y"}, "rows without a rating"),
        ({"id": 1, "text": "B.", "summary": "y", "overall": None}, "rows without a rating"),
        ({"id": 1, "text": "B.", "summary": "y", "overall": "good"}, "rows with a rating that is not a number"),
        ({"id": 1, "text": "B.", "summary": "y", "overall": True}, "rows with a rating that is not a number"),
        ({"id": 1, "text": "B.", "summary": "y", "expert_annotations": [3]}, "annotations are not a list of ratings"),
        ({"id": 1, "text": "B.", "machine_summaries": ["y", "z"], "fluency": [1]}, "not equally long"),
        ({"id": 1, "text": "B.", "summaries": ["y"], "fluency": [1], "systems": []}, "not equally long"),
        ({"id": 1, "text": "B.", "summaries": "y", "fluency": [1]}, "not a list of texts"),
        ({"id": 1, "text": "B.", "summaries": ["y"]}, "rows without a rating"),
        ({"id": "good", "text": "B.", "summary": "y", "overall": 1}, "id has another article"),
        ({"prompt": "B.", "chosen": "y", "rejected": "y "}, "choices between equal texts"),
        ({"prompt": "B.", "chosen": "y", "rejected": None}, "chosen or rejected is not text"),
        ({"prompt": [{"role": "user", "content": "B."}], "chosen": "y", "rejected": "z"}, "article is not text"),
        ("{broken\n", "rows unreadable (not JSON)"),
    ],
)
def test_a_bad_row_is_counted_with_its_reason(tmp_path, row, reason):
    view = read(tmp_path, [GOOD, row])
    (found,) = view.left_out
    assert reason in found and view.left_out[found] == 1
    assert [article.article_id for article in view.articles] == ["good"]


@pytest.mark.parametrize("rows", [[], [{"id": 1, "headline": "x"}, "{broken\n"]])
def test_a_file_without_a_usable_row_is_refused_in_one_line(tmp_path, rows):
    with pytest.raises(UserError, match="has no row that can be used .*Its columns: .*each row needs an article") as e:
        read(tmp_path, rows)
    assert "\n" not in str(e.value) and "--ratings" in str(e.value)
    if rows:
        assert "1 rows without an article" in str(e.value) and "id, headline" in str(e.value)
