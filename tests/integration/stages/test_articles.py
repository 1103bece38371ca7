"""The corpus: a bad row is set aside with its reason, a bad file is refused in one line, nothing disappears."""

import io
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipeline.config import UserError
from pipeline.config.loader import load_config
from pipeline.config.run import Articles
from pipeline.data.dedup import SeenTexts
from pipeline.execution.progress import Display
from pipeline.execution.runner import Runner
from pipeline.stages.articles import (
    NoNewArticles,
    check_corpus,
    is_for_test,
    is_held_out,
    read_articles,
    read_first_articles,
    read_new_articles,
)
from pipeline.stages.questions import ask_questions
from pipeline.storage import tables
from pipeline.storage.ledger import Ledger
from pipeline.storage.schema import to_dataset
from tests.helpers.paths import ROOT
from tests.helpers.scripted_rounds import settings

WORDS = " ".join(f"word{i}" for i in range(30))


def article(name):
    """30 words that no article of another name has."""
    return " ".join(f"word{name}x{i}" for i in range(30))


def rows(path, **settings):
    found = []
    try:
        for table in read_articles(articles=Articles(path=str(path), **settings)):
            found += table.to_pylist()
    except UserError as error:
        assert "has no article for" in str(error)  # noqa: PT017 (so few rows rarely fall on both sides of the split)
    return found


@pytest.fixture
def write(tmp_path):
    def _write(*lines, name="a.jsonl"):
        path = tmp_path / name
        path.write_bytes(b"\n".join(s if isinstance(s, bytes) else json.dumps(s).encode() for s in lines))
        return path

    return _write


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"id": "x", "text": ""}, "empty"),
        ({"id": "x", "text": " \n\t "}, "empty"),
        ({"id": "x", "text": None}, "no text"),
        ({"id": "x", "text": 7}, "no text"),
        ({"id": "x"}, "no text"),
        ({"text": WORDS}, "no id"),
        ({"id": "", "text": WORDS}, "no id"),
        ({"id": "x", "text": "five words are too few"}, "under 20 words"),
        ({"id": "x", "text": "word " * 200_000}, "over 4000 words"),
        ({"id": "x", "text": "北京今天下雨。"}, "under 20 words"),
        ({"id": "x", "text": "北京今天下雨。" * 1000}, "over 4000 words"),
        ({"id": "first", "text": "Another text. " + WORDS}, "duplicate id"),
        ({"id": "x", "text": "A first text. " + WORDS}, "near-copy of another article"),
        ({"id": "x", "text": "a FIRST text –  " + WORDS + "!"}, "near-copy of another article"),
        (b'{"id": "x", "text": "cut of', "not JSON"),
        (b'{"id": "x", "text": "\xff\xfe"}', "not UTF-8"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_a_bad_row_is_set_aside_and_the_others_are_kept(write, line, reason):
    path = write({"id": "first", "text": "A first text. " + WORDS}, line, {"id": "last", "text": article("last")})
    found = rows(path)
    assert [row["skipped"] for row in found] == [None, reason, None]


@pytest.mark.parametrize(
    "text", ["😀 " * 30, "كلمة عربية طويلة هنا " * 10, "é\u0301 ﷺ 漢字 " * 10, "{article} {0} %s " * 10]
)
def test_any_script_is_kept_as_it_is(write, text):
    assert rows(write({"id": "x", "text": text}))[0] == {
        "article_id": "x",
        "article": text,
        "split": "train" if not is_held_out("x", 0.1) else "eval",
        "skipped": None,
    }


def test_half_a_surrogate_pair_is_no_reason_to_stop(write):
    path = write(b'{"id": "a\\ud800", "text": "' + WORDS.encode() + b' \\udfff"}')
    assert rows(path)[0]["skipped"] is None


def test_ids_that_are_numbers_become_text(write):
    assert [row["article_id"] for row in rows(write({"id": 7, "text": WORDS}))] == ["7"]


def test_parquet_is_read_like_json_lines(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["x", "y"], "body": [WORDS, ""], "more": [1, 2]}), path)
    assert [row["skipped"] for row in rows(path, text_column="body")] == [None, "empty"]


