"""The commands, settings, code, links and file names that README.md, docs/ and the guides give are right."""

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from jobs.cli import app
from pipeline.config import Config, UserError
from pipeline.config.loader import apply_overrides, load_alignment, load_config, parse_config, parse_yaml
from tests.helpers.paths import DEMO, ROOT
from tests.repo.docs.documentation import PAGES, check_call, code_blocks, commands, pipeline_calls, without_blocks

GROUP = typer.main.get_command(app)
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
STARTS = ("rondo ", ".venv/bin/rondo ", "python -m jobs.run ", "make ", ".venv/bin/python -m bench.")
# Other programs of which a page may have a command. bash parses their lines.
PROGRAMS = (
    "ray ",
    "(umask 077; ray ",
    "export ",
    "kubectl ",
    "docker ",
    "sed ",
    "head ",
    "curl ",
    "VLLM_CPU_KVCACHE_SPACE=1 .venv/bin/python -m vllm.",
)
# What exists only after the steps of docs/architecture.md; test_docs_examples.py runs these commands.
EXAMPLES = ("training.loss_type=truncated_quadratic", "ARGS=tests/integration/stages/test_copying.py")
EXAMPLE_MODULES = ("pipeline.stages.copying",)


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def documented() -> list[Any]:
    """Each command in a code block, and each in backquotes within the text, with the name of its page."""
    found = {}
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        inline = [re.sub(r"\s*\n\s*", " ", text) for text in re.findall(r"`([^`]+)`", without_blocks(page))]
        for line in (*commands(page), *inline):
            # A job's command is quoted, or comes after `--`.
            for part in re.split(r" && | -- |bash -c '", line):
                command = part.strip().removesuffix("'" if part.count("'") % 2 else "")
                if command.startswith(STARTS) and not command.endswith(EXAMPLES):
                    found[path, command] = pytest.param(command, id=f"{page_name(path)}: {command[:60]}")
    return list(found.values())


def words(command: str) -> list[str]:
    """The words of a command, without its comment; a placeholder for a configuration becomes the demo's."""
    plain = re.sub(r"\s+# .*|\s+\(.*", "", command)
    return [str(DEMO) if word in ("CONFIG", "configs/NAME.yaml") else word for word in shlex.split(plain)]


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """What the command line of `rondo` says, without carrying it out. An unknown command or option raises."""
    with GROUP.make_context("rondo", list(arguments)) as context:
        name, command, rest = GROUP.resolve_command(context, list(arguments))
        with command.make_context(name, rest, parent=context) as inner:
            return name, inner.params


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_is_right(command: str) -> None:
    first, *rest = words(command)
    if first == "make":
        check_make(rest)
    elif rest[:1] == ["-m"] and rest[1].startswith("bench."):
        check_benchmark(rest[1], rest[2:])
    else:
        check_rondo(["run", *rest[2:]] if rest[:2] == ["-m", "jobs.run"] else rest)


def check_rondo(arguments: list[str]) -> None:
    if len(arguments) == 1 or arguments[1:] == ["--help"]:  # the command is only named
        assert arguments[0] in (*GROUP.commands, "--help")  # type: ignore[attr-defined]
        return
    name, given = parse(arguments)
    overrides = given.get("overrides") or []
    if name == "train":
        load_alignment(given["config"], overrides)
    elif "config" in given:
        load_config(given["config"], overrides)
    elif overrides:  # of a run whose settings nobody has here
        load_config(DEMO, overrides)


