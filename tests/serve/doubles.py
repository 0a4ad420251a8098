"""A router that answers by script, and a real server around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from edgekit.errors import RouteError
from edgekit.serve.app import Service, Settings
from edgekit.serve.history import History
from edgekit.serve.running import Running, address_of, bind
from edgekit.types.routing import (
    DEVICE,
    Attempt,
    Budget,
    Event,
    Expected,
    Finding,
    Opening,
    Piece,
    Policy,
    Request,
    Routed,
    Tier,
    Verdict,
)

PASSED = Finding("context", DEVICE, "pass", "12 of 512 tokens", 12, 512, "tokens")
LOCAL = Verdict(DEVICE, "local", "nothing stood against the device", (PASSED,), Expected(0.1, 0.5), ("edge",))
LEFT = Verdict(
    "edge",
    "quality",
    "probably wrong: 0.62 > 0.2 — über",
    (PASSED, Finding("quality", DEVICE, "fail", "probably wrong", 0.62, 0.2)),
    Expected(cost=0.01),
)
EDGE = Tier("edge", "private", "http://127.0.0.1:1/v1", "big-model")
POLICY = Policy("test", tiers=(EDGE,), budget=Budget(per_day=5.0, currency="EUR"))


def nobody(code: str) -> Verdict:
    return Verdict("", code, f"nobody may answer: {code}", (Finding(code, DEVICE, "fail", "no"),))


def routed(verdict: Verdict = LOCAL, text: str = "", **more) -> Routed:
    usual = Routed(
        verdict=verdict,
        text=text,
        finish="stop",
        prompt_tokens=7,
        new_tokens=max(1, len(text.split())),
        seconds=0.5,
        seconds_to_first=0.1,
        device_seconds=0.4,
        joules=None,
        cost=0.25 if verdict.tier == "edge" else 0.0,
        spared=0.125 if verdict.tier == DEVICE else None,
        attempts=(Attempt(verdict.tier or DEVICE, "served", 0.5),),
    )
    return replace(usual, **more)


@dataclass(frozen=True)
class Status:
    waiting: int = 0
    spent_today: float = 1.5
    down: tuple[tuple[str, str], ...] = ()
    drift: object = None
    documents: str = ""
    meter: str = ""


@dataclass
class ScriptedRouter:
    """Says the last message's words back, one a piece; the first word may be a command.

    ``wait``: until ``gate`` is set; ``forever``: until it is stopped; ``cut``: breaks off after one piece;
    ``crash``: an unforeseen error; ``tools``: a tool call; ``refuse CODE``: nobody answers; ``left``: the edge answers.
    """

    policy: Policy = POLICY
    bundle: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(path=Path("/nowhere/tiny-int4")))
    gate: threading.Event = field(default_factory=threading.Event)
    stopped: list[str] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)
    closed: bool = False
    stands: Status = Status()

    def answer(self, request: Request, *, stop: threading.Event | None = None) -> Iterator[Event]:
        stop = stop or threading.Event()
        self.seen.append(request)
        said = request.messages[-1].content if request.messages else request.prompt
        command, *rest = said.split()
        if command == "refuse":
            yield routed(nobody(rest[0]), finish="error")
            return
        if command == "crash":
            raise ValueError(f"secret: {said}")
        if command == "misschema":
            raise RouteError("the schema has a type that is none", "correct it")
        verdict = LEFT if command == "left" else LOCAL
        yield Opening(verdict)
        if command == "tools":
            call = '{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function",'
            call += '"function":{"name":"f","arguments":"{}"}}]}'
            yield routed(LEFT, finish="tool_calls", message=call)
            return
        while command == "wait" and not self.gate.is_set() and not stop.is_set():
            time.sleep(0.005)
        told = []
        for word in (f"{w} " for w in said.split()):
            if stop.is_set():
                break
            told.append(word)
            yield Piece(word)
            if command == "cut":
                yield routed(LEFT, text=word, finish="error", broken=True)
                return
        while command == "forever" and not stop.is_set():
            told.append("on ")
            yield Piece("on ")
        if stop.is_set():
            self.stopped.append(said)
        yield routed(verdict, "".join(told), finish="cancelled" if stop.is_set() else "stop")

    def explain(self, request: Request):
        return LEFT if "left" in request.text else LOCAL

    def prepare(self, request: Request) -> Request:
        return request

    def status(self) -> Status:
        return self.stands

    def close(self) -> None:
        self.closed = True


@dataclass
class Site:
    """A server that runs, and what to look at."""

    url: str
    service: Service
    running: Running
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_until(self, true, seconds: float = 10) -> bool:
        end = time.monotonic() + seconds
        while not (found := true()) and time.monotonic() < end:
            time.sleep(0.01)
        return bool(found)


@contextmanager
def site(router, settings: Settings | None = None, history: History | None = None) -> Iterator[Site]:
    """A real server on a free port of loopback, in a thread."""
    listener = bind("127.0.0.1", 0)
    url = address_of(listener)
    made: list[tuple[Service, Running]] = []
    ready = threading.Event()

    def serve() -> None:
        service = Service(router, history, settings or Settings())
        running = Running(service, ready.set)
        made.append((service, running))
        running.run_on(listener)

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(20)
    service, running = made[0]
    try:
        yield Site(url, service, running, thread)
    finally:
        running.end()
        thread.join(2)
        if thread.is_alive():
            running.end()
            thread.join(20)
        assert not thread.is_alive()
