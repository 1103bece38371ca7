"""Writes the reference of settings and of commands from the code, as Markdown pages.

A setting's meaning is the comment above its field and the one behind it. Its stages are those that declare it in
their `@stage` line. A command's text is that of `--help`. Nothing here imports Ray, torch or vLLM.
"""

import ast
import inspect
import re
import textwrap
import tokenize
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from jobs.cli import app
from pipeline.config import Alignment, Config
from pipeline.config.base import Location, Settings
from pipeline.config.judging import PREFERENCES

ROOT = Path(__file__).resolve().parents[2]
# The page of Python: title, text, the package to import from, and where each name is defined.
_PYTHON: list[tuple[str, str, str, list[str]]] = [
    (
        "Run, train, try a judge",
        "[Run from Python](../docs/rounds.md#run-from-python) has examples.",
        "pipeline",
        ["jobs.run_rounds.run", "pipeline.execution.align.align", "jobs.judge.card.judge_card"],
    ),
    (
        "What run and align return",
        "The result of a run, and that of a training on pairs.",
        "",
        ["jobs.run_rounds.Run", "pipeline.execution.align.Aligned"],
    ),
    (
        "A drop-in for TRL's trainer",
        "[Keep TRL's trainer](../docs/training.md#keep-trls-trainer) says what it shares.",
        "pipeline.trl",
        ["pipeline.trl.trainer.TreeDPOTrainer"],
    ),
    (
        "Judges of your own",
        "[Add a judge](../docs/architecture.md#add-a-judge) has examples.",
        "judges.base",
        [
            f"judges.base.{name}"
            for name in "Judge ModelFreeJudge ScoringJudge ComparingJudge Question Prompt Sample Judgement Skip".split()
        ],
    ),
    (
        "Helpers for judges",
        "A judge of your own may use them.",
        "judges.base",
        [f"judges.base.{name}" for name in "user fill shuffled vet line_logps".split()],
    ),
    (
        "Preferences",
        "A preference is a function `rule(a, b, settings)` of two rows of the column `scores` and of the settings "
        "`pairs`. It returns 1, -1 or 0. [Add a preference](../docs/architecture.md#add-a-preference) has an example.",
        "pipeline.judging.preference",
        [f"pipeline.judging.preference.{name}" for name in (*PREFERENCES, "load_preference")],
    ),
]
_PLURALS = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "section": "sections"}


