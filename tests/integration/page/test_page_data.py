"""What the page of a run gets: the index, the articles in the file, the server's guard, progress."""

import asyncio
import json
import time

import httpx
import numpy as np
import pytest

from jobs.show.run_data import RunData
from jobs.show.view import serving
from pipeline.config import UserError
from pipeline.evaluation.comparison import CountingSettings
from pipeline.evaluation.report.page import html
from pipeline.evaluation.report.page.articles import ArticleReader
from pipeline.evaluation.report.page.index import (
    FILTERS,
    ArticleIndex,
    build_index,
    count_parts,
    find_tables,
    search_articles,
)
from pipeline.evaluation.report.page.overview import collect_overview, read_metrics
from pipeline.execution.progress import Display, publishing_progress
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import PROGRESS, read_settings
from tests.helpers.tables import read_rows
from tests.integration.page.page_run import FLAGGED, HOSTILE, make_run, served


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "page")


@pytest.fixture(scope="module")
def indexed(run):
    """The run's tables and their index."""
    tables, counted = find_tables(run.ledger), []
    index = build_index(run.ledger, tables, CountingSettings.from_config(run.config), lambda: counted.append(1))
    assert len(counted) == count_parts(tables), "the share that is done ends at 1"
    return tables, index


def test_the_index_agrees_with_the_report_and_the_tables(run, indexed):
    _, index = indexed
    metrics = read_metrics(run.ledger)
    for entry in metrics["rounds"]:
        rate = entry["vs_base"]["strict"]
        found = [len(index.select(only, entry["round"])) for only in ("won", "tie", "lost")]
        assert found == [rate["wins"], rate["ties"], rate["losses"]]
    folder = f"{run.ledger.root}/round-{{:02d}}/evaluation"
    base, ours = (
        {row["article_id"]: row["scores"][0]["correct"] for row in read_rows(folder.format(number))}
        for number in (0, 2)
    )
    losses = [index.item(int(i), 2) for i in index.select("loss", 2)]
    for item in losses:
        assert item["values"] == [base[item["id"]], ours[item["id"]]]
    changes = [(item["values"][1] - item["values"][0], item["words"][0] - item["words"][1]) for item in losses]
    assert changes == sorted(changes), "the largest loss first, then the summary that grew most"
    assert changes[0][0] == min(ours[name] - base[name] for name in ours) < 0
    for flag, articles in FLAGGED.items():
        held_out = {f"a{i:03d}" for i in articles if i % 5}
        assert {index.ids[int(i)].as_py() for i in index.select(flag, 2, "eval")} == held_out
    test_ids = {row["article_id"] for row in read_rows(f"{run.ledger.root}/test/base/evaluation")}
    assert test_ids and not [address for address in index.places if address.startswith("test/")]


def test_the_saved_index_is_the_same(indexed):
    _, index = indexed
    again = ArticleIndex.from_table(index.to_table())
    for only in FILTERS:
        assert np.array_equal(again.select(only, 1), index.select(only, 1))
    assert [again.item(i, 2) for i in range(len(index))] == [index.item(i, 2) for i in range(len(index))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"STORY 34."', 1),
        ("a01", 10),
        ("onerror", 1),
        ("(a|b", 0),
        ('"oslo has"', 79),
        ("1934 bridge a034", 1),
        ('"', 100),
    ],
)
def test_a_search_looks_for_all_its_words_as_they_are(run, indexed, text, found):
    tables, index = indexed
    assert search_articles(run.ledger, tables, index, text).sum() == found


def test_an_article_has_every_summary_and_the_pairs(run, indexed):
    reader = ArticleReader(run.config, run.ledger, *indexed)
    held_out = reader.read(indexed[1].find("a034"))
    assert [writer["name"] for writer in held_out["writers"]] == ["base", "round 1", "round 2", "lead", "shorten-only"]
    assert held_out["questions"][0]["passage"] == "The bridge of Oslo was built in 1934."
    training = reader.read(indexed[1].find("a005"))
    assert not training["writers"] and [len(each["summaries"]) for each in training["samples"]] == [2, 2]
    assert training["samples"][0]["pairs"][0] == {"chosen": 1, "rejected": 0, "reason": HOSTILE, "weight": None}


def test_the_file_holds_the_worst_and_the_best_when_there_is_no_room_for_all(run, indexed, monkeypatch):
    _, index = indexed
    monkeypatch.setattr(html, "_MOST_BYTES", 90_000)
    page = html.report_page(read_metrics(run.ledger), run.config, run.ledger)
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert 4 < len(data["samples"]["items"]) < data["samples"]["total"] == 100
    for only in ("loss", "gain"):
        assert index.ids[int(index.select(only, 2)[0])].as_py() in data["articles"]
    assert page.count("</script>") == 2, "only the page's own two scripts end"


def test_a_text_cannot_fill_the_file():
    assert len(html._shorten({"a": ["x" * 10**6]})["a"][0]) < 21_000


def test_a_run_of_an_older_version_is_shown(run):
    """Its metrics.json lacks what was added since."""
    metrics = read_metrics(run.ledger)
    for name in ("test", "second_judge", "stopped", "notes", "compared", "confidence", "champion"):
        del metrics[name]
    for writer in (metrics["base"], *metrics["rounds"]):
        del writer["faults"]
    older = Ledger(f"{run.ledger.root}-older")
    older.write("metrics.json", json.dumps(metrics))
    overview = collect_overview(read_metrics(older), run.config, older)
    assert overview["results"]["headline"]["on"] == "held-out" and overview["stages"] == []
    older.write("metrics.json", "{")
    with pytest.raises(UserError, match="damaged"):
        read_metrics(older)


