"""Finds the models to benchmark: the base and the policies of a run, or models by name."""

import re
from dataclasses import dataclass

from pipeline.config import Alignment, Config, UserError
from pipeline.storage.ledger import Artifact, Ledger
from pipeline.storage.model_files.hub import check_model, fetch
from pipeline.storage.run_folder import round_folder, round_number


@dataclass(frozen=True)
class Subject:
    """A model to benchmark.

    Attributes:
        label: names the model in tables, such as `round 1`.
        slot: the name of its folder in `benchmark/`.
        model: folder, URI or hub name.
        digest: of its weights.
    """

    label: str
    slot: str
    model: str
    digest: str


def subjects_of_run(ledger: Ledger, settings: Config | Alignment) -> list[Subject]:
    """The base of a run, and the policy of each round or of the training.

    Raises:
        UserError: the run has no trained policy yet.
    """
    trained = {address: policy for address, policy in _policies(ledger).items() if "training" in policy.record}
    if not trained:
        raise UserError(f"{ledger.root} has no trained policy yet, so there is nothing to compare with its base")
    base = named_subject(settings.policy.model, "policy.model", label="base", slot=round_folder(0))
    subjects = [base]
    for address, policy in trained.items():
        number = round_number(address.rpartition("/")[0])
        label, slot = ("trained", "policy") if number is None else (f"round {number}", round_folder(number))
        # Its own folder, not the recorded place: the run may have been moved since.
        subjects.append(Subject(label, slot, policy.uri, policy.record["digest"]))
    for subject in subjects[1:]:
        check_model("MODEL", subject.model)
    return subjects


def current_digests(ledger: Ledger) -> dict[str, str]:
    """The digest of each policy of a run by the name of its folder in `benchmark/`."""
    policies = _policies(ledger).items()
    return {address.rpartition("/")[0] or "policy": policy.record["digest"] for address, policy in policies}


def _policies(ledger: Ledger) -> dict[str, Artifact]:
    """The policies of the rounds in order, or that of `rondo train`, by address."""
    policies = {
        address: ledger.find(address) for address in ledger.addresses() if re.fullmatch(r"(round-\d+/)?policy", address)
    }
    return {address: policy for address, policy in policies.items() if policy}


def named_subject(name: str, setting: str = "MODEL", label: str | None = None, slot: str | None = None) -> Subject:
    """A model by path, URI or hub name.

    Raises:
        UserError: it does not exist or cannot be used.
    """
    from pipeline.training.modeling.loading import weights_digest

    check_model(setting, name)
    try:
        digest = weights_digest(fetch(name))
    except ValueError as error:
        raise UserError(f"{setting} is {name!r}: {error}") from None
    return Subject(label or name, slot or re.sub(r"[^\w.]+", "-", name).strip("-."), name, digest)