def test_a_json_array_is_read_like_json_lines(tmp_path):
    given = [{"id": "x", "text": WORDS}, "no object", {"id": "y", "text": ""}]
    for text in (json.dumps(given), "\n".join(map(json.dumps, given))):
        (tmp_path / "a.json").write_text(text)
        assert [row["skipped"] for row in rows(tmp_path / "a.json")] == [None, "not a JSON object", "empty"]
    (tmp_path / "a.json").write_text(json.dumps(given)[:-5])
    with pytest.raises(UserError, match="cannot be read as JSON.*cut off or damaged"):
        check_corpus(Articles(path=str(tmp_path / "a.json")))


def test_the_limit_counts_rows_of_the_file(write):
    path = write(*({"id": i, "text": article(i)} for i in range(9)))
    assert [row["article_id"] for row in rows(path, limit=4)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("opened", [check_corpus, lambda articles: list(read_articles(articles=articles))])
def test_a_file_that_cannot_be_used_is_refused(write, tmp_path, opened):
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"id": ["x"], "text": [WORDS]}), whole)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-20])
    cases = {
        "none.jsonl": "no such file",
        "cut.parquet": "is it cut off or damaged",
        "a.xlsx": "should end in .jsonl, .ndjson, .json, .csv or .tsv",
    }
    (tmp_path / "a.xlsx").write_text("id,text")
    for name, line in cases.items():
        with pytest.raises(UserError, match=line) as caught:
            opened(Articles(path=str(tmp_path / name)))
        assert "\n" not in str(caught.value)
    write({"id": "x", "body": WORDS}, name="other.jsonl")
    with pytest.raises(UserError, match=r"has no column 'text'; it has id, body: name the right one as articles\.text"):
        opened(Articles(path=str(tmp_path / "other.jsonl")))
    pq.write_table(pa.table({"key": ["x"], "text": [WORDS]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="has no column 'id'; it has key, text"):
        opened(Articles(path=str(tmp_path / "other.parquet")))


def test_a_corpus_without_an_exam_is_refused(write):
    path = write({"id": "x", "text": WORDS}, {"id": "y", "text": ""}, b"nonsense")
    with pytest.raises(UserError, match=r"has no article for (eval|train) \((eval|train): 1, empty: 1, not JSON: 1\)"):
        list(read_articles(articles=Articles(path=str(path))))


def test_an_empty_file_is_refused(write):
    with pytest.raises(UserError, match="is empty"):
        check_corpus(Articles(path=str(write())))


def test_the_split_depends_on_the_id_alone():
    held_out = {i for i in range(20_000) if is_held_out(str(i), 0.25)}
    assert 4700 < len(held_out) < 5300  # 5000 expected, five deviations either way
    assert held_out == {i for i in reversed(range(20_000)) if is_held_out(str(i), 0.25)}
    assert {
        i for i in range(20_000) if is_held_out(str(i), 0.1)
    } <= held_out  # a larger exam keeps the smaller one's articles


@given(st.text(), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_test_articles_come_from_training_alone(name, held_out, less, more):
    """Whatever the shares: a larger one takes nothing from the other, and no share takes nothing."""
    less, more = sorted((less, more))
    assert not is_for_test(name, 0.0)
    assert is_for_test(name, less) <= is_for_test(name, more)
    if held_out + more < 1:
        assert not (is_held_out(name, held_out) and is_for_test(name, more))


def test_a_test_fraction_moves_articles_from_training_only(write):
    path = write(*({"id": i, "text": article(i)} for i in range(200)))
    before, after = ({row["article_id"]: row["split"] for row in rows(path, **shares)} for shares in (
        {"eval_fraction": 0.3}, {"eval_fraction": 0.3, "test_fraction": 0.2}
    ))  # fmt: skip
    moved = {(before[name], after[name]) for name in before if before[name] != after[name]}
    assert moved == {("train", "test")}
    assert before == {str(i): "eval" if is_held_out(str(i), 0.3) else "train" for i in range(200)}
    assert 20 < list(after.values()).count("test") < 60


def test_no_document_and_no_text_is_both_in_the_test_and_elsewhere(write):
    path = write(
        *({"id": f"{d}-{q}", "document": f"d{d}", "text": article(f"{d}q{q}")} for d in range(30) for q in range(3)),
        *({"id": f"copy{d}", "document": f"c{d}", "text": f"{article(f'{d}q0')} more"} for d in range(30)),
    )
    found = rows(path, group_column="document", eval_fraction=0.3, test_fraction=0.3)
    kept = [row for row in found if row["skipped"] is None]
    assert len(kept) == 90 and {row["split"] for row in kept} == {"train", "eval", "test"}
    assert len({(row["article_id"].split("-")[0], row["split"]) for row in kept}) == 30


def test_a_corpus_without_a_test_article_is_refused(write):
    kept = [i for i in range(200) if not is_for_test(str(i), 0.2)]
    path = write(*({"id": i, "text": article(i)} for i in kept))
    with pytest.raises(UserError, match=r"no article for test \(.*change articles\.test_fraction"):
        list(read_articles(articles=Articles(path=str(path), test_fraction=0.2)))


def test_a_run_asks_about_test_articles_only_when_told(ray_cluster, tmp_path):
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("\n".join(json.dumps({"id": str(i), "text": article(i)}) for i in range(40)))
    overrides = (f"articles.path={corpus}", "articles.eval_fraction=0.3", "articles.test_fraction=0.3")
    config = settings(tmp_path / "run", [0, 0], *overrides, "questions.max_skipped=1.0")
    run = Runner(config, Ledger(config.run), Display(Console(file=io.StringIO())))
    source = run.produce(read_articles)
    expected = source.record["tally"]
    asked = run.produce(ask_questions, source)
    assert set(asked.record["ids"]) <= {"train", "eval"}
    assert asked.record["in"] == expected["train"] + expected["eval"]
    tested = run.produce(replace(ask_questions, splits=("test",)), source, into="test")
    assert tested.record["in"] == expected["test"] > 0


def test_real_articles_are_all_kept(shared_data):
    for name, count in (("wikinews", 323), ("cnn_dailymail_validation", 1000)):
        found = rows(shared_data / "articles" / f"{name}.jsonl")
        assert len(found) == count
        assert sum(row["skipped"] is None for row in found) > 0.99 * count


def reading_on(path, *taken, **settings):
    """What a later round reads, after the articles of those before it."""
    before = [to_dataset([{"article_id": i, "article": text, "split": "train"} for i, text in some]) for some in taken]
    found = read_new_articles(
        *before, articles=Articles(path=str(path), eval_fraction=0.3, each_round="new", **settings)
    )
    return [row for table in found for row in table.to_pylist()]


@pytest.mark.usefixtures("ray_cluster")
def test_a_later_round_takes_what_no_round_before_it_had(write):
    texts = {f"a{i}": article(i) for i in range(40)}
    path = write(*({"id": i, "text": text} for i, text in texts.items()))
    first, second = [list(texts.items())[some] for some in (slice(0, 12), slice(12, 20))]
    rows = reading_on(path, first, second, limit=8)
    assert [row["article_id"] for row in rows] == [f"a{i}" for i in range(20, 28)]
    assert {row["split"] for row in rows} == {"train", "eval"}, "the side is the id's, as ever"
    assert [row["split"] == "eval" for row in rows] == [is_held_out(row["article_id"], 0.3) for row in rows]
    assert len(reading_on(path, first, second)) == 20


@pytest.mark.usefixtures("ray_cluster")
def test_the_corpus_may_have_grown_at_its_head_and_bad_rows_do_not_use_up_the_limit(write):
    long = f"{article(1)} {WORDS}"
    old = [("a1", long)]
    path = write(
        {"id": "bad", "text": "short"},
        {"id": "copy", "text": f"{long} and more"},
        {"id": "new", "text": article(2)},
        {"id": "a1", "text": long},
        {"id": "newer", "text": article(3)},
    )
    found = [(row["article_id"], row["skipped"]) for row in reading_on(path, old, limit=2)]
    assert found == [
        ("bad", "under 20 words"),
        ("copy", "near-copy of another article"),
        ("new", None),
        ("newer", None),
    ]


@pytest.mark.usefixtures("ray_cluster")
def test_nothing_new_to_train_on_is_said(write):
    texts = {f"a{i}": article(i) for i in range(9)}
    held_out = next(f"b{i}" for i in range(100) if is_held_out(f"b{i}", 0.3))
    path = write(*({"id": i, "text": text} for i, text in texts.items()), {"id": held_out, "text": article("b")})
    with pytest.raises(NoNewArticles, match="has no new article to train on"):
        reading_on(path, texts.items())


def test_a_chinese_article_is_as_long_as_its_characters(write):
    text = "北京市政府周一宣布，将在未来三年内修建五条新的地铁线路，总长度超过一百公里。"
    assert rows(write({"id": "x", "text": text}))[0]["skipped"] is None


def questions_about_documents():
    """Six questions about each of 10 documents, in the form of configs/document_qa.yaml."""
    return [
        {
            "id": f"{d}-{q}",
            "document": f"d{d}",
            "text": f"{article(d)} {article(d + 100)}\n\nQuestion: What is word {q}?",
        }
        for d in range(10)
        for q in range(6)
    ]


def test_six_questions_about_a_document_are_six_articles_and_on_one_side_of_the_split(write):
    config = load_config(ROOT / "configs" / "document_qa.yaml").articles
    path = write(*questions_about_documents())
    found = rows(path, **config.model_dump(exclude={"path", "eval_fraction"}), eval_fraction=0.3)
    assert [row["skipped"] for row in found] == [None] * 60
    sides = {(row["article_id"].split("-")[0], row["split"]) for row in found}
    assert len(sides) == 10, "a document is never in both"
    assert {side for _, side in sides} == {"train", "eval"}


def test_with_the_default_questions_about_a_document_are_near_copies_and_counted_as_such(write):
    found = [row["skipped"] for row in rows(write(*questions_about_documents()))]
    assert found.count("near-copy of another article") == 50


def test_the_same_text_is_skipped_even_if_near_copies_are_kept(write):
    path = write({"id": 1, "text": WORDS}, {"id": 2, "text": WORDS.upper()}, {"id": 3, "text": f"{WORDS} more"})
    assert [row["skipped"] for row in rows(path, near_copies=None)] == [None, "near-copy of another article", None]


def test_articles_with_one_cover_page_are_different_articles(write):
    cover = " ".join(f"cover{i}" for i in range(40))
    path = write(*({"id": i, "text": f"{cover} {article(i)} {article(i + 50)}"} for i in range(8)))
    assert [row["skipped"] for row in rows(path)] == [None] * 8


@pytest.mark.parametrize(
    ("group", "reason"), [(None, "no group"), ("", "no group"), (["d"], "group of a wrong type"), (7, None)]
)
def test_a_row_without_a_group_is_skipped(write, group, reason):
    path = write({"id": 1, "document": group, "text": WORDS}, {"id": 2, "document": "d", "text": article(2)})
    assert [row["skipped"] for row in rows(path, group_column="document")] == [reason, None]


def test_a_group_column_that_is_not_there_is_refused(write):
    path = write({"id": 1, "text": WORDS})
    with pytest.raises(UserError, match=r"has no column 'document'.*articles\.group_column=…"):
        check_corpus(Articles(path=str(path), group_column="document"))


def test_a_group_column_of_parquet_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    groups = ["g1", "g2"] * 10
    pq.write_table(pa.table({"id": list(range(20)), "text": list(map(article, range(20))), "group": groups}), path)
    found = rows(path, group_column="group", eval_fraction=0.5)
    assert [row["split"] == "eval" for row in found] == [is_held_out(group, 0.5) for group in groups]


@given(st.lists(st.text(max_size=3), max_size=60))
def test_seen_is_a_set(texts):
    seen, known = SeenTexts(), set()
    for text in texts:
        assert (text in seen) == (text in known)
        assert seen.add(text) == (text not in known)
        known.add(text)


def test_round_without_new_articles_leaves_no_artifact(ray_cluster, tmp_path):
    """Real stages in a real run: without new articles there is no artifact, and with later ones there is."""
    corpus = tmp_path / "a.jsonl"
    lines = [json.dumps({"id": f"a{i}", "text": article(i)}) for i in range(60)]
    corpus.write_text("\n".join(lines[:40]))
    overrides = (f"articles.path={corpus}", "articles.each_round=new", "articles.eval_fraction=0.3")
    config = settings(tmp_path / "run", [0, 0], *overrides)

    def run():
        return Runner(config, Ledger(config.run), Display(Console(file=io.StringIO())))

    first = run().produce(read_first_articles)
    with pytest.raises(NoNewArticles):
        run().produce(read_new_articles, first, into="round-02")
    assert run().ledger.find("round-02/articles") is None
    corpus.write_text("\n".join(lines))
    assert run().produce(read_first_articles).build == first.build, "a corpus that has grown makes nothing stale"
    second = run().produce(read_new_articles, first, into="round-02")
    found = [row["article_id"] for row in tables.read_table(run().ledger, second)]
    assert sorted(found) == sorted(f"a{i}" for i in range(40, 60))
    assert run().produce(read_new_articles, first, into="round-02").build == second.build
