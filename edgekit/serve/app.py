"""The HTTP routes: OpenAI's, and those of the page."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit import __version__
from edgekit.serve.admission import Admission
from edgekit.serve.api_errors import Refusal, explain_error
from edgekit.serve.async_bridge import Crossing
from edgekit.serve.guard import Guard, read_body, refuse
from edgekit.serve.memory import give_back
from edgekit.serve.metrics import Live
from edgekit.serve.protocol import ALIAS, OVERRIDE_HEADER, Asked, Chat, Completion
from edgekit.serve.replies import Kind, Reply, describe_verdict, event, list_models, verdict_header
from edgekit.types.routing import DEVICE, Opening, Piece, Routed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from edgekit.serve.history import History
    from edgekit.serve.seam import Answerer
    from edgekit.types.routing import Event, Tier
    from edgekit.types.routing import Request as Question

BODY_LIMIT = 1_000_000
"""Most bytes of a request's body."""

_SMALL = 50_000
"""Most bytes of a body that is parsed in the event loop's thread, in about a millisecond."""

_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Settings:
    """Settings of the server. ``token``: "" for none. ``any_host``: accept Host headers other than loopback's."""

    queue: int = 32
    body_limit: int = BODY_LIMIT
    token: str = ""
    any_host: bool = False


class Service:
    """The application's state and its endpoints. Created in the event loop's thread.

    Args:
        answerer: the router.
        history: the history, None to record nothing.
        settings: limits and the token.
    """

    def __init__(self, answerer: Answerer, history: History | None, settings: Settings) -> None:
        self.answerer = answerer
        self.history = history
        self.settings = settings
        self.admission = Admission(settings.queue)
        self.live = Live(answerer.policy.budget.currency)
        self.model = answerer.bundle.path.resolve().name
        self.models = {DEVICE: self.model, **{tier.name: tier.model for tier in answerer.policy.tiers}}
        self._crossings: set[Crossing] = set()
        self._answering = self._open_threads()
        # Status requests have their own threads, so that they work while the queue is full.
        self._looking = ThreadPoolExecutor(2, thread_name_prefix="edgekit-look")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="edgekit-read")
        self._long = Admission(settings.queue)
        self._page = {
            path: ((files("edgekit.serve") / name).read_bytes(), kind) for path, (name, kind) in _PAGE.items()
        }
        self.live.watch("edgekit_active", "Requests in progress.", lambda: self.admission.active)
        self.live.watch("edgekit_queue_limit", "Most requests in progress.", lambda: settings.queue)
        self.live.watch("edgekit_history_lost", "Rows lost by the history.", lambda: history.lost if history else 0)

    @property
    def asgi(self) -> ASGIApp:
        """The application behind its guard."""
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/v1/chat/completions", self._mend(self._chat), methods=post),
            Route("/v1/completions", self._mend(self._text), methods=post),
            Route("/v1/models", self._mend(self._models), methods=get),
            Route("/v1/models/{name:path}", self._mend(self._one_model), methods=get),
            Route("/api/explain", self._mend(self._explain), methods=post),
            Route("/api/live", self._mend(self._live), methods=get),
            Route("/metrics", self._mend(self._metrics), methods=get),
            Route("/health", self._mend(self._health), methods=get),
            *(Route(path, self._mend(self._asset), methods=get) for path in self._page),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
        # A redirect's URL would be built from the Host header, which the client controls.
        app.router.redirect_slashes = False
        return Guard(app, self.settings.token, self.settings.any_host, self.live.reject)

    def stop_all(self) -> None:
        """Stop every answer in progress. Called in the event loop's thread."""
        for crossing in self._crossings:
            crossing.stop.set()

    def tidy(self) -> None:
        """Release unused memory. Called periodically in the event loop's thread.

        Allocators, tokenizers and regular expressions keep memory per thread, so long-lived threads grow by megabytes
        over hours. New threads take over, and the old ones end when they are idle.
        """
        self._answering.shutdown(wait=False)
        self._answering = self._open_threads()
        self.look(give_back)

    def close(self) -> None:
        """Wait for all threads. Called after the last request has ended."""
        self._answering.shutdown()
        self._looking.shutdown()
        self._reading.shutdown()

    def _open_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.settings.queue, thread_name_prefix="edgekit-answer")

    # --- answers ------------------------------------------------------------------------------

    def _mend(self, endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Wrap an endpoint so that its exceptions become error responses."""

        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return Response(status_code=HTTPStatus.BAD_REQUEST)
            except Exception as error:
                refusal = explain_error(error)
                if refusal.verdict is None:
                    self.live.reject(refusal.status)
                return _refused(refusal)

        return guarded

    async def _chat(self, request: Request) -> Response:
        return await self._complete(request, Chat, "chat")

    async def _text(self, request: Request) -> Response:
        return await self._complete(request, Completion, "text")

    async def _complete(self, request: Request, form: type[Chat | Completion], kind: Kind) -> Response:
        asked, question = await self._read(request, form)
        # Not a with statement: a stream keeps its place until its last byte, after this function returns.
        place = ExitStack()
        place.enter_context(self.admission.enter())
        crossing = Crossing(self.answerer, question, self._note)
        self._crossings.add(crossing)
        place.callback(self._crossings.discard, crossing)
        crossing.start(self._answering)
        try:
            answer = _Answer(request, crossing, Reply(kind, self.models), place)
            if asked.streamed:
                return await answer.streamed(with_usage=asked.with_usage)
            return await answer.whole()
        except BaseException:
            await crossing.finish()
            place.close()
            raise

    async def _read(self, request: Request, form: type[Chat | Completion]) -> tuple[Asked, Question]:
        body = await read_body(request, self.settings.body_limit)
        override = request.headers.get(OVERRIDE_HEADER)
        if len(body) <= _SMALL:
            # Passing it to another thread would take longer.
            return self._understand(body, form, override)

        def make_ready() -> tuple[Asked, Question]:
            asked, question = self._understand(body, form, override)
            return asked, self.answerer.prepare(question)

        # One long body at a time: parsing competes with all answers for the interpreter.
        with self._long.enter():
            return await asyncio.get_running_loop().run_in_executor(self._reading, make_ready)

    def _understand(self, body: bytes, form: type[Chat | Completion], override: str | None) -> tuple[Asked, Question]:
        asked = form.read(body)
        if asked.model not in (ALIAS, self.model):
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                f"no such model; use '{ALIAS}' for the policy's choice, or '{self.model}' to stay on this device",
                param="model",
                code="model_not_found",
            )
        return asked, asked.request(header=override, local_model=self.model)

    def _note(self, question: Question, routed: Routed) -> None:
        self.live.add(question, routed)
        if self.history:
            self.history.add(question, routed)

    async def _explain(self, request: Request) -> Response:
        _, question = await self._read(request, Chat)
        with self.admission.enter():  # counting a prompt's tokens takes time
            verdict = await self.look(lambda: self.answerer.explain(question))
        return JSONResponse(describe_verdict(verdict), headers=verdict_header(verdict))

    def look(self, what: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a function in a thread that is not used for answers."""
        return asyncio.get_running_loop().run_in_executor(self._looking, what)

    # --- looking ------------------------------------------------------------------------------

    def _list(self) -> dict[str, Any]:
        tiers = tuple((t.name, t.trust, t.model) for t in self.answerer.policy.tiers)
        return list_models(self.model, int(self.live.started), tiers)

    async def _models(self, _request: Request) -> Response:
        return JSONResponse(self._list())

    async def _one_model(self, request: Request) -> Response:
        for model in self._list()["data"]:
            if model["id"] == request.path_params["name"]:
                return JSONResponse(model)
        return refuse(Refusal(HTTPStatus.NOT_FOUND, "no such model", param="model", code="model_not_found"))

    async def _health(self, _request: Request) -> Response:
        if self.admission.closing:
            return JSONResponse({"status": "closing"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ok", "version": __version__})

    async def _metrics(self, _request: Request) -> Response:
        return Response(self.live.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _live(self, _request: Request) -> Response:
        status = await self.look(self.answerer.status)
        policy = self.answerer.policy
        more = {
            "model": self.model,
            "policy": policy.name,
            "active": self.admission.active,
            "queue": self.settings.queue,
            "endpoints": [_describe_endpoint(t, dict(status.down)) for t in policy.tiers],
            "drift": status.drift.words if status.drift else "",
            "stale": bool(status.drift and status.drift.stale),
            "meter": status.meter,
            "spent_today": status.spent_today,
            "per_day": policy.budget.per_day,
            "history_lost": self.history.lost if self.history else 0,
        }
        return JSONResponse(self.live.snapshot() | more, headers={"cache-control": "no-store"})

    async def _asset(self, request: Request) -> Response:
        content, kind = self._page[request.scope["path"]]
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache", "content-type": kind}
        return Response(content, headers=headers)


class _Answer:
    """One answer and its client. ``place`` is its place in the queue, closed at the end."""

    def __init__(self, request: Request, crossing: Crossing, reply: Reply, place: ExitStack) -> None:
        self._request = request
        self._crossing = crossing
        self._reply = reply
        self._place = place

    async def whole(self) -> Response:
        """Return the whole answer at once; a disconnect stops it."""
        async with _Watch(self._request.receive, self._crossing):
            while (happened := await self._crossing.next()) is not None:
                if isinstance(happened, Routed):
                    break
        await self._crossing.finish()
        self._place.close()
        if happened is None:
            raise ClientDisconnect
        routed = _answered(happened)
        return JSONResponse(self._reply.whole(routed), headers=verdict_header(routed.verdict))

    async def streamed(self, *, with_usage: bool) -> Response:
        """Return a stream, after waiting for the first event, which says who answers, or that nobody does."""
        async with _Watch(self._request.receive, self._crossing):
            first = await self._crossing.next()
        if first is None:
            raise ClientDisconnect
        verdict = first.verdict if isinstance(first, Opening) else _answered(first).verdict
        chunks = self._chunks(first, verdict.tier, with_usage)
        return _EventStream(chunks, verdict_header(verdict), self._crossing, self._place)

    async def _chunks(self, first: Event, tier: str, with_usage: bool) -> AsyncGenerator[bytes]:
        """Yield the events to send. A broken answer ends with an error event and without ``[DONE]``."""
        head = self._reply.opening(tier)
        happened: Event | None = first
        shown = False
        try:
            while happened is not None:
                if isinstance(happened, Piece):
                    shown = True
                    yield head + self._reply.piece(tier, happened.text)
                    head = b""
                elif isinstance(happened, Routed):
                    routed = _answered(happened)
                    if routed.text and not shown:
                        head += self._reply.piece(tier, routed.text)
                    yield head + self._reply.ending(routed, with_usage=with_usage)
                    return
                happened = await self._crossing.next()
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the client did not read the answer", code="given_up")
        except Exception as error:
            refusal = explain_error(error)
            yield event(refusal.body | ({"edgekit": describe_verdict(refusal.verdict)} if refusal.verdict else {}))


class _EventStream(Response):
    """A stream of server-sent events, which releases its place in the queue at the end, also after an error."""

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[bytes], headers: dict[str, str], crossing: Crossing, place: ExitStack
    ) -> None:
        super().__init__(headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._crossing = crossing
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, or stop the answer when the client disconnects."""
        del scope
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with _Watch(receive, self._crossing), aclosing(self._chunks):
                async for chunk in self._chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._crossing.finish()
            self._place.close()


class _Watch:
    """A context manager that stops the answer when the client disconnects."""

    def __init__(self, receive: Receive, crossing: Crossing) -> None:
        self._receive = receive
        self._crossing = crossing

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._wait())

    async def __aexit__(self, *_: object) -> None:
        task = self._task
        # Its traceback holds this object: the cycle would keep the whole answer until a collection.
        del self._task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._crossing.stop.set()


def _describe_endpoint(tier: Tier, down: dict[str, str]) -> dict[str, str]:
    """Describe an endpoint; ``down`` is why it is not asked at the moment, "" if it is available."""
    return {"name": tier.name, "trust": tier.trust, "model": tier.model, "down": down.get(tier.name, "")}


def _answered(event_: Event) -> Routed:
    """Check that an event is a Routed with an answer.

    Raises:
        Refusal: nobody answered, an endpoint broke off, or the answer was stopped.
    """
    if not isinstance(event_, Routed):
        raise TypeError(f"{type(event_).__name__} is not a Routed")
    if not event_.verdict.tier:
        raise Refusal.of_verdict(event_.verdict)
    if event_.broken or event_.finish == "error":
        reason = f"the answer broke off: {event_.verdict.reason}"
        raise Refusal(HTTPStatus.BAD_GATEWAY, reason, code="broken_off", verdict=event_.verdict)
    if event_.finish == "cancelled":
        raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the answer was stopped", code="stopped", verdict=event_.verdict)
    return event_


def _refused(refusal: Refusal) -> Response:
    if refusal.verdict is None:
        return refuse(refusal)
    body = refusal.body | {"edgekit": describe_verdict(refusal.verdict)}
    return JSONResponse(body, refusal.status, {**refusal.headers, **verdict_header(refusal.verdict)})


async def _http_error(_request: Request, error: Exception) -> Response:
    status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return refuse(Refusal(status, status.phrase.lower(), code=status.name.lower()), headers)
