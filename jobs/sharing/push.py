"""`rondo push`: gives a run's policy, or its pairs and scores, to the Hugging Face hub.

What is pushed is put together in a folder first, so that `--dry-run` shows exactly that.
"""

import tempfile
from contextlib import nullcontext
from pathlib import Path

from jobs.sharing import data_folder, hub, model_folder
from jobs.sharing.hub import Destination
from pipeline.config import UserError
from pipeline.config.messages import format_bytes, printable
from pipeline.storage.ledger import Ledger
from pipeline.storage.model_files.card import CARD

_PREFIX = "rondo-push-"  # of temporary folders
_SHOWN_LINES = 40  # of the card, in a dry run


def push(folder: str, to: Destination, number: int | None, base: str | None, dry_run: bool, out: str | None) -> None:
    """Push a run, or show what would be pushed.

    Args:
        folder: the run's folder or URI.
        to: where to push it.
        number: the round; None: the champion, and of pairs all.
        base: the base policy's name on the hub, if the run used a local copy.
        dry_run: push nothing.
        out: a new folder for the dry run; None: a temporary one, which stays.

    Raises:
        UserError: the run has nothing to push, or the hub refuses it.
    """
    hub.check_repo("--to", to.repo)
    if base is not None:
        hub.check_repo("--base", base)
    if out is not None and not dry_run:
        raise UserError("--out is set, and only --dry-run leaves a folder: add --dry-run, or remove --out")
    if out is not None and ("://" in out or Path(out).exists()):
        raise UserError(f"--out is {out!r}: it should be a path on this machine that does not exist yet")
    if not dry_run:
        hub.check_token()
    with _folder(out) if dry_run else tempfile.TemporaryDirectory(prefix=_PREFIX) as place:
        Path(place).mkdir(parents=True, exist_ok=True)
        if to.kind == "dataset":
            title = data_folder.write_data(Ledger(folder), Path(place), to.repo, number, base)
        else:
            title = model_folder.write_model(Ledger(folder), Path(place), to.repo, number, base, links=not dry_run)
        if dry_run:
            _show(Path(place), title, to)
        else:
            address = hub.upload(Path(place), to, to.commit_message or f"Add {title}")
            print(f"{address}: {title}")


def _folder(out: str | None) -> nullcontext[str]:
    return nullcontext(out or tempfile.mkdtemp(prefix=_PREFIX))


def _show(folder: Path, title: str, to: Destination) -> None:
    """Print the files of a folder with their sizes, and the beginning of its card."""
    print(f"{folder}: {title}; nothing was pushed to {to.repo}")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        print(f"  {format_bytes(path.stat().st_size):>10}  {path.relative_to(folder)}")
    print(f"  {format_bytes(sum(path.stat().st_size for path in files)):>10}  in all\n")
    lines = (folder / CARD).read_text(encoding="utf-8").splitlines()
    print(printable("\n".join(lines[:_SHOWN_LINES])))
    if len(lines) > _SHOWN_LINES:
        print(f"… {len(lines) - _SHOWN_LINES} more lines in {folder / CARD}")
