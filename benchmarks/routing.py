"""Evaluate the router: the value of the bundle's signals, what routing saves, and whether guarantees hold.

    python -m benchmarks.routing DATA BUNDLE [--store DIR] [--sets sst2 lambada gsm8k] [--stronger BUNDLE | --cloud URL
        --model NAME] [--second BUNDLE] [--asked 200] [--first N] [--output FILE.jsonl] [--picture FILE.svg]

DATA is a folder made by benchmarks/routing_data.py. For each set, the bundle answers NAME-dev.jsonl, a calibration is
fitted on these answers, and evaluated on NAME-test.jsonl, which was not used for fitting. The cloud is one of:

* the published answers in NAME-test-*.jsonl (GSM8K: GPT-4's and Mixtral's);
* without such files, the reference answers, as an endpoint that is always right: an upper bound, and marked as one;
* with --stronger, that bundle behind `edgekit serve` on loopback, or with --cloud any OpenAI-compatible endpoint; it
  gets the first --asked questions of each test set.

With --second, another bundle scores each answer, as one more signal.

Guarantees (at most alpha of the served answers are wrong) are calibrated on dev and checked on test. Decision time is
the median and 99th percentile of ``decide`` and ``judge`` together, with the example policy. Local answers are cached
in STORE/NAME.jsonl, an endpoint's in STORE/NAME-cloud.jsonl, so a second run takes seconds; the times of local answers
are those of the run that made them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from edgekit import open_bundle
from edgekit.cli import console
from edgekit.cli.calibration_tables import feature_words
from edgekit.cli.layout import columns
from edgekit.cli.route_bench_tables import curves_table, margins_table, operations_table
from edgekit.errors import RouteError
from edgekit.host.processor import processor_class, processor_name
from edgekit.record import to_json
from edgekit.report.routing_plot import draw_routing
from edgekit.routing.decision.answer_checks import judge
from edgekit.routing.decision.decide import decide
from edgekit.routing.decision.metrics import auroc_interval
from edgekit.routing.decision.proof import RANDOM, ROUTER, Operation, Proof
from edgekit.routing.decision.score import cautious_probability
from edgekit.routing.decision.threshold import exact_interval
from edgekit.routing.endpoints import Endpoint
from edgekit.routing.evaluation.bench import ask_all, compare, panel_of
from edgekit.routing.evaluation.calibrate import fit_calibration, refusal_words
from edgekit.routing.evaluation.collect import add_second, collect_local
from edgekit.routing.evaluation.examples import read_answers, read_examples
from edgekit.routing.policy_file import load_policy
from edgekit.routing.prepare import Counter
from edgekit.types.routing import DEVICE, CloudAnswer, DeviceState, Tier
from edgekit.words import processor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgekit.types import Bundle
    from edgekit.types.calibration import Calibration
    from edgekit.types.interval import Interval
    from edgekit.types.routing import Example, LocalAnswer

SETS = ("sst2", "lambada", "gsm8k")
PROMISES = ((0.05, 0.05), (0.1, 0.05), (0.2, 0.05), (0.3, 0.05))
REFERENCE = "reference answers: an endpoint that is always right"
POLICY = Path(__file__).parent.parent / "examples" / "routing" / "policy.toml"
REPEATS = 9
SIGNALS = (("mean_entropy", 1.0), ("mean_logprob", -1.0))


@dataclass(frozen=True)
class Promise:
    """At most ``alpha`` of served answers are wrong, with confidence 1 - ``delta``: calibrated on dev, checked on test.

    ``refused``: why there is no guarantee. ``bound`` and ``coverage`` are from dev, the rest from test; ``wrong`` has
    an exact 95 % interval.
    """

    alpha: float
    delta: float
    refused: str
    threshold: float | None
    bound: float | None
    coverage: float | None
    test_coverage: float | None
    served: int | None
    failures: int | None
    wrong: Interval | None


@dataclass(frozen=True)
class Duel:
    """One opponent on the test examples; in records, the proof has no curves."""

    opponent: str
    n: int
    proof: Proof
    whole: Operation | None


@dataclass(frozen=True)
class Row:
    """One data set. ``raw``: AUROC of the raw signals on test; ``decision_us``: of decide and judge together.

    ``second`` names the second bundle, "" without one. ``clouds``: share of right answers in each file of test answers.
    ``refused``: why there is no calibration, and so no comparison.
    """

    benchmark: str
    data: str
    bundle: str
    bundle_sha256: str
    second: str
    processor: str
    dev: int
    dev_right: int
    test: int
    test_right: int
    refused: str
    features: tuple[str, ...]
    ece: float | None
    raw: tuple[tuple[str, Interval | None], ...]
    clouds: tuple[tuple[str, float], ...]
    duels: tuple[Duel, ...]
    promises: tuple[Promise, ...]
    decision_us: tuple[float, float] | None


@dataclass(frozen=True)
class Answered:
    """The examples of a set with the bundle's answers. ``data``: the file of dev."""

    name: str
    data: Path
    test: tuple[Example, ...]
    dev_said: tuple[LocalAnswer, ...]
    test_said: tuple[LocalAnswer, ...]