# The server


def test_only_who_holds_the_link_is_answered(run, tmp_path):
    with served(RunData(run.config, run.ledger, tmp_path)) as link:
        root, _, token = link.partition("?token=")
        assert root.startswith("http://127.0.0.1:"), "the loopback address"
        with httpx.Client(base_url=root) as client:
            held = {"Authorization": f"Bearer {token}"}
            assert client.get("api/overview", headers=held).json()["run"] == "page"
            page = client.get("", params={"token": token})
            assert "connect-src 'self'" in page.headers["Content-Security-Policy"]
            assert page.headers["Cache-Control"] == "no-store" and HOSTILE[:20] not in page.text
            for path in ("", "api/overview", "api/rounds", "api/articles", "api/article?id=a001", "api/progress", "x"):
                for wrong in ({}, {"Authorization": f"Bearer {token}x"}, {"Authorization": "Bearer é".encode()}):
                    assert client.get(path, headers=wrong).status_code == 403, path
                assert client.get(path, headers=held | {"Host": "evil.example"}).status_code == 403, "DNS rebinding"
            assert client.post("api/overview", headers=held).status_code == 405
            assert client.get("../../etc/passwd", headers=held).status_code == 404
            assert client.get("api/articles", headers=held, params={"only": "x"}).status_code == 400
            assert client.get("api/articles", headers=held, params={"offset": "-1"}).status_code == 400
            assert client.get("api/article", headers=held, params={"id": "nobody"}).status_code == 404


def test_a_port_that_is_taken_is_named(run, tmp_path):
    async def twice():
        data = RunData(run.config, run.ledger, tmp_path)
        async with serving(data, 0) as link:
            port = int(link.rpartition(":")[2].partition("/")[0])
            async with serving(data, port):
                pass

    with pytest.raises(UserError, match="--port .* cannot be used"):
        asyncio.run(twice())


def test_the_index_is_kept_until_a_table_changes(run, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def wait_for_articles():
        data = RunData(run.config, run.ledger, cache)
        assert len(data.articles("all", 2, "eval", "", 0, 50)["items"]) == 50, "a list is there at once"
        data.ready.wait(30)
        return data

    data = wait_for_articles()
    assert data.articles("unread", 2, "eval", "", 0, 10)["total"] == 1
    assert data.articles("all", 2, "", "story 34.", 0, 10)["items"][0]["id"] == "a034"
    (saved,) = cache.iterdir()
    assert saved.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("jobs.show.run_data.build_index", lambda *_: pytest.fail("it is there"))
    assert wait_for_articles().failure is None
    monkeypatch.undo()
    data.looked = float("-inf")
    record = json.loads(run.ledger.read("round-02/evaluation/record.json"))
    run.ledger.write("round-02/evaluation/record.json", json.dumps(record | {"build": "another"}))
    data.look()
    data.building.join(30)
    run.ledger.write("round-02/evaluation/record.json", json.dumps(record))
    assert data.reader.tables.evaluations[2].build == "another"


def test_progress_is_written_while_a_run_works_and_says_how_it_ended(run, tmp_path):
    ledger, display = Ledger(str(tmp_path)), Display()
    data = RunData(run.config, ledger, tmp_path / "cache")
    assert data.progress() == {"progress": None, "made": 0}
    addresses = ["articles", "round-01/policy", "round-02/policy", "articles"]

    def wait_for(state):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            progress = data.progress()["progress"]
            if progress and [stage["state"] for stage in progress["stages"]] == state:
                return progress
            time.sleep(0.05)
        raise AssertionError(progress)

    def work_until_interrupted():
        with publishing_progress(display, ledger, addresses):
            display.finished.add("articles")
            with display.working(["round-01/policy"], 12, "steps") as (steps,):
                steps.reach(3, 12)
                steps.reach(4, 12)
                progress = wait_for(["made", "working", "to come"])
                assert progress["state"] == "running"
                stage = progress["stages"][1]
                assert (stage["done"], stage["total"], stage["unit"]) == (4, 12, "steps") and stage["left"] > 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work_until_interrupted()
    assert data.progress()["progress"]["state"] == "stopped"
    with publishing_progress(display, ledger, addresses):
        pass
    progress = data.progress()["progress"]
    assert progress["state"] == "finished" and [stage["address"] for stage in progress["stages"]] == ["articles"]
    ledger.write(PROGRESS, json.dumps(progress | {"state": "running", "updated": "2026-01-01T00:00:00Z"}))
    assert data.progress()["progress"]["state"] == "silent", "its driver is gone"


def test_a_run_without_a_finished_round_is_shown(run, tmp_path):
    ledger = Ledger(str(tmp_path / "new"))
    ledger.write("config.yaml", run.ledger.read("config.yaml"))
    data = RunData(read_settings(ledger), ledger, tmp_path / "cache")
    assert data.overview()["results"] is None and data.rounds() == {"rounds": [], "total": 0}
    assert data.articles("all", 0, "", "", 0, 10)["items"] == []
