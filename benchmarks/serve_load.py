"""Load `edgekit serve` with 32 clients, and measure the time that the server adds to the first token.

Two server processes run on loopback: one with the bundle and a policy, and the endpoint named in that policy, with the
same bundle (or --endpoint's). A quarter of the requests may leave the first server, and do so when their answers reach
the token limit. Every answer must equal the answer to the same prompt without load, since greedy answers are
deterministic.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import openai
import psutil
from results import append_lines, results_file

from edgekit.bundle import open_bundle
from edgekit.run import Tokenizer, generate, load_runner
from edgekit.types import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = (
    "river", "stone", "cloud", "amber", "violet", "engine", "harbor", "winter", "copper", "meadow", "signal", "garden",
    "planet", "silver", "thunder",
)  # fmt: skip
PROMPTS = 64
POLICY = """\
name = "load"
show = "at-once"
[unknown]
quality = "local"
"""
ENDPOINT = """
[[tier]]
name = "loopback"
trust = "private"
url = "{url}/v1"
model = "edgekit"
deadline = 600
stall = 600
retries = 0
price = {{ input_per_million = 0.1, output_per_million = 0.4 }}
"""


TRIES = 5
"""Number of times each prompt is sent to the Runner and to the server."""


@dataclass
class Load:
    """Results of the load test. ``wrong``: not the answer without load; ``mixed_up``: another prompt's answer."""

    requests: int = 0
    lost: int = 0
    wrong: int = 0
    mixed_up: int = 0
    turned_away: int = 0
    most_active: float = 0
    tiers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    rss: list[tuple[float, float]] = field(default_factory=list)


