"""`rondo merge`: writes a complete model from a LoRA adapter and its base, with a model card."""

from pathlib import Path

from pipeline.config import UserError
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files import hub
from pipeline.storage.model_files.card import CARD
from pipeline.storage.model_files.card.public_names import PublicNames, public_names
from pipeline.storage.model_files.card.writing import read_license, write_merged_card, write_policy_card
from pipeline.storage.run_folder import CONFIG, read_settings


def merge(adapter: str, out: str) -> None:
    """Merge an adapter into its base, and write the complete model, in the dtype of the base.

    Raises:
        UserError: the adapter or its base is missing or cannot be used, or `out` exists.
    """
    hub.check_model("ADAPTER", adapter)
    if "://" in out or Path(out).exists():
        raise UserError(f"--out is {out!r}: it should be a path on this machine that does not exist yet")
    from pipeline.training.modeling import loading

    folder = hub.fetch(adapter)
    try:
        loading.merge_adapter(folder, out)
    except ValueError as error:
        raise UserError(f"ADAPTER is {adapter!r}: {error}") from None
    Path(out, CARD).write_text(_write_card(adapter, folder, out), encoding="utf-8")
    print(f"{out} holds the merged model")


def _write_card(adapter: str, folder: str, out: str) -> str:
    """The card of the merged model: that of a run's policy, if the adapter is one, or a short one."""
    settings = hub.adapter_config(folder) or {}
    base = str(settings.get("base_model_name_or_path"))
    for address in ("/".join(adapter.rstrip("/").split("/")[-2:]), "policy"):
        root = adapter.rstrip("/").removesuffix(f"/{address}")
        ledger = Ledger(root) if root != adapter.rstrip("/") else None
        if ledger and ledger.read(CONFIG) and (policy := ledger.find(address)) and "training" in policy.record:
            config = read_settings(ledger)
            names = public_names(ledger, config)
            return write_policy_card(ledger, config, policy, names, read_license(base), is_merged=True)
    return write_merged_card(Path(out), adapter, base, PublicNames(), read_license(base))
