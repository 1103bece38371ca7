"""The page of a run in a real browser: report.html from disk, and `rondo view`."""

import json
import re

import pytest

from jobs.show.run_data import RunData
from pipeline.evaluation.comparison import CountingSettings
from pipeline.evaluation.report.page.index import FILTERS, build_index, find_tables
from pipeline.storage.run_folder import PROGRESS
from tests.integration.page.page_run import FLAGGED, HOSTILE, find_chromium, make_run, served

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make dev")
expect = playwright_api.expect
OPENED, ITEMS = ".detail .id bdi", "#samples .list li"  # the id of the article that is shown; the lines of the list
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1360, "height": 900}


@pytest.fixture(scope="module")
def browser():
    path = find_chromium()
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "page")


@pytest.fixture(scope="module")
def links(run, tmp_path_factory):
    """The page of the run: as a file, and from a server."""
    data = RunData(run.config, run.ledger, tmp_path_factory.mktemp("cache"))
    with served(data) as link:
        yield {"file": f"file://{run.ledger.root}/report.html", "server": link}


@pytest.fixture
def open_page(browser, links):
    """Open the page. Afterwards, no request has left this machine, nothing failed, and no text has become a script."""
    opened, trouble = [], []

    def watch(page, own):
        page.on("request", lambda request: request.url.startswith((own, "data:")) or trouble.append(request.url))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: message.type == "error" and trouble.append(message.text))

    def open_it(kind="file", size=DESKTOP, colours="light"):
        page = browser.new_page(viewport=size, color_scheme=colours)
        watch(page, links[kind] if kind == "file" else links[kind].partition("?")[0])
        page.goto(links[kind])
        page.wait_for_selector("#samples .list li:nth-child(9) .won, #samples .list li:nth-child(9) .lost")
        page.wait_for_selector("#samples .card")
        opened.append(page)
        return page

    yield open_it
    for page in opened:
        assert page.evaluate("window.hacked") is None
        assert page.locator("main script, main img, main iframe, a[href^=javascript]").count() == 0
        page.close()
    assert trouble == []


def ids(page):
    return page.locator(f"{ITEMS} button").evaluate_all("all => all.map((each) => each.dataset.id)")


def test_the_report_shows_what_the_run_found(open_page):
    page = open_page()
    titles = ["Win rates against the base", "Articles and summaries", "Can the judge be trusted?", "Training"]
    assert page.locator("h2").all_inner_texts() == [*titles, "Time, tokens and cost"]
    assert re.fullmatch(r"\d+\.\d %", page.locator(".headline .figure").inner_text())
    assert "test articles, which chose nothing" in page.locator(".headline").inner_text()
    assert page.locator("tr.group").all_inner_texts() == ["Test articles", "Held-out articles"]
    drawn = page.evaluate("charts.map(({drawn}) => drawn.data.datasets.reduce((sum, set) => sum + set.data.length, 0))")
    assert len(drawn) == 4 and drawn[2:] == [600, 600], "two rounds of at most 300 points, and no held-out pairs"
    assert "round-01/policy" in page.locator("#costs").inner_text()


def test_the_cells_of_a_column_are_aligned_alike(open_page):
    page = open_page()
    aligned = page.eval_on_selector_all(
        "table",
        """tables => tables.map(table => [...table.querySelectorAll("thead th")].map((_, i) => new Set(
            [...table.querySelectorAll(`tr:not(.group) > :nth-child(${i + 1})`)].map(c => getComputedStyle(c).textAlign)
        ).size))""",
    )
    assert aligned and [table for table in aligned if set(table) != {1}] == []


@pytest.mark.parametrize("kind", ["file", "server"])
def test_filters_find_what_the_index_finds(open_page, run, kind):
    page = open_page(kind)
    index = build_index(run.ledger, find_tables(run.ledger), CountingSettings.from_config(run.config))
    for only in FILTERS:
        page.click(f"[data-filter={only}]")
        expected = [index.ids[int(i)].as_py() for i in index.select(only, 2, "eval")]
        assert expected or only == "tie", f"{only} finds something"
        words = f"1 – {min(50, len(expected))} of {len(expected)}" if expected else "none"
        expect(page.locator(".pages > span").first).to_have_text(words)
        if expected:
            expect(page.locator(f"{ITEMS} button").first).to_have_attribute("data-id", expected[0])
        assert ids(page) == expected[:50], only
        if expected:
            expect(page.locator(OPENED)).to_have_text(expected[0])
    page.click("[data-filter=repeated]")
    page.locator("select[aria-label='Which articles']").select_option("")
    expect(page.locator(ITEMS)).to_have_count(3)
    assert ids(page) == [f"a{i:03d}" for i in sorted(FLAGGED["repeated"])]