@contextlib.contextmanager
def serve(bundle: Path, policy: Path, queue: int, *more: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server; yield its URL and process."""
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--policy", str(policy), "--port", "0", "--json"]
    process = subprocess.Popen([*command, "--queue", str(queue), *more], stdout=subprocess.PIPE, text=True)
    try:
        lines: list[str] = []
        while not lines or lines[-1] != "}\n":
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise SystemExit(f"the server exited with {process.wait()}")
            lines.append(line)
        yield json.loads("".join(lines))["url"], psutil.Process(process.pid)
    finally:
        process.terminate()
        if process.wait(120) != 0:
            print(f"the server exited with {process.returncode}")


def make_prompts(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [f"{i}: tell me about {' and '.join(chance.sample(WORDS, 4))}." for i in range(count)]


async def ask(
    client: openai.AsyncOpenAI, prompt: str, tokens: int, *, stream: bool, leave: bool
) -> tuple[str, str, float | None]:
    """The answer, its tier, and the seconds to its first piece."""
    body = {
        "model": "edgekit", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens,
        "extra_body": {"edgekit": {"override": "cloud-ok" if leave else "local-only"}},
    }  # fmt: skip
    if not stream:
        answer = await client.chat.completions.create(**body)
        return answer.choices[0].message.content, answer.edgekit["tier"], None
    started, first, text, tier = time.perf_counter(), None, "", ""
    async for chunk in await client.chat.completions.create(**body, stream=True):
        said = chunk.choices[0].delta.content if chunk.choices else None
        if said:
            first = first or time.perf_counter() - started
            text += said
        tier = (getattr(chunk, "edgekit", None) or {}).get("tier", tier)
    if not tier:
        raise ConnectionError("the stream ended without its verdict")
    return text, tier, first


async def load(url: str, server: psutil.Process, options: argparse.Namespace) -> Load:
    prompts, found = make_prompts(PROMPTS, seed=1), Load()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=900) as client:
        alone = {p: (await ask(client, p, options.tokens, stream=False, leave=False))[0] for p in prompts}
        print(f"{len(prompts)} prompts answered alone, {len(set(alone.values()))} different answers")
        end = time.monotonic() + 60 * options.minutes

        async def one(number: int) -> None:
            chance = random.Random(number)
            while time.monotonic() < end:
                prompt, stream, leave = chance.choice(prompts), chance.random() < 0.5, chance.random() < 0.25
                started = time.perf_counter()
                try:
                    text, tier, first = await ask(client, prompt, options.tokens, stream=stream, leave=leave)
                except openai.RateLimitError as error:
                    found.turned_away += 1
                    await asyncio.sleep(float(error.response.headers["retry-after"]))
                    continue
                except Exception as error:  # any error means a lost request
                    found.requests += 1
                    found.lost += 1
                    found.errors[f"{type(error).__name__}: {error}"[:200]] += 1
                    continue
                found.requests += 1
                found.tiers[tier] += 1
                found.seconds.append(time.perf_counter() - started)
                if first is not None:
                    found.first.append(first)
                if text != alone[prompt]:
                    found.wrong += 1
                    found.mixed_up += any(text == other for p, other in alone.items() if p != prompt)

        async def watch() -> None:
            begun = time.monotonic()
            async with httpx.AsyncClient() as plain:
                while True:
                    found.rss.append((time.monotonic() - begun, server.memory_info().rss / 1e6))
                    lines = (await plain.get(f"{url}/metrics")).text.splitlines()
                    active = next(float(line.split()[1]) for line in lines if line.startswith("edgekit_active "))
                    found.most_active = max(found.most_active, active)
                    await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(one(i) for i in range(options.clients)))
        watching.cancel()
    return found


def measure_overhead(url: str, bundle_path: Path, rounds: int) -> dict[str, float]:
    """Milliseconds to the first token: the Runner alone in this process and the server, turn about, on new prompts.

    A prompt is too short for the server to keep any of it: each try computes it anew. The first try behind the other
    process's is left out: it finds the cores' caches full of the other's weights, 20 ms either way.
    """
    bundle = open_bundle(bundle_path, check=False)
    tokenizer, runner = Tokenizer.of(bundle), load_runner(bundle)
    prompts = make_prompts(2 * rounds + 4, seed=2)
    alone: list[float] = []
    served: list[float] = []
    # A plain HTTP client, to exclude the overhead of a client library.
    with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as client:

        def of_runner(prompt: str) -> float:
            started = time.perf_counter()
            text = tokenizer.render_chat([{"role": "user", "content": prompt}])
            answer = generate(runner, tokenizer, tokenizer.encode(text, special=False), Sampling(max_new_tokens=8))
            first = next((token for token in answer if token.text), None)
            seconds = time.perf_counter() - started
            answer.close()
            runner.reset()
            return 1000 * seconds if first else 0.0

        def of_server(prompt: str) -> float:
            body = {"model": "edgekit", "messages": [{"role": "user", "content": prompt}], "max_tokens": 8}
            sent = json.dumps(body | {"stream": True, "edgekit": {"override": "local-only"}}).encode()
            seconds, started = 0.0, time.perf_counter()
            client.request("POST", "/v1/chat/completions", sent)
            answer = client.getresponse()
            while line := answer.readline():
                if not seconds and b'"content":"' in line and b'"content":""' not in line:
                    seconds = time.perf_counter() - started
            return 1000 * seconds

        for prompt in prompts[:4]:
            of_runner(prompt)
            of_server(prompt)
        for i, prompt in enumerate(prompts[4 : 4 + rounds]):
            tries: dict[object, list[float]] = {}
            # Alternate which goes first.
            for measure in (of_runner, of_server) if i % 2 else (of_server, of_runner):
                tries[measure] = [measure(prompt) for _ in range(TRIES + 1)][1:]
            if all(all(times) for times in tries.values()):  # skip answers without text
                alone.append(float(np.median(tries[of_runner])))
                served.append(float(np.median(tries[of_server])))
    runner.close()
    # Differences within pairs of the same prompt, each the median of several tries, to reduce noise.
    pairs = np.subtract(served, alone)
    return {
        "rounds": len(alone),
        "runner_p50_ms": float(np.quantile(alone, 0.5)), "runner_p95_ms": float(np.quantile(alone, 0.95)),
        "server_p50_ms": float(np.quantile(served, 0.5)), "server_p95_ms": float(np.quantile(served, 0.95)),
        "overhead_p50_ms": float(np.quantile(pairs, 0.5)), "overhead_p95_ms": float(np.quantile(pairs, 0.95)),
        "p95_difference_ms": float(np.quantile(served, 0.95) - np.quantile(alone, 0.95)),
    }  # fmt: skip


def summarize(found: Load) -> dict[str, object]:
    later = [(t, mb) for t, mb in found.rss if t > found.rss[-1][0] / 5]
    slope = float(np.polyfit([t / 60 for t, _ in later], [mb for _, mb in later], 1)[0]) if len(later) > 2 else None
    facts = {k: v for k, v in vars(found).items() if k not in ("seconds", "first", "rss")}
    for name, values in (("seconds", found.seconds), ("seconds_to_first", found.first)):
        for share in (0.5, 0.95):
            facts[f"{name}_p{100 * share:.0f}"] = float(np.quantile(values, share)) if values else None
    return facts | {
        "rss_start_mb": found.rss[0][1], "rss_after_a_fifth_mb": later[0][1], "rss_end_mb": found.rss[-1][1],
        "rss_mb_per_minute_after_a_fifth": slope,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--endpoint", type=Path, help="bundle of the endpoint; by default the same")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--queue", type=int, default=28, help="queue size; below the number of clients, to test the limit"
    )
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=200, help="rounds of the time to first token")
    parser.add_argument("--results", type=Path, default=results_file("serve_load.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        alone, joined = Path(folder) / "alone.toml", Path(folder) / "load.toml"
        alone.write_text(POLICY)
        remote, _ = stack.enter_context(
            serve(options.endpoint or options.bundle, alone, options.clients, "--history", "none")
        )
        joined.write_text(POLICY.replace('"at-once"', '"checked"') + ENDPOINT.format(url=remote))
        history = f"sqlite:///{folder}/history.sqlite"
        url, server = stack.enter_context(serve(options.bundle, joined, options.queue, "--history", history))
        row: dict[str, object] = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cpus": os.cpu_count()}
        row |= {"bundle": options.bundle.name, "clients": options.clients, "queue": options.queue}
        row |= {"minutes": options.minutes, "tokens": options.tokens}
        if options.rounds:
            # Measured on the endpoint's process, which streams at once, while the other one is idle.
            row["first_token"] = measure_overhead(remote, options.bundle, options.rounds)
        row["load"] = summarize(asyncio.run(load(url, server, options)))
    print(json.dumps(row, indent=2))
    append_lines(options.results, [row])


if __name__ == "__main__":
    main()
