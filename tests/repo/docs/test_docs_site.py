"""The site of `make docs`: its reference covers the code, and it builds without a warning and without a network."""

import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer

from docs.site.reference import commands_page, sections, settings_page
from jobs.cli import app
from pipeline.config import Alignment, Config
from tests.helpers.paths import ROOT


def test_every_setting_has_a_meaning() -> None:
    settings = [setting for config in (Config, Alignment) for each in sections(config) for setting in each.settings]
    assert not [setting.name for setting in settings if not setting.meaning], "comment the field in pipeline/config/"


def test_a_setting_is_shown_with_its_kind_default_stages_and_comments() -> None:
    settings = {setting.name: setting for section in sections() for setting in section.settings}
    beta = settings["training.beta"]
    assert (beta.kind, beta.default, beta.stages) == ("a number above 0", "0.1", ("policy",))
    start = settings["start_from"]
    assert start.kind == "`latest` or `champion`" and start.stages == ()
    assert "- `champion`: the last policy" in start.meaning
    assert settings["articles.path"].kind == "a path, URI or hub name" and settings["articles.path"].default is None
    assert settings["summaries.temperature"].kind == "a number, or a list of numbers"
    assert settings["hardware.servers.NAME.prices.NAME.input"].kind == "a number of at least 0"


def test_the_reference_has_every_section_once() -> None:
    page = settings_page()
    for name in ("judge.members.NAME", "second_judge", "hardware.judge", "training.lora", "rondo train"):
        assert page.count(f"\n## {name} {{") == 1, name
    assert "### `pairs` {" in page  # of rondo train


def test_the_reference_has_every_command_and_option() -> None:
    page = commands_page()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"\n## rondo {name} {{" in page
        for option in (option for parameter in command.params for option in parameter.opts if option.startswith("--")):
            assert option in page, f"rondo {name} {option}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning as an error: of links, anchors, docstrings and pages in no menu."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed: make docs")
    pytest.importorskip("mmdr", reason="the extra docs is not installed: make docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "docs" / "site" / "mkdocs.yml"), site_dir=str(folder), strict=True)
    path = sys.path.copy()
    try:
        build(config)
    finally:
        sys.path[:] = path
    return folder


@pytest.fixture
def home(site: Path) -> Iterator[str]:
    """The address at which the site is served."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Print no line for each request."""

    handler = partial(Handler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_the_site_needs_no_other_host(site: Path, home: str) -> None:
    """In a browser each page asks its own server only, no phone has to scroll sideways, and the search works."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make dev")
    from tests.integration.page.page_run import find_chromium

    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for path in sorted(site.rglob("*.html")):
            page.goto(home + path.relative_to(site).as_posix())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(f"{home}index.html")
        page.get_by_role("textbox", name="Search").fill("warmup_ratio")
        page.wait_for_selector('a[href*="reference/settings.html"][href$="#training.warmup_ratio"]', state="attached")
        browser.close()
    assert not errors
    assert not [url for url in requests if not url.startswith((home, "data:", "blob:"))]
