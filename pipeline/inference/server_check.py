"""Whether a server will do: asked before anything starts, so that no run begins that could not end.

Left out: asking it in earnest (`http.py`).
"""

import difflib
import re

import httpx

from judges.base import Prompt, user
from pipeline.config import UserError
from pipeline.config.hardware import Hardware
from pipeline.config.servers import ServedModel
from pipeline.inference.openai_server import OpenAIServerEngine, auth_headers


def check_server(setting: str, model: str, served: ServedModel, hardware: Hardware, logprobs: bool = False) -> None:
    """Ask the server for its models and for one short reply, before anything starts.

    Args:
        setting: where the model is named: `judge`, or `compare.NAME`.
        logprobs: whether its replies are to come with log-probabilities.

    Raises:
        UserError: no key, no server, a key that it refuses, no such model, or replies that do not keep to their form
            or come without log-probabilities.
    """
    server, place = hardware.servers[served.server], f"hardware.servers.{served.server}"
    at = f"{place}.base_url is {server.base_url!r}"
    try:
        response = httpx.get(f"{server.base_url.rstrip('/')}/models", headers=auth_headers(server), timeout=30)
    except httpx.RequestError as error:
        raise UserError(f"{at}, and no server answers there ({type(error).__name__}): start it, or mend it") from None
    if response.status_code in (401, 403):
        mend = f"the key in {server.api_key_env}" if server.api_key_env else "a request without a key: set api_key_env"
        raise UserError(f"{at}, which refuses {mend} (HTTP {response.status_code})")
    try:
        names = [entry["id"] for entry in response.raise_for_status().json()["data"]]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{at}, where /models gives no list of models (HTTP {response.status_code}): it should be an "
            "OpenAI-compatible server's address, most often with /v1 at its end"
        ) from None
    if model not in names:
        near = difflib.get_close_matches(model, names, 5, 0) or ["none"]
        raise UserError(
            f"{setting}.model is {model!r}, which {server.base_url} does not have; it has {', '.join(near)}"
        )
    held = served.structured_outputs is not None
    prompt = Prompt(
        user("Reply with: Q1 Unsure"), max_tokens=32, regex="Q1 (A|Unsure)" if held else None, logprobs=logprobs
    )
    engine = OpenAIServerEngine(model, served, server.model_copy(update={"tries": 2}))
    (reply,) = engine.ask([prompt])
    engine.close()
    form = (
        f"{setting}.served.structured_outputs is {served.structured_outputs}"
        if held
        else f"{setting}.model is {model!r}"
    )
    if reply.error:
        raise UserError(f"{form}, and {server.base_url} does not serve a first request ({reply.error})")
    if logprobs and reply.samples[0].token_logps is None:
        raise UserError(
            f"{setting}.logprobs is true, and {server.base_url} gives no log-probabilities: set it to false"
        )
    other = "json_schema" if served.structured_outputs == "regex" else "regex"
    if held and not re.fullmatch(prompt.regex or "", reply.samples[0].text):
        raise UserError(f"{form}, and {server.base_url} does not keep to it: set it to {other} or null")