def check_make(arguments: list[str]) -> None:
    for argument in arguments:
        variable, equals, value = argument.partition("=")
        if not equals:
            assert argument in TARGETS, f"the Makefile has no target {argument}"
            continue
        assert f"$({variable})" in MAKEFILE, f"the Makefile has no variable {variable}"
        for word in value.split():
            if word.startswith("tests/"):
                assert (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


def check_benchmark(module: str, arguments: list[str]) -> None:
    place = ROOT / module.replace(".", "/")
    source = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    assert source.is_file(), f"there is no module {module}"
    calls = [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    options = {argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)}
    for argument in arguments:
        assert not argument.startswith("--") or argument in options, f"{module} has no option {argument}"


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_a_block_without_a_language_holds_commands(path: Path) -> None:
    """Output is in blocks marked `text`, so that no command goes unseen among it."""
    lines = commands(path.read_text(encoding="utf-8"))
    assert not [line for line in lines if not line.startswith((*STARTS, *PROGRAMS))]


def test_commands_are_bash() -> None:
    """Also those of other programs, such as kubectl, which no test here can parse."""
    script = "\n".join(line for path in PAGES for line in commands(path.read_text(encoding="utf-8")))
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def documented_python() -> list[Any]:
    return [
        pytest.param(block.text, id=f"{page_name(path)}: {block.text.splitlines()[0]}")
        for path in PAGES
        for block in code_blocks(path.read_text(encoding="utf-8"))
        if block.language == "python"
    ]


def defined_names(module: str) -> set[Any]:
    """The names in a module of this repository, and the texts, by which a package names what it imports lazily."""
    path = ROOT / module.replace(".", "/")
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    assert file.is_file(), f"there is no module {module}"
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    modules = {each.stem for each in file.parent.glob("*.py")} if file.name == "__init__.py" else set()
    return modules | {getattr(node, "name", getattr(node, "id", getattr(node, "value", None))) for node in nodes}


@pytest.mark.parametrize("source", documented_python())
def test_documented_python_is_right(source: str) -> None:
    """It compiles, what it imports from this repository is there, and the settings of its calls are accepted."""
    for node in ast.walk(ast.parse(source)):
        module = str(node.module) if isinstance(node, ast.ImportFrom) else ""
        if re.match(r"(pipeline|judges|jobs)\b", module) and module not in EXAMPLE_MODULES:
            missing = {alias.name for alias in node.names} - defined_names(module)  # type: ignore[attr-defined]
            assert not missing, f"{module} has no {', '.join(missing)}"
    for call in pipeline_calls(source):
        check_call(*call)


def test_wrong_python_would_be_found() -> None:
    with pytest.raises(AssertionError):
        test_documented_python_is_right("from pipeline import play")
    with pytest.raises(UserError, match="bta"):
        test_documented_python_is_right('run("configs/demo.yaml", training={"bta": 1})')


def test_a_wrong_command_would_be_found() -> None:
    for command in ("rondo run configs/demo.yaml --no-such", "rondo play configs/demo.yaml", "rondo run"):
        with pytest.raises(typer.TyperException):
            parse(words(command)[1:])
    with pytest.raises(UserError, match="margn"):
        check_rondo(words("rondo run CONFIG pairs.margn=1")[1:])
    with pytest.raises(AssertionError, match="no target"):
        check_make(["nothing"])


def test_documented_yaml_is_settings() -> None:
    blocks = [
        block.text for path in PAGES for block in code_blocks(path.read_text("utf-8")) if block.language == "yaml"
    ]
    assert blocks
    for text in blocks:
        raw = apply_overrides(parse_yaml((ROOT / "configs" / "one_gpu.yaml").read_text("utf-8")), [])
        if "judge" in parse_yaml(text):
            del raw["questions"]  # checks of questions that only the file's own judge can do
        for section, value in parse_yaml(text).items():
            replaces = section == "judge" or not isinstance(value, dict)
            raw[section] = value if replaces else raw.get(section, {}) | value
        raw["hardware"].pop("judge", None)  # a judge at a server has none
        parse_config(raw)


SETTING = re.compile(rf"`((?:{'|'.join(Config.model_fields)})\.[a-z_.]+)(?=[`=:])")
NO_SETTINGS = (".html", ".md", ".png", ".py", ".jsonl", "policy.build")  # files, and an input of a stage


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_documented_settings_exist(path: Path) -> None:
    for name in SETTING.findall(without_blocks(path.read_text(encoding="utf-8"))):
        model: Any = Config.model_fields
        for part in () if name.endswith(NO_SETTINGS) else name.split("."):
            assert model is None or part in model, f"there is no setting {name}"
            model = fields_of(model[part].annotation) if model else None


def fields_of(annotation: Any) -> Any:
    """The settings of a section, also of `Section | None`. None where any name may follow, as in a dict."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_fields
    return None


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_blocks(path.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_files_that_are_named_exist(path: Path) -> None:
    text = without_blocks(path.read_text(encoding="utf-8"))
    for name in re.findall(r"`((?:pipeline|judges|jobs|tests|bench|configs|newsroom|deploy|docs)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), f"there is no {name}"


def test_pages_stay_short() -> None:
    """A newcomer reads the first page to its end, and sees all of docs/ at once."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 100
    assert len(list((ROOT / "docs").iterdir())) <= 10


def test_the_first_page_lists_every_page() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if f"| [{page}](" not in first]
