"""A local chat server that fails on demand and logs its requests, one with a batch API, and prompts and engines."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from aiohttp import web

from judges.base import Prompt, user
from pipeline.config import hardware
from pipeline.config.servers import ServedModel
from pipeline.inference.scripted import ScriptedEngine
from pipeline.inference.server.batch_server import BatchServerEngine
from pipeline.inference.server.openai_server import OpenAIServerEngine

KEY = "sk-Secret.0123456789"
CONTEXT = 2000  # the most characters of a conversation


def reply_text(prompt: Prompt, sample: int) -> str:
    """A script for `ChatServer`: an answer to a question where the reply has a regex, else the sample's number."""
    return "Q1 A" if prompt.regex else f"said {sample}"


def chat_prompt(text: str = "hello", **changes: Any) -> Prompt:
    return Prompt(user(text), max_tokens=20, **changes)


def engine_at(server: "ChatServer", served: ServedModel | None = None, **settings: Any) -> OpenAIServerEngine:
    """An engine for the server, with a short timeout and few tries unless `settings` say otherwise."""
    quick = {"timeout": 2, "tries": 3} | settings
    return OpenAIServerEngine(
        "judge", served or ServedModel(server="ours"), hardware.Server(base_url=server.url, **quick)
    )


def _tokens(sample):
    return [{"token": text, "logprob": logp} for text, logp in sample.token_logps]


