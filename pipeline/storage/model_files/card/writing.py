"""Writes the card of a trained policy: Markdown, below the front matter that the Hugging Face hub reads.

The card in a run's policy folder is written when the training is finished, so it has no evaluation yet. `rondo push`
writes it again with the evaluation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from judges.text.conversations import read_instruction
from pipeline.config import Alignment, Config
from pipeline.config.judging import JudgeSettings
from pipeline.config.messages import escape_markdown, markdown_environment
from pipeline.config.training import loss_names
from pipeline.storage.files import RunFiles
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files.adapters import ADAPTER_CONFIG
from pipeline.storage.model_files.card import CARD, MARK
from pipeline.storage.model_files.card.public_names import PublicNames
from pipeline.storage.model_files.card.snippets import Use
from pipeline.storage.model_files.card.tables import Evaluation
from pipeline.storage.run_folder import round_number

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_FOLDER = Path(__file__).parent  # with the templates
_ANSWER_TOKENS = 512  # of the snippets for a model whose answers have no limit in the settings
_JUDGES = {
    "mcq": "A language model, {model}, wrote multiple-choice questions about each article, and answered them from the "
    "{one} alone. The more right answers, the better the {one}.",
    "cloze": "A program without a language model blanked out facts of each article, and filled the blanks from the "
    "{one} alone. The more right answers, the better the {one}.",
    "likelihood": "A language model, {model}, measured how likely each {one} is after its article, and how much of "
    "the article it covers.",
    "rubric": "A language model, {model}, rated each {one} by criteria.",
    "pairwise": "A language model, {model}, compared {many} of the same article, in both orders.",
    "reward": "A reward model, {model}, gave each {one} a number.",
    "verifiable": "A function of the author's own, {function}, gave each {one} a number.",
    "jury": "Several judges voted.",
}
_OWN_JUDGE = "A judge of the author's own, {kind}, scored each {one}."


@dataclass(frozen=True)
class Base:
    """The model that training began with.

    Attributes:
        name: its public name.
        is_local: it was in a local folder, so nobody else can fetch it by this name.
        license: the licence that its own card or config names; None: not known.
    """

    name: str
    is_local: bool
    license: str | None

    @property
    def link(self) -> str:
        """Its name in Markdown, with a link to the hub if it is there."""
        name = escape_markdown(self.name)
        return f"**{name}**" if self.is_local else f"[{name}](https://huggingface.co/{self.name})"


def write_policy_card(
    ledger: Ledger,
    settings: Config | Alignment,
    policy: Artifact,
    names: PublicNames,
    license: str | None,
    repo: str | None = None,
    evaluation: Evaluation | None = None,
    is_merged: bool = False,
    folder: str | None = None,
) -> str:
    """The text of a trained policy's card.

    Args:
        ledger: the run folder.
        settings: the settings of the run.
        policy: the policy with its record.
        names: what to call models and data.
        license: the base's licence; see `read_license`.
        repo: OWNER/NAME on the hub; None: the card stays in the policy's folder.
        evaluation: what was measured; None: nothing yet.
        is_merged: the card is for a complete model into which the policy, an adapter, was merged.
        folder: where the policy's files are, a path or a URI; None: at its address.
    """
    from huggingface_hub import ModelCard

    number = round_number(policy.address.rpartition("/")[0])
    run_name = names.name(ledger.root)
    files = RunFiles(folder or policy.uri)
    adapter = json.loads(files.read(ADAPTER_CONFIG) or "{}")
    base_location = adapter.get("base_model_name_or_path") or settings.policy.model
    adapter = {} if is_merged else adapter
    base = Base(names.name(base_location), names.is_local(base_location), license)
    template = _chat_template(files)
    data = _data_location(settings)
    text = (
        markdown_environment(_FOLDER, names.hide)
        .get_template("model_card.md.j2")
        .render(
            mark=MARK,
            title=repo.partition("/")[2] if repo else f"{run_name}, round {number}" if number else run_name,
            base=base,
            settings=settings,
            is_run=isinstance(settings, Config),
            trainings=_count_trainings(ledger, policy),
            record=policy.record,
            articles=_count_articles(ledger, policy),
            data=names.name(data.removeprefix("hf:")),
            data_set=data_set_of(settings),
            judges=describe_judges(settings),
            one=answer_noun(settings)[0],
            many=answer_noun(settings)[1],
            method=_method(settings),
            adapter=adapter,
            is_merged=is_merged,
            use=Use(
                model=repo or ".",
                base=base.name if adapter else None,
                rank=adapter.get("r", 1),
                prompt=_prompt(settings, has_template=template is not None),
                template=_template_arguments(settings, template),
                max_tokens=settings.evaluation.max_tokens if isinstance(settings, Config) else _ANSWER_TOKENS,
            ),
            evaluation=evaluation,
            rate_lines=evaluation.rate_lines(_baseline_names(settings)) if evaluation else [],
        )
    )
    front_matter = _front_matter(settings, base, repo, bool(adapter), evaluation)
    return str(ModelCard(f"---\n{front_matter.to_yaml()}\n---\n\n{names.hide(text)}"))


def write_merged_card(folder: Path, adapter: str, base_location: str, names: PublicNames, license: str | None) -> str:
    """The text of the card of a complete model that was made from an adapter of unknown origin.

    Args:
        folder: the complete model.
        adapter, base_location: where the adapter and its base were.
        names, license: see `write_policy_card`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base = Base(names.name(base_location), names.is_local(base_location), license)
    has_template = (folder / "chat_template.jinja").is_file()
    text = (
        markdown_environment(_FOLDER, names.hide)
        .get_template("merged_card.md.j2")
        .render(
            mark=MARK,
            title=folder.name,
            base=base,
            adapter=names.name(adapter),
            use=Use(
                model=".",
                base=None,
                rank=0,
                prompt=_question(has_template),
                template={},
                max_tokens=_ANSWER_TOKENS,
            ),
        )
    )
    front_matter = ModelCardData(
        base_model=None if base.is_local else base.name,
        library_name="transformers",
        license=license,
        pipeline_tag="text-generation",
        tags=["rondo", "merge"],
    )
    return str(ModelCard(f"---\n{front_matter.to_yaml()}\n---\n\n{names.hide(text)}"))


