"""Puts together the folder of a policy for other people: the model or adapter, and its card with the evaluation."""

import json
import os
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.config import Alignment, Config, UserError
from pipeline.config.messages import one_line
from pipeline.evaluation.report.page.overview import read_metrics
from pipeline.storage.files import RunFiles
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files.adapters import ADAPTER_CONFIG
from pipeline.storage.model_files.card import CARD
from pipeline.storage.model_files.card.public_names import PublicNames, public_names
from pipeline.storage.model_files.card.tables import Evaluation
from pipeline.storage.model_files.card.writing import read_license, write_policy_card
from pipeline.storage.run_folder import CHAMPION, read_settings, round_folder, round_number

# What of a policy's folder is the model. Records and files of an unfinished training are not.
_PUSHED = (
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", ADAPTER_CONFIG,
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json", "chat_template*", "LICENSE*", "metrics.jsonl",
)  # fmt: skip
_SETTINGS_FILES = ("config.json", "generation_config.json", ADAPTER_CONFIG, "tokenizer_config.json")


def write_model(ledger: Ledger, out: Path, repo: str, number: int | None, base: str | None, links: bool) -> str:
    """Write the folder of a policy.

    Args:
        ledger: the run folder.
        out: the folder, which exists and is empty.
        repo: OWNER/NAME on the hub, for the card.
        number: the round that trained the policy; None: the champion, or the last round if there is none yet.
        base: the base policy's name on the hub; None: as the run has it.
        links: link to the weights where they are on this machine; else copy them.

    Returns:
        what the folder holds, in a few words.

    Raises:
        UserError: there is no such policy, or it cannot be read.
    """
    settings = read_settings(ledger)
    policy = _choose_policy(ledger, settings, number)
    location = _find_folder(policy)
    files = RunFiles(location)
    adapter_base = json.loads(files.read(ADAPTER_CONFIG) or "{}").get("base_model_name_or_path")
    base_location = adapter_base or settings.policy.model
    renamed = {name: base for name in (settings.policy.model, base_location) if base}
    names = public_names(ledger, settings, renamed)
    _copy_model(files, out, names, links)
    evaluation = _find_evaluation(ledger, policy) if isinstance(settings, Config) else None
    license = read_license(base or base_location) or (read_license(base_location) if base else None)
    card = write_policy_card(ledger, settings, policy, names, license, repo, evaluation, folder=location)
    (out / CARD).write_text(card, encoding="utf-8")
    kind = "adapter" if adapter_base else "model"
    place = round_number(policy.address.partition("/")[0])
    return f"{kind} of round {place}" if place is not None else kind


def _choose_policy(ledger: Ledger, settings: Config | Alignment, number: int | None) -> Artifact:
    """The policy of a round, or the champion. Raises UserError if it does not exist, or if it is the base."""
    if isinstance(settings, Alignment):
        if number is not None:
            raise UserError(
                f"--round is {number}, and {ledger.root} was trained on pairs, without rounds: remove --round"
            )
        policy = ledger.find("policy")
        if policy is None:
            raise UserError(f"{ledger.root} has no trained policy yet: finish the training first, with `rondo train`")
        return policy
    trained = {
        place: artifact
        for artifact in ledger.artifacts()
        if "training" in artifact.record and artifact.address.endswith("/policy")
        if (place := round_number(artifact.address.partition("/")[0])) is not None
    }
    if not trained:
        raise UserError(f"{ledger.root} has no trained policy yet: finish a round first, with `rondo run`")
    known = ", ".join(map(str, sorted(trained)))
    if number is None:
        number = json.loads(ledger.read(CHAMPION) or "{}").get("round", max(trained))
        if number == 0:
            raise UserError(
                f"{ledger.root}: no round beat the base, so the champion is the base itself, which needs no push: name "
                f"a round with --round; there are {known}"
            )
    if number not in trained:
        raise UserError(f"{ledger.root} has no {round_folder(number)}/policy; it has policies of round {known}")
    return trained[number]


def _find_folder(policy: Artifact) -> str:
    """Where a policy's weights are: at its address, or where its record says if another run shares it."""
    here = RunFiles(policy.uri)
    return policy.uri if any(name.endswith(".safetensors") for name in here.files()) else str(policy.record["model"])


def _find_evaluation(ledger: Ledger, policy: Artifact) -> Evaluation | None:
    """What metrics.json has about this policy. None: its round is not evaluated yet, or was trained again since."""
    metrics = read_metrics(ledger) or {}
    number = round_number(policy.address.partition("/")[0])
    entry = next((entry for entry in metrics.get("rounds", ()) if entry["round"] == number), None)
    is_current = entry is not None and entry.get("training") == policy.record["training"]
    return Evaluation(metrics, number) if is_current and number is not None else None


def _copy_model(files: RunFiles, out: Path, names: PublicNames, links: bool) -> None:
    """Copy a model's files. In those with settings, local locations get their public names."""
    chosen = [name for name in files.files() if any(fnmatch(name, pattern) for pattern in _PUSHED)]
    if not any(name.endswith(".safetensors") for name in chosen):
        raise UserError(f"{files.root} has no *.safetensors: its model was removed")
    for name in chosen:
        if name in _SETTINGS_FILES:
            content = names.hide_in(json.loads(files.read(name) or "{}"))
            (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        elif links and isinstance(files.fs, pafs.LocalFileSystem):
            os.symlink(os.path.abspath(files.path(name)), out / name)
        else:
            try:
                pafs.copy_files(files.path(name), str(out / name), source_filesystem=files.fs)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{files.root}/{name} cannot be copied to {out}: {one_line(error)}") from None