class ChatServer:
    """Answers with the text of `script(prompt, sample)` while the `with` block runs.

    A prompt that begins with `NAME:` fails the first time, in the way of the method `_NAME`; with `NAME!:` it fails
    every time.

    Attributes:
        url: the server's address, with `/v1`.
        tries: number of requests by prompt.
        times: when the requests of a prompt came, by the clock of the server's event loop.
        bodies: bodies of all requests, in order.
        most_in_flight: the most requests that were in flight at one time.
        reasoning_field: where it puts what a script wrote before </think>, as a server with a reasoning parser does;
            None: it leaves it in the content.
    """

    def __init__(
        self,
        script: Callable[[Prompt, int], str],
        models: tuple[str, ...] | list[str] = ("judge",),
        key: str | None = None,
        delay: float = 0.0,
        reasoning_field: str | None = None,
    ) -> None:
        self.reasoning_field = reasoning_field
        self.engine, self.models, self.key, self.delay = ScriptedEngine(script), models, key, delay
        self.tries, self.times, self.bodies, self.in_flight, self.most_in_flight = Counter(), {}, [], 0, 0
        self.up_from = 0.0  # it refuses all requests before this time, by its loop's clock

    def down(self, seconds: float) -> None:
        """Refuse all requests for so many seconds."""
        self.up_from = self.loop.time() + seconds

    def __enter__(self):
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self.thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    def _serve(self, ready):
        app = web.Application()
        app.add_routes(self._routes())
        self.loop.run_until_complete(self._start(app))
        ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(self.runner.cleanup())

    def _routes(self):
        return [web.get("/v1/models", self._models), web.post("/v1/chat/completions", self._chat)]

    async def _start(self, app):
        self.runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"

    def _refusal(self, request):
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            # Some servers quote the key.
            text = f"Incorrect API key provided: {request.headers.get('Authorization')}"
            return web.json_response({"error": {"message": text}}, status=401)
        return None

    async def _models(self, request):
        return self._refusal(request) or web.json_response({"data": [{"id": name} for name in self.models]})

    async def _chat(self, request):
        if refusal := self._refusal(request):
            return refusal
        body = await request.json()
        self.bodies.append(body)
        text = body["messages"][0]["content"]
        self.tries[text] += 1
        self.times.setdefault(text, []).append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay)
            if self.loop.time() < self.up_from:
                return web.Response(status=503)
            fault, colon, _ = text.partition(":")
            always = fault.endswith("!")
            if colon and hasattr(self, f"_{fault.strip('!')}") and (always or self.tries[text] == 1):
                return await getattr(self, f"_{fault.strip('!')}")(request, self._reply(body))
            if sum(len(message["content"]) for message in body["messages"]) > CONTEXT:
                text = f"This model's maximum context length is {CONTEXT} tokens."
                return web.json_response({"error": {"message": text, "code": 400}}, status=400)
            return web.json_response(self._reply(body))
        finally:
            self.in_flight -= 1

    def _reply(self, body):
        form = (body.get("structured_outputs") or {}).get("regex") or body.get("response_format")
        prompt = Prompt(
            tuple(body["messages"]),
            body["max_tokens"],
            form and "form",
            n=body.get("n", 1),
            logprobs=bool(body.get("logprobs")),
        )
        (reply,) = self.engine.generate([prompt])
        choices = [
            {
                "message": self._message(s.text, in_json="response_format" in body),
                "finish_reason": s.finish_reason,
                "logprobs": {"content": _tokens(s)} if body.get("logprobs") else None,
            }
            for s in reply.samples
        ]
        usage = {
            "prompt_tokens": len(reply.prompt_ids),
            "completion_tokens": sum(len(s.token_ids) for s in reply.samples),
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        return {"choices": choices, "usage": usage}

    def _message(self, text, in_json):
        thought, closed, answer = text.rpartition("</think>")
        content = json.dumps({"reply": answer.strip()}) if in_json else answer
        if self.reasoning_field is None:
            return {"content": thought + closed + content}
        return {"content": content, self.reasoning_field: thought.removeprefix("<think>")}

    # Faults

    async def _busy(self, request, reply):
        return web.Response(status=429, headers={"Retry-After": "1"})

    async def _prose(self, request, reply):
        """The text is not the JSON that was asked for, but its tokens are billed."""
        reply["choices"][0]["message"]["content"] = "As you wish."
        return web.json_response(reply)

    async def _endless(self, request, reply):
        reply["usage"]["prompt_tokens"] = 1e30
        return web.json_response(reply)

    async def _until(self, request, reply):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
        return web.Response(status=503, headers={"Retry-After": date})

    async def _tomorrow(self, request, reply):
        return web.Response(status=429, headers={"Retry-After": "86400"})

    async def _broken(self, request, reply):
        return web.Response(status=500, text="a stack trace")

    async def _hang(self, request, reply):
        await asyncio.sleep(60)

    async def _cut(self, request, reply):
        return web.Response(text=json.dumps(reply)[:-20], content_type="application/json")

    async def _short(self, request, reply):
        """Sends fewer bytes than Content-Length says."""
        response = web.StreamResponse(headers={"Content-Length": "5000"})
        await response.prepare(request)
        await response.write(b'{"choices"')
        request.transport.close()
        return response

    async def _reset(self, request, reply):
        request.transport.abort()
        return web.Response()

    async def _shape(self, request, reply):
        return web.json_response({"answer": "42"})

    async def _list(self, request, reply):
        return web.json_response(["choices"])

    async def _fewer(self, request, reply):
        return web.json_response(reply | {"choices": reply["choices"][:-1]})

    async def _drip(self, request, reply):
        """Sends a byte every 0.1 s, so that no read times out and the reply takes very long."""
        response = web.StreamResponse()
        await response.prepare(request)
        for byte in json.dumps(reply).encode():
            await response.write(bytes([byte]))
            await asyncio.sleep(0.1)
        return response

    async def _poison(self, request, reply):
        return web.json_response({"error": {"message": f"no: {reply}"}}, status=400)

    async def _refusal_of_model(self, request, reply):
        choices = [choice | {"message": {"content": None, "refusal": "I cannot."}} for choice in reply["choices"]]
        return web.json_response(reply | {"choices": choices})

    async def _filter(self, request, reply):
        choices = [
            choice | {"finish_reason": "content_filter", "message": {"content": None}} for choice in reply["choices"]
        ]
        return web.json_response(reply | {"choices": choices})


def batch_engine(server: "BatchServer", run: str = "runs/a", **settings) -> BatchServerEngine:
    place = hardware.Server(base_url=server.url, batch=True, **{"timeout": 5, "tries": 3} | settings)
    return BatchServerEngine("judge", ServedModel(server="ours"), place, None, run)


class BatchServer(ChatServer):
    """A chat server with a batch API of OpenAI's form. It works on a batch when it is asked for it.

    Attributes:
        held: while it is true, no batch ends.
        serves: how many requests of the next batch it serves before the batch expires; None: all.
        loses_answers: how many answers to new batches are lost on the way.
        refuses_batches: it ends batches as failed.
        batches: all batches, by id. Each has the names of its `requests`.
    """

    def __init__(self, script) -> None:
        super().__init__(script)
        self.held, self.serves, self.loses_answers, self.refuses_batches = False, None, 0, False
        self.batches, self.files = {}, {}

    @property
    def requests(self) -> list[str]:
        """The names of all requests of all batches."""
        return [name for batch in self.batches.values() for name in batch["requests"]]

    def _routes(self):
        return [
            *super()._routes(),
            web.post("/v1/files", self._upload),
            web.get("/v1/files/{id}/content", self._content),
            web.post("/v1/batches", self._create),
            web.get("/v1/batches", self._list_batches),
            web.get("/v1/batches/{id}", self._batch),
        ]

    def _add_file(self, text):
        self.files[f"file-{len(self.files)}"] = text
        return f"file-{len(self.files) - 1}"

    async def _upload(self, request):
        form = await request.post()
        assert form["purpose"] == "batch"
        return web.json_response({"id": self._add_file(form["file"].file.read().decode())})

    async def _content(self, request):
        return web.Response(text=self.files[request.match_info["id"]])

    async def _create(self, request):
        body = await request.json()
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        number = len(self.batches)
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        batch = body | {
            "id": f"batch-{number}",
            "created_at": number,
            "status": "validating",
            "requests": [line["custom_id"] for line in lines],
        }
        self.batches[batch["id"]] = batch
        if self.loses_answers:
            self.loses_answers -= 1
            request.transport.abort()
        return web.json_response(batch)

    async def _list_batches(self, request):
        """The newest first, two on a page."""
        batches = list(reversed(self.batches.values()))
        after = request.query.get("after")
        start = [batch["id"] for batch in batches].index(after) + 1 if after else 0
        return web.json_response({"data": batches[start : start + 2], "has_more": start + 2 < len(batches)})

    async def _batch(self, request):
        batch = self.batches[request.match_info["id"]]
        if self.refuses_batches:
            batch |= {"status": "failed", "errors": {"data": [{"code": "token_limit_exceeded", "message": "a prompt"}]}}
        elif not self.held and batch["status"] == "validating":
            await self._work(batch)
        return web.json_response(batch)

    async def _work(self, batch):
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        served, self.serves = (len(lines) if self.serves is None else self.serves), None
        results = {200: [], 400: []}
        for line in lines[:served]:
            status, body = self._answer(line["body"])
            response = {"status_code": status, "body": body}
            results[200 if status == 200 else 400].append({"custom_id": line["custom_id"], "response": response})
        names = {200: "output_file_id", 400: "error_file_id"}
        for status, outcome in results.items():
            if outcome:
                batch[names[status]] = self._add_file("\n".join(map(json.dumps, reversed(outcome))))
        batch["status"] = "completed" if served == len(lines) else "expired"
        await asyncio.sleep(0)

    def _answer(self, body):
        text = body["messages"][0]["content"]
        self.tries[text] += 1
        if text.startswith("poison"):
            return 400, {"error": {"message": "no"}}
        if text.startswith("broken") and self.tries[text] == 1:
            return 500, {"error": {"message": "sorry"}}
        reply = self._reply(body)
        if text.startswith("mute"):
            reply["choices"] = []
        return 200, reply