@pytest.mark.parametrize("kind", ["file", "server"])
def test_keys_step_and_a_search_finds_ids_and_texts(open_page, kind):
    page = open_page(kind)
    first = ids(page)
    for key, place in (("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("k", 0)):
        page.keyboard.press(key)
        expect(page.locator(OPENED)).to_have_text(first[place])
    page.click("#samples .list li:last-child button")
    page.keyboard.press("j")  # onto the second page of the list
    expect(page.locator(".pages > span").first).to_have_text("51 – 80 of 80")
    expect(page.locator(OPENED)).to_have_text(ids(page)[0])
    assert ids(page)[0] not in first
    page.keyboard.press("/")
    page.keyboard.type("BUILT jk")  # letters, in a search
    assert page.locator(".search").input_value() == "BUILT jk"
    expect(page.locator(ITEMS)).to_have_count(0)
    page.locator(".search").fill('"story 34."')
    expect(page.locator(ITEMS)).to_have_count(1)
    assert ids(page) == ["a034"]
    page.locator(".search").fill("A052")
    expect(page.locator(OPENED)).to_have_text("a052")


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_reload_shows_the_same_article(open_page, kind):
    page = open_page(kind)
    page.click("[data-filter=loss]")
    row = page.locator(f"{ITEMS} button[aria-current]")
    expect(row).to_contain_text("lost")
    expect(page.locator(OPENED)).to_have_text(row.get_attribute("data-id"))
    page.keyboard.press("j")
    opened = row.get_attribute("data-id")
    expect(page.locator(OPENED)).to_have_text(opened)
    assert re.search(rf"lost\s+{opened}\n\d( → \d)? right, \d+( → \d+)? words", row.inner_text())
    page.reload()
    expect(page.locator(OPENED)).to_have_text(opened)
    assert page.get_attribute("[data-filter=loss]", "aria-pressed") == "true"
    page.locator(".search").fill("a005")  # a training article
    page.click("text=Search all articles")
    expect(page.locator(OPENED)).to_have_text("a005")


def test_a_question_marks_its_sentence_and_its_key(open_page):
    page = open_page()
    page.locator(".search").fill("a034")
    expect(page.locator(OPENED)).to_have_text("a034")
    page.click(".ask >> nth=0")
    assert page.locator(".article mark").all_inner_texts() == ["The bridge of Oslo\nwas built in 1934."]
    assert page.locator(".card mark.key").all_inner_texts() == ["Oslo"] * 5
    assert page.locator(".block td .right, .block td .wrong").count() == 5
    page.click(".ask >> nth=0")
    assert page.locator("mark").count() == 0


def test_a_training_article_shows_what_was_chosen_and_why(open_page):
    page = open_page("server")
    page.locator("select[aria-label='Which articles']").select_option("train")
    page.wait_for_selector(".detail details[open]")
    text = page.locator(".detail details[open]").inner_text()
    assert "Round 2: 2 samples, 1 pair to train on" in text and "#1 over #0" in text
    assert "chosen over #0" in text and "rejected for #1" in text and "<script>" in text


def test_hostile_text_is_shown_as_text(open_page):
    page = open_page(size=PHONE)
    page.locator(".search").fill("onerror")
    expect(page.locator(ITEMS)).to_have_count(1)
    page.wait_for_selector(".detail .card >> text=window.hacked")
    assert page.locator(OPENED).text_content() == HOSTILE[:60]
    assert page.locator(".article").text_content().startswith(HOSTILE[:100])
    page.click(".ask >> nth=0")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], "nothing is wider than the screen"


@pytest.mark.parametrize(("kind", "size", "colours"), [("file", DESKTOP, "light"), ("server", PHONE, "dark")])
def test_the_page_is_accessible(open_page, kind, size, colours):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(kind, size, colours)
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    found = Axe().run(page).response["violations"]
    serious = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")]
    assert serious == []


def test_a_run_in_progress_is_shown_also_after_a_reload(open_page, run):
    working = {"address": "round-02/policy", "state": "working", "done": 3, "total": 12, "unit": "steps"}
    stages = [{"address": "articles", "state": "made"}, working | {"rate": 0.5, "left": 18.0}]
    content = {"state": "running", "started": "2026-01-01T00:00:00Z", "updated": "2099-01-01T00:00:00Z"}
    page = open_page("server")
    assert page.locator("#live").is_hidden()
    run.ledger.write(PROGRESS, json.dumps(content | {"stages": stages}))
    try:
        page.reload()
        page.wait_for_selector("#live .stages li")
        assert "1 of 2 stages are made, about 18.0 s left" in page.locator("#live").inner_text()
        assert "3 of 12 steps, 0.5/s, 18.0 s left" in page.locator("#live").inner_text()
        stages[1]["done"] = 9
        run.ledger.write(PROGRESS, json.dumps(content | {"stages": stages}))
        page.wait_for_selector("#live >> text=9 of 12 steps")
        run.ledger.write(PROGRESS, json.dumps(content | {"state": "stopped", "stages": stages}))
        page.wait_for_selector("#live >> text=The run was stopped. The same command resumes it")
    finally:
        run.ledger.delete_file(PROGRESS)
