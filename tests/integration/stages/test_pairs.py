"""Pairs made by Ray Data's workers: a user's own preference, and replay of earlier rounds."""

import sys
from collections import Counter

import pyarrow as pa
import pytest

from pipeline.config.judging import Pairs
from pipeline.stages.pairs import make_pairs, replay_pairs
from pipeline.storage.schema import COLUMNS, to_dataset
from tests.helpers.tables import row_with_pairs


def test_user_function_is_sent_to_the_workers(ray_cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "travelling_preference.py").write_text(
        "LEAST = 1\ndef prefer(a, b, settings): return (a['words'] > b['words']) - (a['words'] < b['words'])"
    )
    article = row_with_pairs("w", 2, [])
    for score, words in zip(article["scores"], (9, 20), strict=True):
        score["words"] = words
    (made,) = make_pairs(to_dataset([article]), Pairs(preference="travelling_preference:prefer")).take_all()
    assert [(p["chosen"], p["rejected"]) for p in made["pairs"]] == [(1, 0)]


@pytest.mark.usefixtures("ray_cluster")
def test_replay_gives_each_article_once_and_a_share_of_the_earlier_rounds():
    now = [row_with_pairs("now", 3, [(1, 0)], f"a{i}") for i in range(30)]
    first = [row_with_pairs("r1", 2, [(1, 0)], f"a{i}") for i in range(20, 60)]
    second = [row_with_pairs("r2", 2, [(1, 0)], f"a{i}") for i in range(40)]
    found = replay_pairs(
        to_dataset(now), to_dataset(first), to_dataset(second), pairs=Pairs(replay=0.5), seed=0
    ).take_all()
    ids = [one["article_id"] for one in found]
    assert len(ids) == len(set(ids)) and {f"a{i}" for i in range(30)} <= set(ids)
    tally = Counter()
    for one in found:
        tally.update({entry["what"]: entry["count"] for entry in one["tally"]})
    assert len(ids) + tally["merged"] == 30 + tally["replayed pairs"], "each of these rows has one pair"
    assert 6 <= tally["replayed pairs"] <= 24, "15 are expected of 80, three deviations either way"
    for one in found:
        assert one["skipped"] is None
        marks = [summary["writer"] for summary in one["summaries"]]
        assert marks[:3] == [None] * 3 or one["writer"] in ("r1", "r2")
        assert set(COLUMNS) >= set(one)


@pytest.mark.usefixtures("ray_cluster")
def test_pairs_of_a_table_without_the_newer_fields_of_scores_are_replayed():
    now, old = (to_dataset([row_with_pairs("w", 2, [(1, 0)], article)]) for article in ("now", "old"))
    names = ("answers", "correct", "unread", "words", "invalid_chars")
    older_type = pa.list_(pa.struct({name: COLUMNS["scores"].value_type.field(name).type for name in names}))

    def to_older(table: pa.Table) -> pa.Table:
        scores = pa.array(table["scores"].to_pylist(), older_type)
        return table.set_column(table.schema.get_field_index("scores"), "scores", scores)

    older = old.map_batches(to_older, batch_format="pyarrow")
    found = replay_pairs(now, older, pairs=Pairs(replay=1.0), seed=0).take_all()
    assert {one["article_id"]: one["scores"][1]["faults"] for one in found} == {"now": None, "old": None}
    assert all(one["scores"][1]["correct"] == 1 and len(one["pairs"]) == 1 for one in found)
