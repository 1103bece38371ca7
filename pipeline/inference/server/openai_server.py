"""Sends prompts to a model at an OpenAI-compatible server: vLLM's own, or a hosted one.

A model at a server is a judge, or writes summaries to compare with the policy's. A chat server gives no token ids, so
its samples are never trained on. The API key is read from the environment where the engine is made, and appears in no
message. `server_check.py` checks a server before a run. `batch_server.py` sends prompts by a server's batch API.
Streaming and other protocols are not supported.
"""

import asyncio
import itertools
import json
import math
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from judges.base import Prompt, Sample, user
from pipeline.config import UserError
from pipeline.config.base import Thinking
from pipeline.config.hardware import Server
from pipeline.config.servers import ServedModel
from pipeline.inference.base import MICRO_USD, RETRIES, TOKENS_CACHED, TOKENS_IN, TOKENS_OUT, TOKENS_THOUGHT, Reply
from pipeline.inference.special_tokens import WELL_KNOWN_MARKERS, break_special_tokens
from pipeline.inference.thinking import KNOWN_TAGS, answer_tokens, strip_thoughts, template_switches
from pipeline.storage.model_files.chat_template import without_nulls

_FIRST_BACKOFF = 0.5  # seconds before the first retry; doubled for each further one
RETRIED_STATUSES = {408, 409, 425, 429}  # and every 5xx
PROMPT_AT_FAULT_STATUSES = {400, 413, 422}  # they say nothing about the server's health
_MAX_UNSERVED = 16  # unserved prompts in a row, beyond those in flight, after which the server counts as down
_PROBE = Prompt(user("Reply with one word."), max_tokens=8)  # no server has a reason to refuse this
_FINISH_REASONS = {"stop": "stop", "eos": "stop", "length": "length"}  # a server's -> ours