def tell(task: str, done: int, total: int, unit: str = "B") -> None:
    if done % 100 == 0 or done == total:
        print(f"{task}: {done} of {total} {unit}", file=sys.stderr, flush=True)


def answer(
    name: str,
    data: Path,
    bundle: Bundle,
    store: Path,
    *,
    threads: int | None = None,
    second: Bundle | None = None,
    first: int | None = None,
) -> Answered:
    """Answer both files of a set with the bundle, or the ``first`` questions of each."""
    dev, test = (read_examples(data / f"{name}-{split}.jsonl")[:first] for split in ("dev", "test"))
    said = collect_local(bundle, [*dev, *test], store=store / f"{name}.jsonl", threads=threads, progress=tell)
    if second:
        kept = store / f"{name}-second.jsonl"
        said = add_second(second, [*dev, *test], said, threads=threads, store=kept, progress=tell)
    return Answered(name, data / f"{name}-dev.jsonl", test, said[: len(dev)], said[len(dev) :])


def published(a: Answered) -> Iterator[tuple[str, tuple[CloudAnswer, ...]]]:
    """The published answers, or the reference answers if there are none."""
    files = sorted(a.data.parent.glob(f"{a.name}-test-*.jsonl"))
    for file in files:
        whole = read_examples(a.data.with_name(f"{a.name}-test.jsonl"))
        said = read_answers(file, whole)[: len(a.test)]
        yield f"{file.stem.removeprefix(f'{a.name}-test-')}: published answers", said
    if not files:
        yield REFERENCE, tuple(CloudAnswer(e.id, e.answers[0], True, None, None, None, None) for e in a.test)


def duel(opponent: str, local: Sequence[LocalAnswer], cloud: Sequence[CloudAnswer], c: Calibration) -> Duel:
    proof, whole = compare(local, cloud, c)
    return Duel(opponent, len(local), proof, whole)


def look(a: Answered, bundle: Bundle, second: Bundle | None, promise: tuple[float, float], seed: int) -> Promise:
    """Calibrate a guarantee on dev and check it on test."""
    alpha, delta = promise
    try:
        found = fit_calibration(bundle, a.data, a.dev_said, guarantee=promise, second=second, seed=seed)
    except RouteError as error:
        return Promise(alpha, delta, error.message, *[None] * 7)
    if found.fit.infeasible:
        return Promise(alpha, delta, refusal_words(found.fit.infeasible), *[None] * 7)
    c, g = found.calibration, found.calibration.guarantee
    served = [s for s in a.test_said if cautious_probability(c.score, s.signals) <= c.threshold]
    failures = sum(not s.right for s in served)
    return Promise(
        alpha, delta, "", c.threshold, g.bound, g.coverage, len(served) / len(a.test_said), len(served), failures,
        exact_interval(failures, len(served)),
    )  # fmt: skip


def time_decisions(a: Answered, bundle: Bundle, calibration: Calibration) -> tuple[float, float]:
    """Median and 99th percentile, in microseconds, of all decisions about one request.

    Each request counts with the median of REPEATS, to exclude other activity of the machine.
    """
    policy = replace(load_policy(POLICY), answers=replace(load_policy(POLICY).answers, most_wrong=None))
    counter = Counter.of(bundle, policy)
    state = DeviceState(context=2048, free_memory=2 << 30, memory_needed=1 << 28, battery_percent=80.0)
    taken = []
    for example, said in zip(a.test, a.test_said, strict=True):
        request = counter.prepare(example.request)
        times = []
        for _ in range(REPEATS):
            began = perf_counter_ns()
            verdict = decide(request, policy, state, None)
            if verdict.tier == DEVICE:
                judge(
                    verdict, request, policy, state, text=said.text, finish=said.finish, repeated=None,
                    signals=said.signals, calibration=calibration,
                )  # fmt: skip
            times.append((perf_counter_ns() - began) / 1000)
        taken.append(float(np.median(times)))
    p50, p99 = np.percentile(taken, [50, 99])
    return float(p50), float(p99)


