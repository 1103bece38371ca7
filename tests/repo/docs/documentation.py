"""Reads the code blocks of the documentation, and applies the examples that they show to a copy of the sources."""

import ast
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.loader import combine_config, parse_alignment
from tests.helpers.paths import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").glob("*.md")),
    ROOT / "newsroom" / "README.md",
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        language: the word after the fence; empty for shell commands and output.
        text: the lines between the fences.
    """

    language: str
    text: str


def code_blocks(page: str, heading: str | None = None) -> list[Block]:
    """The fenced code blocks of a page, or of the section under one of its `##` headings."""
    if heading is not None:
        _, found, rest = page.partition(f"\n## {heading}\n")
        assert found, f"the page has no section {heading!r}"
        page = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return [Block(language, text) for language, text in _FENCE.findall(page)]


def without_blocks(page: str) -> str:
    """A page without its fenced code blocks."""
    return _FENCE.sub("", page)


def commands(page: str) -> list[str]:
    """The shell lines of a page's code blocks, with continued lines joined."""
    shell = [block.text for block in code_blocks(page) if block.language in ("", "sh", "bash")]
    return [line.strip() for text in shell for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]


def pipeline_calls(source: str) -> list[tuple[str, list[Any], dict[str, Any]]]:
    """Each call of `run`, `judge_card` or `align` in Python code: its name, and the arguments that are literals."""
    calls = []
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("run", "judge_card", "align")
        ):
            literal = {each.arg: each.value for each in node.keywords if not isinstance(each.value, ast.Name)}
            keywords = {name: ast.literal_eval(value) for name, value in literal.items() if name is not None}
            calls.append((node.func.id, [ast.literal_eval(each) for each in node.args], keywords))
    return calls


def check_call(name: str, arguments: list[Any], keywords: dict[str, Any]) -> None:
    """Raise UserError if a call of `run`, `judge_card` or `align` has a setting that would be refused."""
    if name != "align":
        combine_config(ROOT / arguments[0], **keywords)
        return
    starts = [*arguments, *(keywords.pop(start) for start in ("merged", "aligned", "adapter") if start in keywords)]
    assert len(starts) == 1, "align takes one model, merged folder, aligned run or adapter"
    given = {"run": keywords.pop("out", "runs/aligned"), "pairs": keywords.pop("pairs", "pairs.jsonl")}
    given |= {section: keywords.pop(section) for section in ("hardware", "references", "seed") if section in keywords}
    policy = keywords.pop("policy", {}) | {"model": starts[0]}
    if "loss" in keywords:
        keywords["loss_type"] = keywords.pop("loss")
    parse_alignment(given | {"policy": policy, "training": keywords})


def write_files(blocks: list[Block], root: Path) -> list[Path]:
    """Write each Python block whose first line is a comment with a file's path to that file under `root`."""
    written = []
    for block in blocks:
        if block.language == "python" and (name := re.match(r"# (\S+\.py)\n", block.text)):
            path = root / name[1]
            assert not path.exists(), f"{name[1]} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            written.append(path)
    return written


def apply_diffs(blocks: list[Block], root: Path) -> list[Path]:
    """Apply each diff block. It opens with `+++ ` and a file's path, and has one hunk, which is found by its text."""
    changed = []
    for block in (block for block in blocks if block.language == "diff"):
        header, *lines = block.text.splitlines()
        path = root / header.removeprefix("+++ ")
        old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        source = path.read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{header}: these lines are not there once:\n{old}"
        path.write_text(source.replace(old, new), encoding="utf-8")
        changed.append(path)
    return changed


def copy_sources(root: Path) -> None:
    """Copy the code, its tests and its configurations into a folder where an example may change them."""
    for name in ("pipeline", "judges", "jobs", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for name in ("configs", "newsroom", "docs", "bench"):
        (root / name).symlink_to(ROOT / name)
