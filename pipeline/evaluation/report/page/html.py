"""Puts the page together: report.html with the data in it, or the page of `rondo view`, which asks for its data.

The page is one file. Its scripts and styles are allowed by their digests and nothing else is, so that no text of an
article, a summary or a model can become a script, and the page sends no request (Content-Security-Policy).
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pipeline.config import Config
from pipeline.evaluation.comparison import CountingSettings
from pipeline.evaluation.report.page.articles import ArticleReader
from pipeline.evaluation.report.page.index import ArticleIndex, build_index, find_tables
from pipeline.evaluation.report.page.overview import CURVES, collect_overview
from pipeline.storage.ledger import Ledger

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("chart.umd.min.js", "dom.js", "source.js", "overview.js", "samples.js", "main.js")
_MOST_BYTES = 3_500_000  # of the articles in report.html, which is to stay under 5 MB
_MOST_ARTICLES = 400
_LONGEST = 20_000  # characters of a text in report.html


def report_page(metrics: dict[str, Any], config: Config, ledger: Ledger) -> str:
    """The content of report.html.

    It has the articles with the largest losses and gains, and others drawn by a hash, as many as there is room for.

    Args:
        metrics: see `metrics.collect_metrics`.
    """
    tables = find_tables(ledger, [entry["round"] for entry in metrics["rounds"]])
    index = build_index(ledger, tables, CountingSettings.from_config(config))
    reader = ArticleReader(config, ledger, tables, index)
    number = max(tables.rounds, default=0)
    items: list[dict[str, Any]] = []
    articles: dict[str, Any] = {}
    size = 0
    for i in _most_telling_first(index, number):
        article = _shorten(reader.read(i))
        size += len(_as_json(article))
        if size > _MOST_BYTES or len(items) == _MOST_ARTICLES:
            break
        articles[article["id"]] = article
        items.append({"id": article["id"], "title": index.item(i, number)["title"], "split": article["split"]})
    samples = {"rounds": list(tables.rounds), "total": len(index), "items": sorted(items, key=lambda item: item["id"])}
    overview = collect_overview(metrics, config, ledger)
    return render_page({"overview": overview, "samples": samples, "articles": articles, "server": False})


def _most_telling_first(index: ArticleIndex, number: int) -> Iterator[int]:
    """All articles once: by turns a large loss, a large gain, and two drawn by a hash, held-out ones first."""
    drawn = sorted(range(len(index)), key=lambda i: hashlib.sha256(index.ids[i].as_py().encode()).digest())
    held_out = [i for i in drawn if index.splits[i].as_py() == "eval"]
    others = [i for i in drawn if index.splits[i].as_py() != "eval"]
    queues = [iter(each) for each in (index.select("loss", number), index.select("gain", number), held_out, others)]
    seen: set[int] = set()
    while queues:
        for queue in list(queues):
            i = next((int(i) for i in queue if int(i) not in seen), None)
            if i is None:
                queues.remove(queue)
            else:
                seen.add(i)
                yield i


def _shorten(value: Any) -> Any:
    """The value with every long text cut, so that one article cannot fill the file."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[:_LONGEST]} … (cut here; `rondo view` shows all)"
    if isinstance(value, list):
        return [_shorten(each) for each in value]
    return {name: _shorten(each) for name, each in value.items()} if isinstance(value, dict) else value


def render_page(data: dict[str, Any]) -> str:
    """The page with this data: `server` says whether it asks a server for everything else."""
    style, script, template = _assets()
    policy = content_policy(data["server"])
    return template.render(policy=policy, style=style, script=script, data=_as_json({"curves": CURVES, **data}))


def content_policy(has_server: bool) -> str:
    """The Content-Security-Policy of the page: its own style and script, and its own server if it has one."""
    style, script, _ = _assets()
    requests = "'self'" if has_server else "'none'"
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        f"connect-src {requests}; base-uri 'none'; form-action 'none'"
    )


@cache
def _assets() -> tuple[str, str, jinja2.Template]:
    """The style, all scripts as one, and the template of the page."""
    scripts = "\n".join((_ASSETS / name).read_text(encoding="utf-8").strip() for name in _SCRIPTS)
    assert "</script" not in scripts, "it would end the script"
    style = (_ASSETS / "page.css").read_text(encoding="utf-8")
    return style, scripts, jinja2.Template((_ASSETS / "page.html.j2").read_text(encoding="utf-8"))


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _as_json(value: Any) -> str:
    """JSON that is safe inside a script element: no `<`, and ASCII only, so that no broken text can break the file."""
    return json.dumps(value, separators=(",", ":"), default=_plain, allow_nan=False).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")