class OpenAIServerEngine:
    """Sends prompts to a model at a server, at most `server.concurrency` at a time.

    As soon as one prompt is served, the next is sent. Failures that may be temporary (429, 5xx, no connection, no
    complete reply in time, an unreadable reply) are retried. Before a retry the engine waits for an exponential backoff
    with jitter, in addition to the wait that Retry-After asks for. A prompt that is not served after all its tries is
    sent once more, after the server has served another prompt. If that fails too, it gets a Reply with an error.
    Samples have no token ids. Replies have the server's `usage`, including the usage of failed tries.

    What the model thought is never part of a sample's text: neither what the server returns apart from the reply, nor
    what stands between tags in it.

    Args:
        model: its name at the server.
        served: how the server constrains replies to a regex, and extra fields of each request.
        server: the address, the variable that holds the key, and limits on concurrency, time and retries.
        thinking: how the model thinks. A server has no tokens for the budget alone: a reply may have as many tokens
            as the budget and the prompt's `max_tokens` together. None: what the server does without being told.

    Raises:
        UserError: the environment has no key. `generate` raises it if the server serves neither the last prompts nor a
            harmless test prompt.
    """

    def __init__(self, model: str, served: ServedModel, server: Server, thinking: Thinking | None = None):
        self.model, self.served, self.server, self.thinking = model, served, server, thinking
        own_tags = thinking.tags if thinking else None
        self.tags = (own_tags, *KNOWN_TAGS) if own_tags else KNOWN_TAGS
        # One client per request in flight, taken and put back. A single httpx client goes through all connections of
        # its pool for every request: with 128 in flight it is five times slower.
        client_options: dict[str, Any] = {
            "base_url": server.base_url,
            "headers": auth_headers(server),
            "verify": httpx.create_ssl_context(),
            "timeout": None,  # `_post` limits a whole try; httpx's timeout starts again with every byte
        }
        self.clients = [httpx.AsyncClient(**client_options) for _ in range(server.concurrency)]
        self.unserved_in_a_row = 0
        self.last_failure = ""  # why the last of them was not served
        # A separate event loop: calls from several threads share the limit on concurrency, and one call's last prompts
        # are in flight together with the next call's first.
        self.loop = asyncio.new_event_loop()
        self.request_slots = asyncio.Semaphore(server.concurrency)
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        replies = self.generate_once(prompts)
        # A row without a reply is skipped for good. This may happen only because of the prompt itself, never because
        # the server was down. So unserved prompts are sent again, and both times the server must serve another prompt.
        if unserved := self._unserved_by_working_server(replies):
            second_replies = self.generate_once([prompts[i] for i in unserved])
            for i, reply in zip(unserved, second_replies, strict=True):
                replies[i] = replace(reply, usage=add_usage(replies[i].usage, reply.usage))
            self._unserved_by_working_server(replies)
        return replies

    def _unserved_by_working_server(self, replies: Sequence[Reply]) -> list[int]:
        """The indices of prompts that were not served. Raises UserError if the server serves no other prompt either."""
        unserved = [i for i, reply in enumerate(replies) if isinstance(reply, _Unserved)]
        if unserved:
            (probe_reply,) = self.generate_once([_PROBE])
            if self.unserved_in_a_row and isinstance(probe_reply, _Unserved):
                raise self._server_is_down()
        return unserved

    def generate_once(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """Like `generate`, but a prompt that was not served after all its tries is not sent again.

        Raises:
            UserError: so many prompts in a row were not served that the server counts as down.
        """
        return asyncio.run_coroutine_threadsafe(self._send_all(prompts), self.loop).result()

    def close(self) -> None:
        """Close the connections and end the thread. An engine in an actor need not be closed: it ends with it."""
        for client in self.clients:
            asyncio.run_coroutine_threadsafe(client.aclose(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _server_is_down(self) -> UserError:
        return UserError(
            f"the server at {self.server.base_url} served none of {self.unserved_in_a_row} prompts in a row "
            f"({self.last_failure}): when it works again, run the same command to resume"
        )

    # Sending

    async def _send_all(self, prompts: Sequence[Prompt]) -> list[Reply]:
        return await asyncio.gather(*(self._send(prompt) for prompt in prompts))

    async def _send(self, prompt: Prompt) -> Reply:
        async with self.request_slots:
            client = self.clients.pop()
            try:
                return await self._send_with_retries(client, prompt)
            finally:
                self.clients.append(client)

    async def _send_with_retries(self, client: httpx.AsyncClient, prompt: Prompt) -> Reply:
        body = self.request_body(prompt)
        usage: dict[str, int] = {}  # tokens of the failed tries, which cost money too
        for attempt in itertools.count(1):
            if self.unserved_in_a_row >= self.server.concurrency + _MAX_UNSERVED:
                raise self._server_is_down()
            try:
                reply = self.parse_reply(prompt, await self._post(client, body))
                self.unserved_in_a_row = 0
                return replace(reply, usage=add_usage(usage, reply.usage))
            except TryFailed as error:
                failure = error
                usage = add_usage(usage, error.usage)
            if not failure.retry or attempt == self.server.tries or failure.retry_after > self.server.max_wait:
                break
            await asyncio.sleep(failure.retry_after + self.backoff(attempt))
            usage = add_usage(usage, {RETRIES: 1})
        if failure.prompt_at_fault:
            self.unserved_in_a_row, self.last_failure = 0, ""
            return Reply([], error=failure.reason, usage=usage)
        self.unserved_in_a_row, self.last_failure = self.unserved_in_a_row + 1, failure.reason
        return _Unserved([], error=failure.reason, usage=usage)

    def backoff(self, attempt: int) -> float:
        """Seconds to wait after a failed attempt, in addition to Retry-After: between half of the full backoff and all.

        It is random because prompts that failed together get the same Retry-After, and must not be sent together again.
        """
        return min(self.server.max_wait, _FIRST_BACKOFF * 2 ** (attempt - 1)) * random.uniform(0.5, 1)

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.server.timeout):
                response = await client.post("chat/completions", json=body)
        except (TimeoutError, httpx.TimeoutException):
            raise TryFailed("timed out") from None
        except httpx.RequestError:
            raise TryFailed("connection failed") from None
        if response.is_success:
            try:
                return response.json()
            except (ValueError, RecursionError):
                raise TryFailed("reply unreadable") from None
        # The text of an error may quote the prompt or the key, so no message contains it.
        if response.status_code in PROMPT_AT_FAULT_STATUSES and re.search(r"context.length", response.text):
            raise TryFailed("prompt too long", retry=False, prompt_at_fault=True)
        raise TryFailed(
            f"HTTP {response.status_code}",
            retry=response.status_code in RETRIED_STATUSES or response.status_code >= 500,
            prompt_at_fault=response.status_code in PROMPT_AT_FAULT_STATUSES,
            retry_after=retry_after(response.headers.get("retry-after"), datetime.now(UTC)),
        )

    # Requests and replies

    def request_body(self, prompt: Prompt) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": without_nulls(break_special_tokens(prompt, WELL_KNOWN_MARKERS)),
            "max_tokens": prompt.max_tokens + (self.thinking.budget if self.thinking else 0),
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "n": prompt.n,
        } | {name: value for name, value in _further_sampling(prompt).items() if value}
        if prompt.logprobs:
            body["logprobs"] = True
        if self.thinking:
            body["chat_template_kwargs"] = template_switches(bool(self.thinking.budget))
        if prompt.regex and self.served.structured_outputs == "regex":
            body["structured_outputs"] = {"regex": prompt.regex}
        elif prompt.regex and self.served.structured_outputs == "json_schema":
            schema = {
                "type": "object",
                "properties": {"reply": {"type": "string", "pattern": f"^({prompt.regex})$"}},
                "required": ["reply"],
                "additionalProperties": False,
            }
            named_schema = {"name": "reply", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named_schema}
        body |= self.served.extra_body
        return {name: value for name, value in body.items() if value is not None}

    def parse_reply(self, prompt: Prompt, response: dict[str, Any]) -> Reply:
        """Read the server's response to a prompt. Raises TryFailed if it cannot be read."""
        usage: dict[str, int] = {}
        try:
            usage = self._usage(response.get("usage") or {})
            finish_reasons = [choice["finish_reason"] for choice in response["choices"]]
            if "content_filter" in finish_reasons:
                return Reply([], error="content filter", usage=usage)
            if any(choice["message"].get("refusal") for choice in response["choices"]):
                return Reply([], error="refused by the model", usage=usage)
            in_json = prompt.regex is not None and self.served.structured_outputs == "json_schema"
            samples = [self._sample(choice, in_json) for choice in response["choices"]]
            if len(samples) != prompt.n or any(reason not in _FINISH_REASONS for reason in finish_reasons):
                raise ValueError("wrong number of samples, or an unknown finish reason")
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError):
            raise TryFailed("reply unreadable", usage=usage) from None
        return Reply([], samples, usage[TOKENS_CACHED], usage=usage)

    def _usage(self, reported: dict[str, Any]) -> dict[str, int]:
        """Token counts, and what the tokens cost if the settings have the model's price."""
        usage = {
            TOKENS_IN: _token_count(reported.get("prompt_tokens")),
            TOKENS_CACHED: _token_count((reported.get("prompt_tokens_details") or {}).get("cached_tokens")),
            TOKENS_OUT: _token_count(reported.get("completion_tokens")),
        }
        if thought := _token_count((reported.get("completion_tokens_details") or {}).get("reasoning_tokens")):
            usage[TOKENS_THOUGHT] = thought
        if price := self.server.price_of(self.model):
            cost = price.cost_micro_usd(usage[TOKENS_IN], usage[TOKENS_CACHED], usage[TOKENS_OUT])
            usage[MICRO_USD] = round(cost)
        return usage

    def _sample(self, choice: dict[str, Any], in_json: bool) -> Sample:
        """Make a Sample from a choice of the reply.

        Args:
            in_json: the text is the value of "reply" in a JSON object.
        """
        message = choice["message"]
        content = message["content"] or ""
        if not isinstance(content, str):
            raise TypeError("content is not a text")
        # vLLM calls it `reasoning`, and called it `reasoning_content` as DeepSeek and others do.
        apart = message.get("reasoning") or message.get("reasoning_content")
        inline, text = strip_thoughts(content, self.tags)
        thought = "\n".join(filter(None, (apart if isinstance(apart, str) else None, inline))) or None
        if thought is not None:
            text = text.lstrip()
        answer = text
        # JSON that was cut off cannot be parsed. It is kept unchanged, and the judge counts its answers as unread. The
        # same holds if the model ended its turn inside its thought.
        if in_json and choice["finish_reason"] != "length" and (answer.strip() or thought is None):
            text = str(json.loads(text)["reply"])
        tokens = (choice.get("logprobs") or {}).get("content")
        token_logps = None if tokens is None else [(token["token"], token["logprob"]) for token in tokens]
        if token_logps is not None and thought is not None:
            token_logps = answer_tokens(token_logps, answer) if answer.strip() else []
        logp = None if token_logps is None else math.fsum(logp for _, logp in token_logps)
        return Sample(
            _writable(text),
            [],
            _FINISH_REASONS.get(choice["finish_reason"], "stop"),
            logp,
            None if in_json else token_logps,  # with JSON, the tokens are those of the JSON object, and not of the text
            _writable(thought) if thought else None,
        )


