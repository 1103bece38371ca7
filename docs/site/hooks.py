"""Hooks of MkDocs: they gather the pages of the repository, and write the reference and what else pages link to.

A page stays at its own path, so that its relative links work here as they do on a page of the repository. A link to a
file that is no page, such as a module, leads to a page that shows the file.
"""

import base64
import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdr
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from reference import ROOT, commands_page, python_page, settings_page

_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".j2": "jinja"}
_NOTEBOOK = "docs/results/from_python.ipynb"
# Pages that stand for files and folders of the repository.
_STAND_FOR = {_NOTEBOOK: "docs/results/from_python.md", "pipeline/config": "reference/settings.md"}


def repository_pages() -> Iterator[Path]:
    """The Markdown files that are pages of the site."""
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "newsroom/README.md"))
    for folder in ("docs", "deploy"):
        yield from sorted((ROOT / folder).rglob("*.md"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the repository, the images and files that they link to, and the reference."""

    def add(address: str, **source: Any) -> None:
        files.append(File.generated(config, address, **source))

    for path in repository_pages():
        add(path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
    add("reference/settings.md", content=settings_page())
    add("reference/commands.md", content=commands_page())
    add("reference/python.md", content=python_page())
    add(_STAND_FOR[_NOTEBOOK], content=notebook_page())
    for path in sorted({path for page in repository_pages() for path in linked_files(page)}):
        if path.suffix in (".png", ".svg"):
            add(path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        else:
            add(file_address(path), content=file_page(path), inclusion=InclusionLevel.NOT_IN_NAV)
    return files


def linked_files(page: Path) -> Iterator[Path]:
    """The files of the repository that a page links to and for which there is no page."""
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        path = Path(os.path.normpath(page.parent / link))
        if path.is_file() and path.suffix != ".md" and path.relative_to(ROOT).as_posix() not in _STAND_FOR:
            yield path


def file_address(path: Path) -> str:
    """The page that shows a file."""
    return f"files/{path.relative_to(ROOT).as_posix()}.md"


def file_page(path: Path) -> str:
    """A page that shows a file, which the search leaves out."""
    name, language = path.relative_to(ROOT).as_posix(), _LANGUAGES.get(path.suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {name}\n\n````{language}\n{path.read_text('utf-8')}\n````\n"


def notebook_page() -> str:
    """The notebook as a page: its texts, and its code. It holds no results."""
    parts = []
    for cell in json.loads((ROOT / _NOTEBOOK).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw diagrams, and lead links to files, folders and the notebook to the pages that show them."""
    folder = os.path.dirname(page.file.src_uri)

    def lead(link: re.Match[str]) -> str:
        address = os.path.normpath(os.path.join(folder, link[1]))
        shown = (_STAND_FOR.get(address), f"{address}/README.md", f"files/{address}.md")
        target = next((each for each in shown if each and files.get_file_from_path(each)), address)
        return link[1] if target == address else os.path.relpath(target, folder or ".")

    return _MERMAID.sub(draw, _LINK.sub(lead, markdown))


def draw(block: re.Match[str]) -> str:
    """A Mermaid diagram as an image within the page, so that the site needs no script from elsewhere."""
    svg: Any = mmdr.render(block[1]).svg()
    width = re.search(r"max-width:\s*([\d.]+)px", svg)
    words = re.findall(r'"([^"]+)"|\b([a-z][\w.]+)\b', block[1])
    labels = html.escape("; ".join(dict.fromkeys(label or word for label, word in words)), quote=True)
    size = f' width="{float(width[1]):.0f}"' if width else ""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    return f'<div class="diagram-box"><img class="diagram"{size} alt="Diagram: {labels}" src="{source}"></div>'
