"""Checks that a server can serve a run, before anything starts.

It asks the server for its models and for one short reply. The engine that serves the run is in `openai_server.py`.
"""

import difflib
import re

import httpx

from judges.base import Prompt, user
from pipeline.config import UserError
from pipeline.config.base import Thinking
from pipeline.config.hardware import Hardware, Server
from pipeline.config.servers import ServedModel
from pipeline.inference.base import TOKENS_THOUGHT, Reply
from pipeline.inference.server.openai_server import OpenAIServerEngine, auth_headers

_QUESTION = "Is 9.11 larger than 9.9? Compare the digits after the point. "  # gives a model that thinks a reason to


def check_server(
    setting: str,
    model: str,
    served: ServedModel,
    hardware: Hardware,
    logprobs: bool = False,
    thinking: Thinking | None = None,
) -> None:
    """Ask the server for its models and for one short reply.

    Args:
        setting: the setting that names the model: `judge`, or `compare.NAME`.
        model: the model's name at the server.
        served: the model's settings, such as how the server constrains its replies.
        hardware: has the server's address, key variable and limits.
        logprobs: whether replies must come with log-probabilities.
        thinking: how the model thinks; None: it must not think.

    Raises:
        UserError: there is no key or no server, or the server refuses the key, does not have the model, does not
            serve the request, does not enforce the required form, or gives no log-probabilities; the model thinks and
            should not, or the other way round.
    """
    server = hardware.servers[served.server]
    _check_model_is_listed(setting, model, server, f"hardware.servers.{served.server}")
    if server.batch:
        _check_batches(server, f"hardware.servers.{served.server}")
    must_match = served.structured_outputs is not None
    thinks = bool(thinking and thinking.budget)
    text = f"{_QUESTION if thinks else ''}Reply with: Q1 Unsure"
    prompt = Prompt(user(text), max_tokens=32, regex="Q1 (A|Unsure)" if must_match else None, logprobs=logprobs)
    reply = _request_once(model, served, server, prompt, thinking)
    if must_match:
        subject = f"{setting}.served.structured_outputs is {served.structured_outputs}"
    else:
        subject = f"{setting}.model is {model!r}"
    if reply.error:
        remedy = (
            f"; because of {setting}.thinking it was sent chat_template_kwargs, which "
            "extra_body={chat_template_kwargs: null} leaves out"
            if thinking
            else ""
        )
        raise UserError(f"{subject}, and {server.base_url} fails to serve a first request ({reply.error}){remedy}")
    _check_thinking(setting, model, served, server, reply, thinks)
    if logprobs and reply.samples[0].token_logps is None:
        raise UserError(
            f"{setting}.logprobs is true, and {server.base_url} gives no log-probabilities: set it to false"
        )
    if must_match and not re.fullmatch(prompt.regex or "", reply.samples[0].text):
        alternative = "json_schema" if served.structured_outputs == "regex" else "regex"
        if thinks and reply.samples[0].finish_reason == "length":
            raise UserError(
                f"{subject}, and a first reply of {server.base_url} was cut off before its answer: raise "
                f"{setting}.thinking.budget"
            )
        raise UserError(f"{subject}, and {server.base_url} does not enforce it: set it to {alternative} or null")


def _check_model_is_listed(setting: str, model: str, server: Server, section: str) -> None:
    """Raise UserError unless the server lists the model. `section` is the section of the settings for the server."""
    subject = f"{section}.base_url is {server.base_url!r}"
    try:
        response = httpx.get(f"{server.base_url.rstrip('/')}/models", headers=auth_headers(server), timeout=30)
    except httpx.RequestError as error:
        raise UserError(
            f"{subject}, and no server answers there ({type(error).__name__}): start the server, or correct the address"
        ) from None
    if response.status_code in (401, 403):
        if server.api_key_env:
            refused = f"the key in {server.api_key_env}"
        else:
            refused = "a request without a key: set api_key_env"
        raise UserError(f"{subject}, which refuses {refused} (HTTP {response.status_code})")
    try:
        models = [entry["id"] for entry in response.raise_for_status().json()["data"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{subject}, where /models gives no list of models (HTTP {response.status_code}): it should be the address "
            "of an OpenAI-compatible server, which usually ends in /v1"
        ) from None
    if model not in models:
        closest = difflib.get_close_matches(model, models, 5, 0) or ["none"]
        raise UserError(
            f"{setting}.model is {model!r}, which {server.base_url} does not have; it has {', '.join(closest)}"
        )


def _check_batches(server: Server, section: str) -> None:
    try:
        url = f"{server.base_url.rstrip('/')}/batches?limit=1"
        served = isinstance(
            httpx.get(url, headers=auth_headers(server), timeout=30).raise_for_status().json()["data"], list
        )
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        served = False
    if not served:
        raise UserError(f"{section}.batch is true, and {server.base_url} has no batch API (/batches): set it to false")


def _check_thinking(
    setting: str, model: str, served: ServedModel, server: Server, reply: Reply, must_think: bool
) -> None:
    """Raise UserError if the model thought and should not have, or the other way round."""
    thought = reply.samples[0].thought
    if thought and not must_think:
        place = setting if setting.startswith("compare.") else f"{setting}.served"
        raise UserError(
            f"{setting}.model is {model!r}, which thinks at {server.base_url}, and {setting}.thinking does not allow "
            f"it: set {setting}.thinking.budget to the most tokens of a thought, or turn thinking off with "
            f"{place}.extra_body={{chat_template_kwargs: {{enable_thinking: false}}}}"
        )
    if must_think and not thought and not (reply.usage or {}).get(TOKENS_THOUGHT):
        form = served.structured_outputs
        cause = (
            f"the form of replies ({form}) then begins at once, so start vLLM with its --reasoning-parser for this "
            f"model, set {setting}.served.structured_outputs to null"
            if form
            else "start vLLM with its --reasoning-parser for this model"
        )
        raise UserError(
            f"{setting}.thinking is set, and {model!r} at {server.base_url} does not think: {cause}, or remove "
            f"{setting}.thinking"
        )


def _request_once(model: str, served: ServedModel, server: Server, prompt: Prompt, thinking: Thinking | None) -> Reply:
    engine = OpenAIServerEngine(model, served, server.model_copy(update={"tries": 2}), thinking)
    (reply,) = engine.generate_once([prompt])
    engine.close()
    return reply
