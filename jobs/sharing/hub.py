"""Uploads a folder to the Hugging Face hub, and says in one line what went wrong. No message has the token in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import UserError
from pipeline.config.messages import one_line, redact

_TOKENS = "https://huggingface.co/settings/tokens"
# Files of an earlier push that would be wrong beside the new ones. The hub deletes those that are not pushed again.
_REPLACED = {
    "model": ["*.safetensors", "*.safetensors.index.json", "adapter_config.json"],
    "dataset": ["pairs/*.parquet", "scores/*.parquet"],
}


@dataclass(frozen=True)
class Destination:
    """Where to push.

    Attributes:
        repo: OWNER/NAME.
        kind: what the repository holds, as the hub names it.
        private: only its owner may see the repository, if it is new.
        revision: the branch; None: main.
        commit_message: None: one that says what is pushed.
    """

    repo: str
    kind: Literal["model", "dataset"] = "model"
    private: bool = False
    revision: str | None = None
    commit_message: str | None = None


def check_repo(option: str, repo: str) -> None:
    """Raise UserError if a name cannot be that of a repository, OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{option} is {repo!r}: it should be OWNER/NAME ({one_line(error, limit=120)})") from None
    if repo.count("/") != 1:
        raise UserError(f"{option} is {repo!r}: it should be OWNER/NAME, such as your-name/my-model")


def check_token() -> str:
    """The token of this machine. Raises UserError if there is none."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError(
            f"there is no token for the hub: make one with the role write at {_TOKENS}, and give it to `hf auth login` "
            "or set HF_TOKEN"
        )
    return token


def upload(folder: Path, to: Destination, message: str) -> str:
    """Upload a folder as one commit. Make the repository and the branch if they do not exist.

    Returns:
        the address of the repository, or of the branch.

    Raises:
        UserError: there is no token, or it is refused; the name belongs to somebody else; the hub is out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    token = check_token()
    api = HfApi(token=token)
    with _explained(to, token, api.endpoint):
        try:
            existing = api.repo_info(to.repo, repo_type=to.kind)
        except RepositoryNotFoundError:
            existing = None
        if existing is None:
            api.create_repo(to.repo, repo_type=to.kind, private=to.private or None, exist_ok=True)
        elif to.private and not existing.private:
            raise UserError(
                f"--private is set, and {to.repo} exists and is public: make it private in its settings on the hub "
                "first, or choose another --to"
            )
        if to.revision:
            api.create_branch(to.repo, branch=to.revision, repo_type=to.kind, exist_ok=True)
        api.upload_folder(
            repo_id=to.repo,
            folder_path=folder,
            repo_type=to.kind,
            revision=to.revision,
            commit_message=message,
            delete_patterns=_REPLACED[to.kind],
        )
    address = f"{api.endpoint}/{'datasets/' if to.kind == 'dataset' else ''}{to.repo}"
    return f"{address}/tree/{to.revision}" if to.revision else address


@contextmanager
def _explained(to: Destination, token: str, endpoint: str) -> Iterator[None]:
    """Turn the errors of the hub and of the network into a UserError of one line, without the token."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    try:
        yield
    except HfHubHTTPError as error:
        reason = one_line(error.server_message or error, limit=200)
        line = _explain_status(error.response.status_code, to, endpoint)
    except OfflineModeIsEnabled:
        reason, line = "", "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it"
    except (HTTPError, OSError) as error:  # the client's own error, of httpx or of its successor
        reason = one_line(error, limit=200)
        line = f"the hub cannot be reached at {endpoint}: check the network, a proxy, and HF_ENDPOINT"
    except ValueError as error:  # huggingface_hub's, if the hub does not accept the front matter of the card
        reason, line = one_line(error, limit=300), f"{to.repo}: the hub refuses what was to be pushed"
    else:
        return
    text = f"{line} ({reason})" if reason else line
    raise UserError(redact(text.replace(token, "(token)"))) from None


def _explain_status(status: int, to: Destination, endpoint: str) -> str:
    if status == 401:
        return (
            f"{endpoint} refuses the token: make another with the role write at {_TOKENS}, and give it to `hf auth "
            "login` or set HF_TOKEN"
        )
    if status in (403, 404, 409):
        return (
            f"{to.repo} cannot be written: it belongs to somebody else, or the token may only read: choose another "
            f"--to, or a token with the role write from {_TOKENS}"
        )
    if status in (402, 413):
        return f"{to.repo}: the hub has no room for it: free or buy storage for its owner"
    if status == 429 or status >= 500:
        return f"{endpoint} is busy or has a fault (status {status}): repeat the command later"
    return f"{to.repo}: the hub refuses what was to be pushed (status {status})"