@dataclass(frozen=True)
class Setting:
    """A setting as the reference shows it.

    Attributes:
        name: its whole name, such as `training.lora.r`. Names that the user chooses are in capitals.
        kind: what it may be, in words.
        default: as YAML has it; None: it has no default, or it is a section.
        meaning: the comments of its field.
        stages: the stages in whose recipe it is.
    """

    name: str
    kind: str
    default: str | None
    meaning: str
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A section of settings.

    Attributes:
        name: its whole name, such as `training.lora`; empty for the top level.
        text: the comments of its field, and the docstring of its class.
        settings: those that are no sections themselves.
        like: the name of a section that has all other settings of this one.
    """

    name: str
    text: str
    settings: tuple[Setting, ...]
    like: str | None = None


def sections(config: type[Settings] = Config) -> list[Section]:
    """All sections of a configuration, in the order of its fields."""
    return list(_sections("", config, "", {}))


def _sections(name: str, section: type[Settings], meaning: str, shown: dict[type[Settings], str]) -> Iterator[Section]:
    if section in shown:
        yield Section(name, meaning, (), like=shown[section])
        return
    shown[section] = name
    parent = next((base for base in section.__mro__[1:] if base in shown), None)
    comments = _comments(section)
    settings, inner = [], []
    for key, field in section.model_fields.items():
        if parent and key in parent.model_fields and key not in section.__annotations__:
            continue
        whole = f"{name}.{key}" if name else key
        if found := _section_in(field.annotation):
            by_name = get_origin(field.annotation) is dict
            inner.append((f"{whole}.NAME" if by_name else whole, found, comments[key]))
        else:
            kind = _kind(field.annotation, field.metadata)
            settings.append(Setting(whole, kind, _default(field), comments[key], _stages(whole)))
    text = f"{_yaml_words(inspect.cleandoc(section.__doc__ or ''))}\n\n{meaning}".strip()
    yield Section(name, text, tuple(settings), like=shown[parent] if parent else None)
    for whole, found, comment in inner:
        yield from _sections(whole, found, comment, shown)


def _section_in(annotation: Any) -> type[Settings] | None:
    """The class of a section, also within `Section | None` and `dict[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for each in get_args(annotation) if (found := _section_in(each))), None)


def _comments(section: type[Settings]) -> dict[str, str]:
    """The comments of each field: those on the lines above it, and the one at its end."""
    comments: dict[str, str] = {}
    for owner in reversed([base for base in section.__mro__ if issubclass(base, Settings)]):
        source = textwrap.dedent(inspect.getsource(owner))
        tokens = list(tokenize.generate_tokens(StringIO(source).readline))
        by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
        code = {token.start[0] for token in tokens if token.type in (tokenize.NAME, tokenize.OP, tokenize.STRING)}
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above = node.lineno
                while above - 1 in by_line and above - 1 not in code:
                    above -= 1
                above_it = " ".join(by_line[line] for line in range(above, node.lineno))
                comments[node.target.id] = _markdown(above_it, by_line.get(node.end_lineno or 0, ""))
    return comments


def _markdown(above: str, behind: str) -> str:
    """The comments above a field and behind it as sentences, with `latest: …; champion: …` as a list of values."""
    text, *values = re.split(r"(?:^|(?<=\. ))([a-z_]\w*(?::\w+)?|True|False|None|\d+): ", above)
    items = [f"- `{value}`: {meaning.strip()}" for value, meaning in zip(values[::2], values[1::2], strict=True)]
    sentences = " ".join(_sentence(each.strip()) for each in (text, behind) if each)
    return _yaml_words("\n".join([sentences, "", *items]).strip())


def _yaml_words(text: str) -> str:
    """Python's None, True and False as they are written in settings."""
    text = re.sub(r"\bNone\b", "null", text)
    return re.sub(r"\b(True|False)(?=:|`)", lambda word: word[0].lower(), text)