def read_license(model: str) -> str | None:
    """The licence that a model's own card or config names; None if it names none.

    Args:
        model: a model folder; or a hub name, whose files are looked up in the cache on this machine alone.
    """
    if "://" in model:
        return None
    files = (_find_file(model, name) for name in (CARD, "config.json"))
    return next((license for file in files if file and (license := _license_in(file))), None)


def _find_file(model: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(model).is_dir():
        path = Path(model, name)
        return path if path.is_file() else None
    try:
        cached = try_to_load_from_cache(model, name)
    except HFValidationError:  # neither a folder nor a hub name
        return None
    return Path(cached) if isinstance(cached, str) else None


def _license_in(file: Path) -> str | None:
    from huggingface_hub import ModelCard

    try:
        text = file.read_text(encoding="utf-8")
        is_config = file.suffix == ".json"
        data = json.loads(text) if is_config else ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):  # damaged, or of another form: nothing to learn from it
        return None
    license = data.get("license") if isinstance(data, dict) else None
    return license if isinstance(license, str) and license.strip() else None


def _front_matter(
    settings: Config | Alignment, base: Base, repo: str | None, is_adapter: bool, evaluation: Evaluation | None
) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    data_set = data_set_of(settings)
    losses = ("dpo" if loss == "sigmoid" else loss.replace("_", "-") for loss in loss_names(settings.training))
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data_set or "private",
            dataset_name=f"{data_set or 'articles from a file'} ({articles})",
            dataset_split=articles,
            metric_type="win_rate",
            metric_name=f"win rate over {base.name}, by the judge",
            metric_value=round(rate["win_rate"], 4),
        )
        for articles, rate in (evaluation.rates() if evaluation and repo else ())
    ]
    return ModelCardData(
        base_model=None if base.is_local else base.name,
        datasets=[data_set] if data_set else None,
        library_name="peft" if is_adapter else "transformers",
        license=base.license,
        pipeline_tag="text-generation",
        tags=[
            "rondo",
            "generated_from_trainer",
            *dict.fromkeys(losses),
            *(["on-policy"] if isinstance(settings, Config) else []),
            *(["lora"] if settings.training.lora else []),
        ],
        model_name=repo.partition("/")[2] if results and repo else None,
        eval_results=results or None,
    )


