"""The race: rounds in which every contender runs every workload, in an order that turns by one each round.

One contender's process is alive at a time, so that no other one's threads spin and no other one's memory is in the way.
In a round all get the same prompts, new ones in each round: runtimes may keep what they have seen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.preparation import open_session
from benchmarks.peers.session import Refusal
from edgekit.measure import read_environment
from edgekit.run import physical_cores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.peers.contender import Contender, Place
    from benchmarks.peers.records import Record


@dataclass(frozen=True)
class Entry:
    """A contender that is ready: where it runs and what it runs."""

    contender: Contender
    place: Place
    folder: Path


@dataclass(frozen=True)
class Workloads:
    """A long prompt (whose prefill is a workload too), a short one, and the tokens decoded after each.

    ``patience`` is how many seconds each sample waits for other processes to be quiet.
    """

    long: int = 512
    short: int = 32
    new: int = 128
    patience: float = 10.0


SMALLEST_ID = 17
"""Prompts are random tokens from here on: below are the special ones."""


def race(
    entries: list[Entry], *, rounds: int, workloads: Workloads, vocab: int, threads: int, seed: int, work: Path
) -> Iterator[Record]:
    """Run the rounds; yields a record for each start and each sample as it is taken.

    Args:
        entries: who takes part.
        rounds: how often each workload is measured.
        workloads: what is measured.
        vocab: size of the vocabulary.
        threads: of every contender.
        seed: of the prompts.
        work: the benchmark's folder, for logs.
    """
    random = np.random.default_rng(seed)

    def prompt(length: int) -> list[int]:
        return random.integers(min(SMALLEST_ID, vocab - 1), vocab, length).tolist()

    for number in range(rounds):
        prompts = {"warm": prompt(workloads.long), "long": prompt(workloads.long), "short": prompt(workloads.short)}
        turn = number % max(len(entries), 1)
        for position, entry in enumerate(entries[turn:] + entries[:turn]):
            at = {"round": number, "position": position}
            try:
                for record in _take_turn(entry, prompts, workloads, threads, work):
                    yield {**at, **record}
            except Refusal as reason:
                yield {**at, **refused(entry.contender, reason, threads)}
                entries = [other for other in entries if other is not entry]


def _take_turn(
    entry: Entry, prompts: dict[str, list[int]], workloads: Workloads, threads: int, work: Path
) -> Iterator[Record]:
    """One contender's part of a round: start, warm up, a long and a short prompt."""
    with open_session(entry.contender, entry.place, entry.folder, threads, work) as session:
        versions = tuple(session.ready["versions"].items())
        session.ask({"prompt": prompts["warm"], "new": min(8, workloads.new)})
        for name in ("long", "short"):
            session.settle(workloads.patience)
            prompt, environment = prompts[name], environment_of(threads, versions)
            count = len(prompt)
            answer = session.ask({"prompt": prompt, "new": workloads.new})

            def told(what: str, environment: dict[str, Any] = environment, **values: Any) -> Record:
                return {**label(entry.contender, what), **values, "environment": environment}

            if name == "long":
                loads = {key: session.ready[key] for key in ("import_seconds", "load_seconds")}
                yield told("start", **loads, peak_rss_bytes=answer["peak_rss_bytes"], context=count + 1 + workloads.new)
            foreign = answer["foreign_cores"]
            samples = {f"tg{workloads.new}@{count}": (len(answer["tokens"]) - 1, answer["decode_seconds"])}
            if name == "long":
                samples = {f"pp{count}": (count, answer["prefill_seconds"]), **samples}
            for workload, (tokens, seconds) in samples.items():
                yield told("speed", workload=workload, tokens=tokens, seconds=seconds, foreign_cores=foreign)


def label(contender: Contender, what: str) -> Record:
    """The beginning of every record."""
    return {"what": what, "contender": contender.name, "title": contender.title}


def refused(contender: Contender, reason: Refusal, threads: int) -> Record:
    """The record of a contender that does not take part, or no longer."""
    return {**label(contender, "refused"), "reason": str(reason), "environment": environment_of(threads)}


def environment_of(threads: int, versions: tuple[tuple[str, str], ...] = ()) -> dict[str, Any]:
    """The machine now, without its name."""
    environment = asdict(read_environment(cores=physical_cores(), threads=threads, runtime=versions, provider="CPU"))
    del environment["host"], environment["provider_options"]
    return environment