def prove_set(
    a: Answered,
    bundle: Bundle,
    second: Bundle | None,
    store: Path,
    *,
    tier: Tier | None,
    whom: str,
    asked: int,
    seed: int,
) -> tuple[Row, list[Duel]]:
    """Calibrate on dev, evaluate on test. Returns the record, and the duels with their curves for the plot."""
    wrong = np.asarray([not s.right for s in a.test_said])
    raw = tuple(
        (name, auroc_interval(np.asarray([sign * getattr(s.signals, name) for s in a.test_said]), wrong, seed=seed))
        for name, sign in SIGNALS
    )
    facts = (
        "routing", a.name, bundle.path.name, bundle.sha256, second.path.name if second else "",
        processor(processor_name(), processor_class()),
        len(a.dev_said), sum(s.right for s in a.dev_said), len(a.test_said), sum(s.right for s in a.test_said),
    )  # fmt: skip
    others = list(published(a))
    clouds = tuple((name, float(np.mean([c.right for c in cloud]))) for name, cloud in others)
    try:
        calibration = fit_calibration(bundle, a.data, a.dev_said, second=second, seed=seed).calibration
    except RouteError as error:
        return Row(*facts, f"{error.message}; {error.hint}", (), None, raw, clouds, (), (), None), []
    duels = [duel(name, a.test_said, cloud, calibration) for name, cloud in others]
    if tier:
        # Cached answers are identified by the model, because the port of a server on loopback changes.
        with closing(Endpoint(tier, environment=os.environ)) as endpoint:
            cloud = ask_all(endpoint, bundle, a.test[:asked], store / f"{a.name}-cloud.jsonl", tell, whom=whom)
        duels.append(duel(f"{tier.model}: a server that was asked", a.test_said[:asked], cloud, calibration))
    row = Row(
        *facts, "", calibration.score.features, calibration.ece, raw, clouds,
        tuple(replace(d, proof=bare(d.proof)) for d in duels),
        tuple(look(a, bundle, second, promise, seed) for promise in PROMISES),
        time_decisions(a, bundle, calibration),
    )  # fmt: skip
    return row, duels


def bare(proof: Proof) -> Proof:
    """Remove the curves, which only the plot needs."""
    return replace(proof, risk=(), strategies=tuple(replace(s, curve=()) for s in proof.strategies))


@contextmanager
def serving(bundle: Path, name: str) -> Iterator[Tier]:
    """Serve a bundle with `edgekit serve` on loopback, without other tiers."""
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "alone.toml"
        policy.write_text('name = "alone"\n[answers]\ncut_off = false\nrepetition = false\n', encoding="utf-8")
        command = ["serve", str(bundle), "--policy", str(policy), "--port", "0", "--history", "none", "--json"]
        process = subprocess.Popen([sys.executable, "-m", "edgekit", *command], stdout=subprocess.PIPE, text=True)
        try:
            lines: list[str] = []
            while not lines or lines[-1] != "}\n":
                line = process.stdout.readline()
                if not line:
                    raise RouteError(f"the server of {name} did not start", "see its output above")
                lines.append(line)
            url = f"{json.loads(''.join(lines))['url']}/v1"
            yield Tier("stronger", "private", url, name, deadline=300.0, stall=120.0)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def show(row: Row, duels: list[Duel]) -> None:
    console.show(
        "", f"== {row.data}: {row.test_right} of {row.test} right on test, {row.dev_right} of {row.dev} on dev"
    )
    for name, interval in row.raw:
        console.show(f"raw {name}: AUROC {words_of(interval)}")
    if row.refused:
        for name, quality in row.clouds:
            console.show(f"{name}: {quality:.1%} right")
        console.show(f"no calibration, so no answer is served: {row.refused}")
        return
    console.show(f"score of {feature_words(row.features)}; ECE {row.ece:.3f} on dev's held-out half")
    for d in duels:
        console.show(
            "", f"-- against {d.opponent}, {d.proof.cloud_quality:.1%} right, on {d.n}", curves_table(d.proof), "",
            operations_table(d.proof, d.whole, "USD"), "", margins_table(d.proof),
        )  # fmt: skip
    table = columns("promise", "threshold>", "bound>", "on dev>", "on test>", "wrong on test>", "95 %>", "")
    for p in row.promises:
        promise = f"{p.alpha:.0%} at {1 - p.delta:.0%}"
        if p.refused:
            table.add_row(promise, "refused", "", "", "", "", "", p.refused)
            continue
        kept = p.wrong is None or p.wrong.value <= p.alpha
        table.add_row(
            promise, f"{p.threshold:.3f}", f"{p.bound:.3f}", f"{p.coverage:.1%}", f"{p.test_coverage:.1%}",
            f"{p.failures} of {p.served}", words_of(p.wrong), "kept" if kept else "above",
        )  # fmt: skip
    console.show("", table, "", "decide and judge: median {:.0f} µs, p99 {:.0f} µs".format(*row.decision_us))