def _method(settings: Config | Alignment) -> str:
    losses = loss_names(settings.training)
    if losses == ["sft"]:
        return "supervised training on the chosen answers"
    name = "DPO (direct preference optimization)" if losses == ["sigmoid"] else f"losses {', '.join(losses)} of TRL"
    return f"{name}, beta {settings.training.beta:g}"


def _data_location(settings: Config | Alignment) -> str:
    return settings.articles.path if isinstance(settings, Config) else settings.pairs


def data_set_of(settings: Config | Alignment) -> str | None:
    """OWNER/NAME of the data set on the hub; None if the data is a file."""
    location = _data_location(settings)
    return "/".join(location[3:].split(":")[0].split("/")[:2]) if location.startswith("hf:") else None


def _chat_template(files: RunFiles) -> str | None:
    if (text := files.read("chat_template.jinja")) is not None:
        return text
    template = json.loads(files.read("tokenizer_config.json") or "{}").get("chat_template")
    return None if template is None else str(template)


def _template_arguments(settings: Config | Alignment, template: str | None) -> dict[str, bool]:
    if not isinstance(settings, Config) or "enable_thinking" not in (template or ""):
        return {}
    return {"enable_thinking": settings.policy.thinking is not None}


def _prompt(settings: Config | Alignment, has_template: bool) -> list[dict[str, str]] | str:
    """What the policy is asked: messages with {article}, or a text if there is no chat template."""
    if isinstance(settings, Alignment):
        return _question(has_template)
    messages = read_instruction(settings.policy.instruction, merge=settings.policy.merge_system)
    return list(messages) if has_template else "\n".join(message["content"] for message in messages)


def _question(has_template: bool) -> list[dict[str, str]] | str:
    """What a snippet asks a model without an instruction."""
    question = "Write your question here."
    return [{"role": "user", "content": question}] if has_template else question


def describe_judges(settings: Config | Alignment) -> list[tuple[str, str]]:
    """The judge of training and the second judge, with the members of juries: a title and a sentence of each."""
    if isinstance(settings, Alignment):
        return []
    described = [("judge", settings.judge)]
    described += [("second judge", settings.second_judge)] if settings.second_judge else []
    one, many = answer_noun(settings)

    def describe(judge: JudgeSettings) -> str:
        values = {"model": judge.model, "kind": judge.kind, "function": judge.function, "one": one, "many": many}
        return _JUDGES.get(judge.kind, _OWN_JUDGE).format(**values)

    lines = []
    for title, judge in described:
        lines.append((title, describe(judge)))
        lines += [(f"{title}, member {name}", describe(member)) for name, member in judge.members.items()]
    return lines


def answer_noun(settings: Config | Alignment) -> tuple[str, str]:
    """What the model writes, one and many: summaries if its instruction says so, else answers."""
    instruction = "" if isinstance(settings, Alignment) else str(settings.policy.instruction)
    return ("summary", "summaries") if "summar" in instruction.lower() else ("answer", "answers")


def _baseline_names(settings: Config | Alignment) -> dict[str, str]:
    assert isinstance(settings, Config), "only a run of rounds has baselines"
    baselines, (_, many) = settings.baselines, answer_noun(settings)
    return {
        "lead": f"*the first {baselines.lead_sentences} sentences of the article*",
        "shorten-only": f"*the base model's {many}, cut to {baselines.shorten_to:.0%} of their words*",
    }


def _inputs(policy: Artifact) -> Mapping[str, str]:
    return policy.record["recipe"].get("inputs", {})


def _count_trainings(ledger: Ledger, policy: Artifact) -> int:
    """How many trainings lie between the base and this policy. It started from the first policy among its inputs."""
    count, current = 0, policy
    while "training" in current.record:
        count += 1
        starts = [address for address in _inputs(current) if address.endswith("policy")]
        earlier = ledger.find(starts[0]) if starts else None
        if earlier is None or earlier.address == current.address:
            break
        current = earlier
    return count


def _count_articles(ledger: Ledger, policy: Artifact) -> int | None:
    """The number of articles, or prompts, with pairs in the last training; None if their table is gone."""
    address = next((address for address in _inputs(policy) if not address.endswith("policy")), None)
    rows = ledger.find(address) if address else None
    return rows.record.get("kept") if rows else None