class _Unserved(Reply):
    """The reply to a prompt that was given up, although no server refused it for its content."""


class TryFailed(Exception):
    """One try to serve a prompt failed.

    Attributes:
        reason: for the reply's error.
        retry: whether another try may succeed.
        prompt_at_fault: whether the server refused the prompt itself.
        retry_after: seconds that the server asks to wait.
        usage: what the server counted for this try.
    """

    def __init__(
        self,
        reason: str,
        retry: bool = True,
        prompt_at_fault: bool = False,
        retry_after: float = 0.0,
        usage: dict[str, int] | None = None,
    ):
        self.reason, self.retry, self.prompt_at_fault = reason, retry, prompt_at_fault
        self.retry_after, self.usage = retry_after, usage or {}


def add_usage(*usages: dict[str, int] | None) -> dict[str, int]:
    total: Counter[str] = Counter()
    for usage in usages:
        total.update(usage or {})
    return dict(total)


def _token_count(value: Any) -> int:
    """A token count that a server reports, limited to what one reply can possibly have used."""
    return min(max(0, int(value or 0)), 1 << 31)


def _writable(text: str) -> str:
    """The text without half surrogate pairs, which JSON can hold and no table can."""
    return text.encode("utf-8", "replace").decode()


def retry_after(header: str | None, now: datetime) -> float:
    """The seconds to wait that a Retry-After header asks for, as a number or as a date; 0 if it is neither."""
    try:
        seconds = float(header or "nan")
    except ValueError:
        try:
            date = parsedate_to_datetime(header or "")
        except (ValueError, OverflowError):
            return 0.0
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def auth_headers(server: Server) -> dict[str, str]:
    """The Authorization header with the server's key; empty if the server needs none.

    Raises:
        UserError: the environment variable is not set, or holds something that cannot be a key.
    """
    if server.api_key_env is None:
        return {}
    key = os.environ.get(server.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"no key for {server.base_url}: the environment variable {server.api_key_env} is not set, or is empty. Set "
            "it here and, on a cluster, also where `ray start` runs"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {server.api_key_env} holds characters that no key can have: set it again"
        )
    return {"Authorization": f"Bearer {key}"}


def _further_sampling(prompt: Prompt) -> dict[str, Any]:
    """Fields that only some servers know, so they are sent only if they change something."""
    return {
        "top_k": prompt.top_k,
        "min_p": prompt.min_p,
        "repetition_penalty": prompt.repetition_penalty if prompt.repetition_penalty != 1 else None,
        "stop": list(prompt.stop),
    }
