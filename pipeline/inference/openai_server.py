"""A model at an OpenAI-compatible server: vLLM's own, or a hosted one.

It judges, or writes summaries to compare with: a chat server gives no token ids, so what it samples is never trained
on. The key is read from the environment, where the engine is made, and goes into no message. Left out: whether a server
will do (`probe.py`), streaming, batch endpoints, and servers that speak otherwise.
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

from judges.base import Prompt, user
from pipeline.config import UserError
from pipeline.config.hardware import Server
from pipeline.config.servers import ServedModel
from pipeline.inference.base import Reply, Sample
from pipeline.inference.special_tokens import WELL_KNOWN, break_special_tokens

_FIRST_WAIT = 0.5  # seconds before the second try; doubled for each one after it
_AGAIN = {408, 409, 425, 429}  # and every 5xx
_OF_THE_PROMPT = {400, 413, 422}  # refusals that say nothing of the server's health
_PATIENCE = 16  # prompts in a row, beside those under way, that may go unserved before the server counts as gone
_HARMLESS = Prompt(user("Reply with one word."), max_tokens=8)  # what nobody has a reason to refuse
_FINISHED = {"stop": "stop", "eos": "stop", "length": "length"}


class OpenAIServerEngine:
    """Asks a model at a server, `server.concurrency` prompts at a time: as one is served, the next is sent.

    Args:
        model: as the server names it.
        served: how its replies are held to their form, and what else each request says.
        server: where it is, the variable with its key, how wide and how patiently to ask.

    What may pass (429, 5xx, no connection, no whole reply in time, one that cannot be read) is tried again after a
    growing time with jitter, on top of what Retry-After asks for. A prompt that is still not served is asked again once
    the server serves another, and gets a Reply with an error if it is not served then either. Samples have no token
    ids; replies have the server's `usage`, that of tries which came to nothing included.

    Raises:
        UserError: no key in the environment; from `generate`: the server has served none of the last prompts, nor a
            harmless one.
    """

    def __init__(self, model: str, served: ServedModel, server: Server):
        self.model, self.served, self.server = model, served, server
        # One client for each request under way, taken and put back: httpx's own pool goes over all its connections
        # for every request, and 128 at a time it is a fifth as fast.
        how: dict[str, Any] = {
            "base_url": server.base_url,
            "headers": auth_headers(server),
            "verify": httpx.create_ssl_context(),
            "timeout": None,  # one limit for a whole try, in `_try`: httpx's begins anew with every byte
        }
        self.clients = [httpx.AsyncClient(**how) for _ in range(server.concurrency)]
        self.unserved = 0  # prompts given up since the last one served
        self.reason = ""  # why the last of them was
        # A loop of its own: calls from several threads share the bound, and one call's last prompts and the next
        # call's first are under way together.
        self.loop = asyncio.new_event_loop()
        self.room = asyncio.Semaphore(server.concurrency)
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def generate(self, prompts: Sequence[Prompt]) -> list[Reply]:
        replies = self.ask(prompts)
        # Rows without a reply are set aside for good: for their own fault, and never because the server was gone. So
        # who went unserved is asked once more, and both times only what the server serves others for is theirs.
        if left := self._given_up(replies):
            for i, reply in zip(left, self.ask([prompts[i] for i in left]), strict=True):
                replies[i] = replace(reply, usage=_sum(replies[i].usage, reply.usage))
            self._given_up(replies)
        return replies

    def _given_up(self, replies: Sequence[Reply]) -> list[int]:
        """The places of prompts that went unserved by a server that serves others. Raises UserError: it does not."""
        left = [i for i, reply in enumerate(replies) if isinstance(reply, _Unserved)]
        if left:
            (harmless,) = self.ask([_HARMLESS])
            if self.unserved and isinstance(harmless, _Unserved):
                raise self._serves_nobody()
        return left

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """What came of each prompt, whether for its own fault or the server's.

        Raises:
            UserError: so many in a row were not served that the rest need not be tried.
        """
        return asyncio.run_coroutine_threadsafe(self._all(prompts), self.loop).result()

    def close(self) -> None:
        """Drop the connections and the thread. An engine in an actor need not: it goes with its process."""
        for client in self.clients:
            asyncio.run_coroutine_threadsafe(client.aclose(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def _all(self, prompts: Sequence[Prompt]) -> list[Reply]:
        return await asyncio.gather(*(self._one(prompt) for prompt in prompts))

    def _serves_nobody(self) -> UserError:
        return UserError(
            f"the server at {self.server.base_url} served none of {self.unserved} prompts in a row ({self.reason}): "
            "when it serves again, the same command goes on from here"
        )

    async def _one(self, prompt: Prompt) -> Reply:
        async with self.room:
            client = self.clients.pop()
            try:
                return await self._patiently(client, prompt)
            finally:
                self.clients.append(client)

    async def _patiently(self, client: httpx.AsyncClient, prompt: Prompt) -> Reply:
        body = self._body(prompt)
        spent: dict[str, int] = {}  # by the tries before, which are paid for too
        for attempt in itertools.count(1):
            if self.unserved >= self.server.concurrency + _PATIENCE:
                raise self._serves_nobody()
            try:
                reply = self._read(prompt, await self._try(client, body))
                self.unserved = 0
                return replace(reply, usage=_sum(spent, reply.usage))
            except _Refused as error:
                refused = error
                spent = _sum(spent, error.usage)
            if not refused.again or attempt == self.server.tries or refused.wait > self.server.max_wait:
                break
            # Half of it at least: all who failed together must not come back together, whatever they were told.
            backoff = min(self.server.max_wait, _FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            await asyncio.sleep(refused.wait + backoff)
            spent = _sum(spent, {"retries": 1})
        if refused.of_the_prompt:
            self.unserved, self.reason = 0, ""
            return Reply([], error=refused.reason, usage=spent)
        self.unserved, self.reason = self.unserved + 1, refused.reason
        return _Unserved([], error=refused.reason, usage=spent)

    async def _try(self, client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.server.timeout):
                response = await client.post("chat/completions", json=body)
        except (TimeoutError, httpx.TimeoutException):
            raise _Refused("timed out") from None
        except httpx.RequestError:
            raise _Refused("connection failed") from None
        if response.is_success:
            try:
                return response.json()
            except (ValueError, RecursionError):
                raise _Refused("reply unreadable") from None
        # The text of a refusal may quote the prompt, or the key: no more than this is taken from it.
        if response.status_code in _OF_THE_PROMPT and re.search(r"context.length", response.text):
            raise _Refused("prompt too long", again=False, of_the_prompt=True)
        raise _Refused(
            f"HTTP {response.status_code}",
            again=response.status_code in _AGAIN or response.status_code >= 500,
            of_the_prompt=response.status_code in _OF_THE_PROMPT,
            wait=retry_after(response.headers.get("retry-after"), datetime.now(UTC)),
        )

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(break_special_tokens(prompt, WELL_KNOWN)),
            "max_tokens": prompt.max_tokens,
            "temperature": prompt.temperature,
            "top_p": prompt.top_p,
            "n": prompt.n,
        }
        if prompt.logprobs:
            body["logprobs"] = True
        if prompt.regex and self.served.structured_outputs == "regex":
            body["structured_outputs"] = {"regex": prompt.regex}
        elif prompt.regex and self.served.structured_outputs == "json_schema":
            schema = {
                "type": "object",
                "properties": {"reply": {"type": "string", "pattern": f"^({prompt.regex})$"}},
                "required": ["reply"],
                "additionalProperties": False,
            }
            named = {"name": "reply", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        body |= self.served.extra_body
        return {name: value for name, value in body.items() if value is not None}

    def _read(self, prompt: Prompt, said: dict[str, Any]) -> Reply:
        usage: dict[str, int] = {}
        try:
            usage = self._usage(said.get("usage") or {})
            ends = [choice["finish_reason"] for choice in said["choices"]]
            if "content_filter" in ends:
                return Reply([], error="content filter", usage=usage)
            if any(choice["message"].get("refusal") for choice in said["choices"]):
                return Reply([], error="refused by the model", usage=usage)
            unwrap = prompt.regex is not None and self.served.structured_outputs == "json_schema"
            samples = [_sample(choice, unwrap) for choice in said["choices"]]
            if len(samples) != prompt.n or any(end not in _FINISHED for end in ends):
                raise ValueError("not the samples that were asked for")
        except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError):
            raise _Refused("reply unreadable", usage=usage) from None
        return Reply([], samples, usage["tokens_cached"], usage=usage)

    def _usage(self, said: dict[str, Any]) -> dict[str, int]:
        """Tokens, and the millionths of a dollar that they cost: a price per million tokens, times tokens."""
        tokens = _count(said.get("prompt_tokens")), _count(said.get("completion_tokens"))
        cached = _count((said.get("prompt_tokens_details") or {}).get("cached_tokens"))
        usage = {"tokens_in": tokens[0], "tokens_cached": cached, "tokens_out": tokens[1]}
        if price := self.server.prices.get(self.model):
            of_cached = price.input if price.cached is None else price.cached
            cost = (tokens[0] - cached) * price.input + cached * of_cached + tokens[1] * price.output
            usage["micro_usd"] = round(cost)
        return usage


class _Unserved(Reply):
    """What a prompt gets that was given up, and that nobody refused for what it says."""


class _Refused(Exception):
    """A try that brought nothing. `wait`: the seconds that the server asks for; `usage`: what it counted."""

    def __init__(
        self,
        reason: str,
        again: bool = True,
        of_the_prompt: bool = False,
        wait: float = 0.0,
        usage: dict[str, int] | None = None,
    ):
        self.reason, self.again, self.of_the_prompt, self.wait = reason, again, of_the_prompt, wait
        self.usage = usage or {}


def _sum(*counts: dict[str, int] | None) -> dict[str, int]:
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some or {})
    return dict(total)


def _count(said: Any) -> int:
    """A count of tokens as a server says it, within what one reply can have taken."""
    return min(max(0, int(said or 0)), 1 << 31)


def _sample(choice: dict[str, Any], unwrap: bool) -> Sample:
    text = choice["message"]["content"] or ""
    if not isinstance(text, str):
        raise TypeError("content is no text")
    if (
        unwrap and choice["finish_reason"] != "length"
    ):  # cut off it is no JSON: as it is, for the reader to leave unread
        text = str(json.loads(text)["reply"])
    tokens = (choice.get("logprobs") or {}).get("content")
    logp = None if tokens is None else math.fsum(token["logprob"] for token in tokens)
    text = text.encode("utf-8", "replace").decode()  # JSON can spell half a letter, which no table can hold
    # Of a reply in JSON the tokens are the JSON's, and not the text's.
    token_logps = None if tokens is None or unwrap else [(token["token"], token["logprob"]) for token in tokens]
    return Sample(text, [], _FINISHED.get(choice["finish_reason"], "stop"), logp, token_logps)


def retry_after(header: str | None, now: datetime) -> float:
    """The seconds that a Retry-After header asks for, given in seconds or as a date; 0 if it says neither."""
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
    """With the key. Raises UserError: the environment has none, or what cannot be one."""
    if server.api_key_env is None:
        return {}
    key = os.environ.get(server.api_key_env, "").strip()
    if not key:
        raise UserError(
            f"no key for {server.base_url}: the environment variable {server.api_key_env} is not set, or empty. Set it "
            "here, and on a cluster also where `ray start` runs"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {server.api_key_env} holds what no key can be: set it again")
    return {"Authorization": f"Bearer {key}"}
