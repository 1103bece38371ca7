"""`rondo view`: serves the page of a run on this machine, for its user only.

The server listens on the loopback address. Every request needs the token of the link that the command prints, and a
`Host` header that names the loopback address, so that a page of another site cannot ask through the user's browser
(DNS rebinding). It answers GET requests, and changes nothing in the run folder.
"""

import asyncio
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from jobs.show.run_data import RunData, cache_folder
from pipeline.config import UserError
from pipeline.config.messages import one_line
from pipeline.evaluation.report.page.html import content_policy, render_page
from pipeline.evaluation.report.page.index import FILTERS
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_folder import read_settings

_HOST = "127.0.0.1"
_MOST_AT_ONCE = 200  # articles of one answer
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def view(folder: str, port: int) -> None:
    """Serve the page of a run until Ctrl-C.

    Args:
        folder: the run folder, an absolute path or a URI.
        port: of the server; 0: any that is free.

    Raises:
        UserError: there is no run in the folder, or the port is taken.
    """
    ledger = Ledger(folder)
    config = read_settings(ledger)
    data = RunData(config, ledger, cache_folder())
    asyncio.run(_serve(data, port))


async def _serve(data: RunData, port: int) -> None:
    async with serving(data, port) as link:
        print(f"{data.ledger.root}: {link}\nThe link is for this machine and this session. Ctrl-C ends it.", flush=True)
        await asyncio.Event().wait()


@asynccontextmanager
async def serving(data: RunData, port: int) -> AsyncIterator[str]:
    """While the block runs, serve a run. Gives the link with its token."""
    token = secrets.token_urlsafe(32)
    runner = web.AppRunner(make_app(data, token), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, _HOST, port).start()
        except OSError as error:
            raise UserError(f"--port {port} cannot be used: {one_line(error)}. Leave it out for a free one") from None
        yield f"http://{_HOST}:{runner.addresses[0][1]}/?token={token}"
    finally:
        await runner.cleanup()


def make_app(data: RunData, token: str) -> web.Application:
    """The page and its API, as an application of aiohttp."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse whoever does not hold the token, before anything else is done."""
        name, _, port = request.host.partition(":")
        given = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.query.get("token", "")
        if name not in (_HOST, "localhost") or (port and not port.isdigit()):
            return _refusal(403, "This server answers to 127.0.0.1 only.")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
            return _refusal(403, "The token is missing or wrong: use the link that rondo view printed.")
        try:
            response = await handler(request)
        except UserError as error:
            return _refusal(500, str(error))
        except web.HTTPException as error:
            return _refusal(error.status, error.reason)
        response.headers.update(_HEADERS)
        return response

    async def page(request: web.Request) -> web.Response:
        text = render_page({"server": True})
        headers = {"Content-Security-Policy": f"{content_policy(True)}; frame-ancestors 'none'"}
        return web.Response(text=text, content_type="text/html", headers=headers)

    def answer(ask: Callable[[web.Request], Any]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            value = await asyncio.to_thread(ask, request)
            if value is None:
                raise web.HTTPNotFound(reason="There is no such article.")
            return web.json_response(value, dumps=lambda each: json.dumps(each, allow_nan=False))

        return handle

    def articles(request: web.Request) -> dict[str, Any]:
        query = request.query
        only, split = query.get("only", "all"), query.get("split", "")
        if only not in FILTERS or split not in ("", "train", "eval"):
            raise web.HTTPBadRequest(reason="There is no such filter.")
        number, offset = (_number(query.get(name, "0")) for name in ("round", "offset"))
        limit = min(_number(query.get("limit", "50")), _MOST_AT_ONCE)
        return data.articles(only, number, split, query.get("text", "").strip(), offset, limit)

    app = web.Application(middlewares=[guard])
    app.router.add_get("/", page)
    app.router.add_get("/api/overview", answer(lambda request: data.overview()))
    app.router.add_get("/api/rounds", answer(lambda request: data.rounds()))
    app.router.add_get("/api/articles", answer(articles))
    app.router.add_get("/api/article", answer(lambda request: data.article(request.query.get("id", ""))))
    app.router.add_get("/api/progress", answer(lambda request: data.progress()))
    return app


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise web.HTTPBadRequest(reason="A number is expected.")
    return int(text)


def _refusal(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, headers=_HEADERS)
