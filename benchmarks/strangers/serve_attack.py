"""How long other clients wait while one caller, or a stranger, does his worst.

python -m benchmarks.strangers.serve_attack

Rounds of quiet and of attack alternate in one run; the ratio is of the 95th percentiles of a short request's time over
all rounds. The attackers are a process of their own:

slow     512 connections without a token, each with a byte of its head now and then, opened anew whenever it is closed
schema   a request whose schema's pattern has more ways to match the answer than there is time, again and again
prompts  ten prompts of a megabyte at once, again and again, of a model whose context they do not fit
counted  the same where only counting can tell that: the context takes a megabyte of the longest token
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.strangers._site import CHAT, Line, Place, head, question, serve_tiny

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

TOKEN = "a-token-that-strangers-lack"
ANSWER = json.dumps("a" * 64 + "!")
PATTERN = "^" + "(a|aa){1,20}" * 8 + "b$"
CONTEXTS = {"slow": 4096, "schema": 4096, "prompts": 4096, "counted": 131072}
SLOW = 512
PROMPTS = 10
MEGABYTE = 990_000
MOST_RATIO = 2.0
LONGEST = 30.0
"""Seconds after which a request counts as that long: there is no answer."""


@dataclass
class Waits:
    """Seconds of short requests."""

    quiet: list[float] = field(default_factory=list)
    attack: list[float] = field(default_factory=list)
    failed: int = 0


async def ask(line: Line, waits: list[float]) -> bool:
    """One short request; whether it was answered."""
    body = question("Say something, please.", 8)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(LONGEST):
            status, _ = await line.whole(head(CHAT, len(body), token=TOKEN) + body)
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        status = 0
        line.drop()
    waits.append(time.perf_counter() - began if status == 200 else LONGEST)
    return status == 200


async def measure(place: Place, seconds: float, waits: list[float]) -> int:
    """Ask one thing after another for so long; how many got no answer."""
    line, end, failed = Line(place.port), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        # A connection of its own, now and then: who comes new must get in, too.
        if len(waits) % 5 == 0:
            line.drop()
        failed += not await ask(line, waits)
    line.drop()
    return failed


@contextlib.asynccontextmanager
async def attacking(kind: str, port: int) -> AsyncIterator[None]:
    """The attackers' process."""
    command = [sys.executable, "-m", "benchmarks.strangers.serve_attack", "--attack", kind, "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        await process.stdout.readline()  # it has begun
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def compare(kind: str, place: Place, rounds: int, seconds: float) -> Waits:
    found = Waits()
    await measure(place, 1, [])
    for _ in range(rounds):
        await measure(place, seconds, found.quiet)
        async with attacking(kind, place.port):
            found.failed += await measure(place, seconds, found.attack)
        await asyncio.sleep(2)  # what was begun is over, and quiet is quiet
    return found


async def hold_slow(port: int) -> None:
    """Begin 512 requests, end none, for ever."""

    async def one(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                begun = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-A: " if number % 2 else head(CHAT, 10**6)
                writer.write(begun)
                while not reader.at_eof():
                    await asyncio.sleep(2)
                    writer.write(b"a")
                    await writer.drain()
                writer.close()

    holding = [asyncio.create_task(one(number)) for number in range(SLOW)]
    await asyncio.sleep(1.5)
    print("begun", flush=True)
    await asyncio.gather(*holding)


async def ask_for(port: int, bodies: list[bytes]) -> None:
    """Send them all at once, again and again."""
    print("begun", flush=True)
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            async with asyncio.timeout(60):
                asked = (Line(port).whole(head(CHAT, len(body), token=TOKEN) + body) for body in bodies)
                await asyncio.gather(*asked)


def attack_once(kind: str, port: int) -> None:
    if kind == "slow":
        asyncio.run(hold_slow(port))
    elif kind == "schema":
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "string", "pattern": PATTERN}}}
        asyncio.run(ask_for(port, [question("Well?", 8, response_format=form)]))
    else:
        bodies = [question("The quick brown fox. " * (MEGABYTE // 21), 8) for _ in range(PROMPTS)]
        asyncio.run(ask_for(port, bodies))


def attack(rounds: int = 6, seconds: float = 3.0, kinds: tuple[str, ...] = tuple(CONTEXTS)) -> dict[str, Any]:
    """Each attack's ratio of p95, attacked to quiet, with what it is made of."""
    found: dict[str, Any] = {}
    for kind in kinds:
        with serve_tiny(token=TOKEN, context=CONTEXTS[kind], answer=ANSWER) as place:
            waits = asyncio.run(compare(kind, place, rounds, seconds))
            quiet, attacked = (float(np.quantile(w, 0.95)) for w in (waits.quiet, waits.attack))
            found[kind] = {
                "ratio_p95": attacked / quiet, "quiet_p95_ms": 1000 * quiet, "attack_p95_ms": 1000 * attacked,
                "quiet_n": len(waits.quiet), "attack_n": len(waits.attack), "unanswered": waits.failed,
                "tracebacks": place.tracebacks(),
            }  # fmt: skip
            print(kind, json.dumps(found[kind]), flush=True)
    return found


def main(arguments: Sequence[str] = ()) -> bool:
    """Print the numbers; whether they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--kinds", nargs="+", default=tuple(CONTEXTS), choices=tuple(CONTEXTS))
    parser.add_argument("--attack", choices=tuple(CONTEXTS), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.attack:
        attack_once(options.attack, options.port)
        return True
    found = attack(options.rounds, options.seconds, tuple(options.kinds))
    return all(f["ratio_p95"] <= MOST_RATIO and not f["unanswered"] and not f["tracebacks"] for f in found.values())


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
