"""A local chat server that also has a batch API of OpenAI's form, and engines for it."""

import asyncio
import json

from aiohttp import web

from pipeline.config import hardware
from pipeline.config.servers import ServedModel
from pipeline.inference.server.batch_server import BatchServerEngine
from tests.helpers.chat_server import ChatServer


def batch_engine(server: "BatchServer", run: str = "runs/a", **settings) -> BatchServerEngine:
    place = hardware.Server(base_url=server.url, batch=True, **{"timeout": 5, "tries": 3} | settings)
    return BatchServerEngine("judge", ServedModel(server="ours"), place, None, run)


class BatchServer(ChatServer):
    """Works on a batch when it is asked for it.

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
