"""Sends prompts to a hosted model by the batch API of OpenAI's form, which is cheaper and takes up to a day.

A run that was killed finds its batches again at the server: each batch has the run's key, and each request is named by
a hash of its content. So no request is paid for twice, and nothing is kept on disk.
"""

import hashlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from judges.base import Prompt
from pipeline.config import UserError
from pipeline.config.base import Thinking
from pipeline.config.hardware import Server
from pipeline.config.servers import ServedModel
from pipeline.inference.base import RETRIES, Reply
from pipeline.inference.server.openai_server import (
    PROMPT_AT_FAULT_STATUSES,
    RETRIED_STATUSES,
    OpenAIServerEngine,
    TryFailed,
    add_usage,
    auth_headers,
)

_MAX_REQUESTS, _MAX_BYTES = 50_000, 150_000_000  # of one batch; OpenAI allows 50,000 and 200 MB
_TRIES = 3  # batches that a request may be in, before its row is set aside
_FIRST_WAIT = 0.5  # seconds between two looks at a batch; half as much again each time, up to `max_wait`
_FINISHED = ("completed", "expired", "cancelled", "failed")
_KEY = "rondo"  # name of the run's key in the metadata of its batches

Bodies = Mapping[str, dict[str, Any]]


class BatchServerEngine(OpenAIServerEngine):
    """Sends the prompts of each call as one batch, and waits until the server has finished it.

    A request that the server did not serve, because the batch expired or for a fault of its own, is in the next batch.

    Args:
        model, served, server, thinking: as for `OpenAIServerEngine`.
        run: the run folder. An engine of the same run takes up the batches of an earlier one.

    Raises:
        UserError: the environment has no key. `generate` raises it if the server refuses a batch, or serves nothing.
    """

    def __init__(self, model: str, served: ServedModel, server: Server, thinking: Thinking | None, run: str):
        super().__init__(model, served, server.model_copy(update={"concurrency": 1}), thinking)
        self.key = hashlib.sha256(run.encode()).hexdigest()[:16]
        self.client = httpx.Client(base_url=server.base_url, headers=auth_headers(server), timeout=server.timeout)
        self.batch_of: dict[str, str] | None = None  # by the name of a request; None: the server was not asked yet
        self.lock = threading.Lock()  # several threads call `generate`

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        bodies = dict(_named(self.request_body(prompt) for prompt in prompts))
        prompt_of = dict(zip(bodies, prompts, strict=True))
        replies: dict[str, Reply] = {}
        usage: dict[str, dict[str, int]] = {}  # of tries that failed
        reasons: dict[str, str] = {}
        for _ in range(_TRIES):
            left = {name: body for name, body in bodies.items() if name not in replies}
            if not left:
                break
            try:
                results = self._results(left)
            except UserError:
                raise
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"the batch API of {self.server.base_url} answers in another form than OpenAI's "
                    f"({type(error).__name__}): set batch to false"
                ) from None
            for name, result in results.items():
                try:
                    replies[name] = self._read(prompt_of[name], result)
                except TryFailed as error:
                    reasons[name] = error.reason
                    usage[name] = add_usage(usage.get(name), error.usage, {RETRIES: 1})
                    self._forget(name)
            if not replies and len(bodies) > 1:
                raise UserError(
                    f"the server at {self.server.base_url} served none of {len(bodies)} requests of a batch "
                    f"({next(iter(reasons.values()))}): when it works again, run the same command to resume"
                )
        served = (replies.get(name) or Reply([], error=reasons[name], usage={}) for name in bodies)
        return [
            replace(reply, usage=add_usage(usage.get(name), reply.usage))
            for name, reply in zip(bodies, served, strict=True)
        ]

    def close(self) -> None:
        self.client.close()
        super().close()

    def _read(self, prompt: Prompt, result: dict[str, Any] | None) -> Reply:
        """The reply in a line of a batch's output. Raises TryFailed if there is none."""
        response = (result or {}).get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200 and isinstance(body, dict):
            return self.parse_reply(prompt, body)
        if status in PROMPT_AT_FAULT_STATUSES:
            is_long = "context" in json.dumps(body) and "length" in json.dumps(body)
            return Reply([], error="prompt too long" if is_long else f"HTTP {status}", usage={})
        raise TryFailed(f"HTTP {status}" if status else "left out of a batch")

    def _results(self, bodies: Bodies) -> dict[str, dict[str, Any] | None]:
        """The line of output of each request; None: its batch ended without one. Requests without a batch get one."""
        with self.lock:
            if self.batch_of is None:
                self.batch_of = self._earlier_batches()
            new = {name: body for name, body in bodies.items() if name not in self.batch_of}
            for part in _parts(new):
                self.batch_of |= dict.fromkeys(part, self._submit(part))
            batches = {name: self.batch_of[name] for name in bodies}
        results: dict[str, dict[str, Any] | None] = dict.fromkeys(bodies)
        for batch in dict.fromkeys(batches.values()):
            lines = self._finished(batch)
            results |= {name: lines.get(name) for name in bodies if batches[name] == batch}
        return results

    def _forget(self, name: str) -> None:
        """Let a request be in another batch."""
        with self.lock:
            assert self.batch_of is not None
            self.batch_of.pop(name, None)

    def _earlier_batches(self) -> dict[str, str]:
        """The batches that engines of this run have left at the server, by the names of their requests."""
        batches = [batch for batch in self._list() if (batch.get("metadata") or {}).get(_KEY) == self.key]
        usable = [batch for batch in batches if batch["status"] != "failed"]
        return {
            line["custom_id"]: batch["id"]
            for batch in sorted(usable, key=lambda batch: batch["created_at"])  # the newest counts
            for line in self._lines(batch["input_file_id"])
        }

    def _submit(self, bodies: Bodies) -> str:
        lines = (
            {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
            for name, body in bodies.items()
        )
        content = "\n".join(map(json.dumps, lines)).encode()
        file = {"file": ("requests.jsonl", content, "application/jsonl")}
        input_file = self._call("POST", "files", data={"purpose": "batch"}, files=file).json()["id"]
        batch = {
            "input_file_id": input_file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {_KEY: self.key},
        }
        for attempt in itertools.count(1):
            try:
                return str(self._call("POST", "batches", tries=1, json=batch).json()["id"])
            except _CallFailed as error:
                # The batch may exist although its answer was lost: a second one would be paid for too.
                for existing in self._list():
                    if existing["input_file_id"] == input_file:
                        return str(existing["id"])
                if attempt >= self.server.tries:
                    raise error.for_user() from None
                time.sleep(self.backoff(attempt))
        raise AssertionError

    def _finished(self, batch_id: str) -> dict[str, dict[str, Any]]:
        """Wait until a batch has ended, and return its lines of output by the names of the requests."""
        wait = _FIRST_WAIT
        while (batch := self._call("GET", f"batches/{batch_id}").json())["status"] not in _FINISHED:
            time.sleep(wait)
            wait = min(self.server.max_wait, 1.5 * wait)
        if batch["status"] == "failed":
            errors = (batch.get("errors") or {}).get("data") or []
            codes = ", ".join(sorted({str(error.get("code")) for error in errors})) or "no reason given"
            raise UserError(f"the server at {self.server.base_url} refuses a batch ({codes})")
        files = filter(None, (batch.get("output_file_id"), batch.get("error_file_id")))
        return {line["custom_id"]: line for file in files for line in self._lines(file)}

    def _list(self) -> Iterator[dict[str, Any]]:
        after: dict[str, str] = {}
        while True:
            page = self._call("GET", "batches", params={"limit": "100"} | after).json()
            yield from page["data"]
            if not page.get("has_more"):
                return
            after = {"after": page["data"][-1]["id"]}

    def _lines(self, file: str) -> Iterator[dict[str, Any]]:
        text = self._call("GET", f"files/{file}/content").text
        return (json.loads(line) for line in text.split("\n") if line.strip())

    def _call(self, method: str, path: str, tries: int | None = None, **options: Any) -> httpx.Response:
        """Call the server, again if it fails for a while.

        Raises:
            _CallFailed: it failed at all of `tries`.
            UserError: it refuses the call, or fails at all tries of the settings.
        """
        for attempt in itertools.count(1):
            try:
                response = self.client.request(method, path, **options)
                if response.is_success:
                    return response
                reason, status = f"HTTP {response.status_code}", response.status_code
                may_succeed_later = status in RETRIED_STATUSES or status >= 500
            except httpx.RequestError as error:
                reason, may_succeed_later = type(error).__name__, True
            failure = _CallFailed(f"{self.server.base_url} does not serve {method} {path} ({reason})")
            if not may_succeed_later:
                raise failure.for_user()
            if attempt >= (tries or self.server.tries):
                raise failure if tries else failure.for_user()
            time.sleep(self.backoff(attempt))
        raise AssertionError


class _CallFailed(Exception):
    """A call that may succeed later."""

    def for_user(self) -> UserError:
        return UserError(f"{self}: when it works again, run the same command to resume")


def _named(bodies: Iterator[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each request with a name: the hash of its content, and a number where several are equal."""
    counts: Counter[str] = Counter()
    for body in bodies:
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]
        yield f"{digest}-{counts[digest]}", body
        counts[digest] += 1


def _parts(bodies: Bodies) -> Iterator[Bodies]:
    """The requests in parts that a batch may have."""
    part: dict[str, dict[str, Any]] = {}
    size = 0
    for name, body in bodies.items():
        length = len(json.dumps(body)) + 200
        if part and (len(part) == _MAX_REQUESTS or size + length > _MAX_BYTES):
            yield part
            part, size = {}, 0
        part[name] = body
        size += length
    if part:
        yield part