def summarize(rows: list[Row]) -> None:
    """Print the summary tables."""
    told = columns("AUROC of", "calibrated>", "entropy>", "log-prob>", "less entropy>", "less log-prob>", "right>")
    saved = columns("cost at 95 % of", "whose", "router>", "random>", "margin>", "95 %>", "APGR>")
    for row in rows:
        if not row.duels:
            told.add_row(
                row.data, "refused", *(words_of(i) for _, i in row.raw), "", "", f"{row.test_right / row.test:.1%}"
            )
            continue
        proof = row.duels[0].proof
        _, entropy, logprob = proof.margins
        told.add_row(
            row.data, words_of(proof.get(ROUTER).auroc), *(words_of(i) for _, i in row.raw),
            words_of(entropy.difference, "+"), words_of(logprob.difference, "+"), f"{proof.local_quality:.1%}",
        )  # fmt: skip
        for d in row.duels:
            router, random, margin = d.proof.get(ROUTER), d.proof.get(RANDOM), d.proof.margins[0].difference
            saved.add_row(
                row.data, d.opponent, share(router.cost95), share(random.cost95),
                "undefined" if margin is None else f"{margin.value:+.3f}",
                "" if margin is None else f"[{margin.low:+.3f}, {margin.high:+.3f}]",
                "-" if router.apgr is None else f"{router.apgr:.3f}",
            )  # fmt: skip
    console.show("", told, "", saved)


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def words_of(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "undefined"
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--store", type=Path, help="folder to cache all answers in")
    parser.add_argument("--stronger", type=Path, help="a bundle to serve on loopback as the cloud")
    parser.add_argument("--cloud", help="the URL of an endpoint as the cloud")
    parser.add_argument("--model", default="", help="model name at that URL")
    parser.add_argument("--key-env", default="", help="environment variable with its API key")
    parser.add_argument("--second", type=Path, help="a bundle that scores every answer")
    parser.add_argument("--asked", type=int, default=200, help="number of questions from each test set for the cloud")
    parser.add_argument("--first", type=int, help="use only the first questions of each file")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="append a JSON line per set to this file")
    parser.add_argument("--picture", type=Path, help="write a plot to this .svg or .png file")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder)
        second = open_bundle(options.second) if options.second else None
        said = [
            answer(name, options.data, bundle, store, threads=options.threads, second=second, first=options.first)
            for name in options.sets
        ]
        rows, panels = [], []
        with asked(options) as (tier, whom):
            for a in said:
                row, duels = prove_set(
                    a, bundle, second, store, tier=tier, whom=whom, asked=options.asked, seed=options.seed
                )
                show(row, duels)
                rows.append(row)
                panels += [panel_of(f"{a.name}: {d.opponent.partition(':')[0]}", d.proof) for d in duels[:1]]
    summarize(rows)
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.writelines(f"{to_json(row)}\n" for row in rows)
    if options.picture and panels:
        draw_routing(panels, options.picture)
    return 0


@contextmanager
def asked(options: argparse.Namespace) -> Iterator[tuple[Tier | None, str]]:
    """The tier to ask besides the files, if any, and the key of its cached answers if it is not the address."""
    if options.stronger:
        stronger = open_bundle(options.stronger)
        with serving(stronger.path, stronger.path.name) as tier:
            yield tier, stronger.sha256
    elif options.cloud:
        yield Tier("cloud", "third-party", options.cloud, options.model, key_env=options.key_env, deadline=300.0), ""
    else:
        yield None, ""


if __name__ == "__main__":
    sys.exit(main())
