"""What `edgekit serve` holds after half an hour of clients who ask, stream, cancel and vanish.

python -m benchmarks.strangers.serve_soak --minutes 30 --clients 32

A tiny model is made and served; the numbers are of the server's process. Every whole answer must be the one that the
same prompt got alone. Growth is of the last two thirds: the first third is for caches to fill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.strangers._site import CHAT, Line, Place, head, question, serve_tiny

if TYPE_CHECKING:
    from collections.abc import Sequence

WORDS = (
    "river", "stone", "cloud", "amber", "violet", "engine", "harbor", "winter", "copper", "meadow", "signal", "garden",
    "planet", "silver", "thunder",
)  # fmt: skip
PROMPTS = 48
QUEUE = 24
"""Below the number of clients, so that some are turned away."""

MOST_GROWTH = 1.0
"""MB, of the last two thirds."""

LOOK = 2.0
"""Seconds between two looks at the server's memory."""


@dataclass
class Soak:
    """What came of it. ``rss``: (seconds, MB)."""

    done: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    mixed_up: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    rss: list[tuple[float, float]] = field(default_factory=list)


def make_prompt(number: int) -> str:
    chance = random.Random(number)
    return f"{number}: tell me about {' and '.join(chance.choices(WORDS, k=chance.randint(2, 60)))}."


def tokens_of(number: int) -> int:
    return 8 + number % 40


async def ask(line: Line, number: int, *, stream: bool) -> str | None:
    """A known prompt's answer; None where the queue was full."""
    body = question(make_prompt(number), tokens_of(number), stream=stream)
    async with line.ask(head(CHAT, len(body)) + body) as (status, parts):
        said = b"".join([part async for part in parts])
    if status in (429, 503):
        return None
    if status != 200:
        raise ConnectionError(f"{status}: {said[:200]!r}")
    if not stream:
        return str(json.loads(said)["choices"][0]["message"]["content"])
    *events, end = [e.removeprefix("data: ") for e in said.decode().split("\n\n") if e]
    if end != "[DONE]":
        raise ConnectionError("the stream broke off")
    return "".join(c["delta"].get("content", "") for e in events for c in json.loads(e)["choices"])


async def vanish(line: Line, chance: random.Random, kind: str) -> None:
    """A prompt that nobody else sends, and gone: in the middle of the answer, before it, or of the question."""
    body = question(make_prompt(chance.randrange(10**9)), 400, stream=kind != "vanish before")
    sent = head(CHAT, len(body)) + body
    if kind == "vanish asking":
        sent = sent[: chance.randrange(len(sent))]
    try:
        async with asyncio.timeout(chance.uniform(0.01, 1.0)), line.ask(sent) as (_, parts):
            async for _ in parts:
                if chance.random() < 0.1:
                    return
    except TimeoutError:
        pass
    finally:
        line.drop()


async def client(place: Place, seed: int, end: float, alone: list[str], found: Soak) -> None:
    chance, line = random.Random(seed), Line(place.port)
    kinds = {"whole": 30, "stream": 30, "cancel": 20, "vanish before": 8, "vanish asking": 4, "wrong": 4, "look": 4}
    while time.monotonic() < end:
        kind, number = chance.choices(list(kinds), list(kinds.values()))[0], chance.randrange(PROMPTS)
        try:
            async with asyncio.timeout(300):
                if kind in ("whole", "stream"):
                    said = await ask(line, number, stream=kind == "stream")
                    if said is None:
                        kind = "turned away"
                        await asyncio.sleep(chance.uniform(0.2, 1.0))
                    elif said != alone[number]:
                        found.mixed_up += 1
                elif kind == "wrong":
                    body = chance.choice((b"[" * 5000, b'{"model": 1}', b"\xff", question("x", 4, n=7), b""))
                    await line.whole(head(CHAT, len(body)) + body)
                elif kind == "look":
                    await line.whole(head(chance.choice(("/metrics", "/api/live", "/", "/v1/models")), 0, method="GET"))
                else:
                    await vanish(line, chance, kind)
            found.done[kind] += 1
        except Exception as error:  # whatever it is, an answer was lost
            line.drop()
            if not kind.startswith(("cancel", "vanish")):
                found.lost += 1
                found.errors[f"{kind}: {type(error).__name__}: {error}"[:200]] += 1
    line.drop()


async def drive(place: Place, minutes: float, clients: int) -> Soak:
    found, line = Soak(), Line(place.port)
    alone = [await ask(line, number, stream=False) or "" for number in range(PROMPTS)]
    line.drop()
    begun, server = time.monotonic(), psutil.Process(place.pid)
    end = begun + 60 * minutes
    working = [asyncio.create_task(client(place, seed, end, alone, found)) for seed in range(clients)]
    told = begun
    while not all(task.done() for task in working):
        now = time.monotonic()
        found.rss.append((now - begun, server.memory_info().rss / 1e6))
        if now >= told:
            print(
                f"{(now - begun) / 60:5.1f} min  {found.rss[-1][1]:7.1f} MB  {sum(found.done.values())} done",
                flush=True,
            )
            told += 60
        await asyncio.sleep(LOOK)
    await asyncio.gather(*working)
    return found


def growth(rss: list[tuple[float, float]], begin: float, end: float) -> float:
    """MB between the medians of a window's first and last twentieth: one sample is the moment's."""
    window = [mb for seconds, mb in rss if begin <= seconds <= end]
    few = max(1, len(window) // 20)
    return median(window[-few:]) - median(window[:few])


def soak(minutes: float = 30, clients: int = 32) -> dict[str, Any]:
    """Serve and ask for so long; the numbers."""
    with serve_tiny("--queue", str(QUEUE)) as place:
        found = asyncio.run(drive(place, minutes, clients))
        tracebacks = place.tracebacks()
    last = 60 * minutes
    return {
        "minutes": minutes, "clients": clients, "requests": sum(found.done.values()), "kinds": dict(found.done),
        "lost": found.lost, "mixed_up": found.mixed_up, "errors": dict(found.errors), "tracebacks": tracebacks,
        "rss_start_mb": found.rss[0][1], "rss_most_mb": max(mb for _, mb in found.rss), "rss_end_mb": found.rss[-1][1],
        "growth_first_third_mb": growth(found.rss, 0, last / 3),
        "growth_last_two_thirds_mb": growth(found.rss, last / 3, last),
    }  # fmt: skip


def main(arguments: Sequence[str] = ()) -> bool:
    """Print the numbers; whether they hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=32)
    options = parser.parse_args(arguments)
    found = soak(options.minutes, options.clients)
    print(json.dumps(found, indent=2))
    wrong = found["lost"] or found["mixed_up"] or found["tracebacks"]
    return not wrong and found["growth_last_two_thirds_mb"] <= MOST_GROWTH


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:]))