def _sentence(text: str) -> str:
    ended = text if text.endswith((".", ":")) else f"{text}."
    return ended if ended.startswith("`") else ended[0].upper() + ended[1:]


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """What a setting may be, in words: `a whole number above 0, or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        words = [_kind(each) for each in arguments]
        return ", or ".join(words)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        if arguments[1:] == (...,):
            inner = _kind(arguments[0])
            return f"a list of {_PLURALS.get(inner.removeprefix('a '), inner)}"
        return f"a list of {len(arguments)}"
    if origin is dict or annotation is dict:
        return "a section"
    if annotation is str:
        return "a path, URI or hub name" if Location.__metadata__[0] in metadata else "text"  # type: ignore[attr-defined]
    simple = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}[annotation]
    return f"{simple}{_bounds(metadata)}"


def _bounds(metadata: Any) -> str:
    """` above 0`, ` from 0 to 1` and the like, from the constraints of a field."""
    bounds: dict[str, Any] = {}
    for each in metadata:
        for constraint in each.metadata if isinstance(each, FieldInfo) else [each]:
            bounds |= {
                name: getattr(constraint, name) for name in ("gt", "ge", "lt", "le") if hasattr(constraint, name)
            }
    if bounds.keys() == {"ge", "le"}:
        return f" from {bounds['ge']:g} to {bounds['le']:g}"
    words = {"gt": "above {:g}", "ge": "of at least {:g}", "lt": "below {:g}", "le": "of at most {:g}"}
    shown = [words[name].format(value) for name, value in sorted(bounds.items())]
    return f" {' and '.join(shown)}" if shown else ""


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    return None if isinstance(value, Settings) else _yaml(value)


def _yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str):
        return f'"{value}"'.replace("\n", "\\n") if "\n" in value or not value else value
    return str(value)


@cache
def _declared() -> dict[str, tuple[str, ...]]:
    """The settings that each stage declares, by the name of the stage, as the `@stage` lines have them."""
    declared = {}
    for path in sorted((ROOT / "pipeline" / "stages").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "stage":
                keywords = {keyword.arg: keyword.value for keyword in node.keywords}
                settings = ast.literal_eval(keywords["settings"]) if "settings" in keywords else ()
                declared[ast.literal_eval(node.args[0])] = settings
    return declared


def _stages(name: str) -> tuple[str, ...]:
    return tuple(
        stage
        for stage, settings in _declared().items()
        if any(f"{name}.".startswith(f"{setting}.") for setting in settings)
    )


def settings_page() -> str:
    """The page of all settings."""
    lines = [
        "# Settings",
        "",
        "Every setting of a run, by section. A file has them as YAML, and the command line as `NAME=VALUE`",
        "([how](../docs/run_folder.md#set-settings-and-paths)).",
        "",
        "*Stages* are those whose recipe has the setting: a change makes their artifacts stale, and those that are",
        "made from them. A setting without stages changes no artifact that is already made.",
        "",
    ]
    of_run = sections()
    for section in of_run:
        lines += [*_heading(section.name or "Top level"), _prose(section.text), ""]
        if section.like is not None:
            lines += [f"It has the settings of [`{section.like}`](#{section.like}).", ""]
        lines += [line for setting in section.settings for line in _setting_lines(setting)]
    of_training = sections(Alignment)[0]
    lines += [*_heading("rondo train"), _prose(of_training.text), ""]
    known = {setting.name for section in of_run for setting in section.settings}
    lines += [line for each in of_training.settings if each.name not in known for line in _setting_lines(each)]
    shared = [f"[`{name}`](#{name})" for name in Alignment.model_fields if name in Config.model_fields]
    return "\n".join([*lines, f"As in a run: {', '.join(shared)}.", ""])


def _heading(name: str) -> list[str]:
    return [f"## {name} {{ #{name.replace(' ', '-')} }}", ""]


def _setting_lines(setting: Setting) -> list[str]:
    facts = setting.kind if setting.default is None else f"{setting.kind}; default `{setting.default}`"
    if setting.stages:
        facts += f"; stages {', '.join(f'`{stage}`' for stage in setting.stages)}"
    return [f"### `{setting.name}` {{ #{setting.name} }}", "", facts, "{ .facts }", "", _prose(setting.meaning), ""]


def _prose(text: str) -> str:
    """Markdown of a comment or docstring: names of settings and of files in it stay as they are."""
    return re.sub(r"(?<![`\w])<(?=\w)", "&lt;", text)


def commands_page() -> str:
    """The page of all commands of `rondo`, from the same declarations as `--help`."""
    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", f"{group.help}", "", "`.venv/bin/rondo COMMAND --help` prints the same.", ""]
    with group.make_context("rondo", ["--help"], resilient_parsing=True) as context:
        for name, command in group.commands.items():
            with command.make_context(name, [], parent=context, resilient_parsing=True) as inner:
                lines += _command_lines(name, command, inner)
    return "\n".join(lines)


def _command_lines(name: str, command: Any, context: Any) -> list[str]:
    arguments = [each.metavar for each in command.params if each.param_type_name == "argument"]
    usage = " ".join(["rondo", name, "[OPTIONS]", *arguments])
    lines = [f"## rondo {name} {{ #{name} }}", "", "```text", usage, "```", "", command.help, ""]
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        shown, meaning = record
        if parameter.param_type_name == "argument":
            shown = parameter.metavar
        cells = [f"`{shown}`", re.sub(r"\s+", " ", meaning)]
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return lines


def python_page() -> str:
    """The page of what Python code may import. mkdocstrings fills in signatures and docstrings."""
    lines = ["# Python", ""]
    for title, text, module, names in _PYTHON:
        lines += [f"## {title}", "", text, ""]
        if module:
            imported = textwrap.wrap(", ".join(name.rpartition(".")[2] for name in names), 84)
            if len(imported) > 1:
                imported = ["(", *(f"    {line}" for line in imported), ")"]
            lines += ["```python", f"from {module} import {imported[0]}", *imported[1:], "```", ""]
        for name in names:
            lines += [f"::: {name}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)
