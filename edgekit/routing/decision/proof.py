"""Compare the router with other strategies on cost and quality, for ``route bench`` and the benchmarks.

Every strategy is evaluated on the same examples, none of which were used to fit it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RouteError
from edgekit.routing.decision import curves, metrics
from edgekit.routing.decision.score import cautious_probability, raw_score
from edgekit.routing.decision.threshold import exact_interval
from edgekit.types.interval import Interval  # noqa: TC001 - record.py resolves these annotations at run time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.types.calibration import Calibration
    from edgekit.types.routing import CloudAnswer, LocalAnswer

ROUTER, ENTROPY, LOGPROB = "calibrated router", "raw entropy", "raw mean log-probability"
RANDOM, LOCAL, CLOUD, ORACLE = "random", "always local", "always cloud", "oracle"

AFTER = frozenset({ROUTER, ENTROPY, LOGPROB})
"""Strategies that decide after the local answer, so that time is wasted when they send. The others decide before."""

OF_CLOUD = 0.95
"""Fraction of the cloud's quality at which costs are compared."""


@dataclass(frozen=True)
class Case:
    """One example, answered locally and by the cloud.

    ``raw`` is the raw score, ``wrong`` its calibrated probability. ``seconds`` is the time of the whole local answer,
    ``given_up`` the time after which it was given up early, None if it was not. ``joules``, ``cloud_seconds`` and
    ``cloud_cost`` are None if unknown.
    """

    id: str
    local_right: bool
    cloud_right: bool
    wrong: float
    raw: float
    entropy: float
    logprob: float
    seconds: float
    given_up: float | None
    joules: float | None
    cloud_seconds: float | None
    cloud_cost: float | None


@dataclass(frozen=True)
class Operation:
    """A strategy at one threshold, over all examples. A number is None if one that it needs is unknown.

    ``coverage``: share answered on the device; ``recovered``: PGR, None if the cloud is not better;
    ``failures``: share of the answers served there that are wrong, with its exact 95 % interval (None if none was).
    ``p50`` and ``p95``: seconds to the whole answer, local time wasted before an answer from the cloud included;
    ``wasted``: mean of that time. ``cost`` and ``joules`` are per thousand questions.
    """

    coverage: float
    quality: float
    recovered: float | None
    failures: Interval | None
    p50: float | None
    p95: float | None
    wasted: float
    cost: float | None
    joules: float | None


@dataclass(frozen=True)
class Strategy:
    """One strategy to decide who answers, over all thresholds and at one. None: not defined.

    ``apgr``, ``cpt50``, ``cpt80``, ``cpt95``, ``aiq``: see curves.py. ``cost95``: least cost at 95 % of the
    cloud's quality, as a share of always-cloud's. ``auroc`` and ``aurc`` of the score for a wrong local answer; ``ece``
    and ``brier`` only of a probability. ``curve``: (share to the cloud, quality).
    """

    name: str
    apgr: float | None
    cpt50: float | None
    cpt80: float | None
    cpt95: float | None
    cost95: float | None
    aiq: float | None
    auroc: Interval | None
    aurc: float | None
    ece: float | None
    brier: float | None
    operation: Operation
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Margin:
    """The router less another strategy, paired on the same examples; better below 0 for a cost, above 0 for AUROC."""

    what: str
    beside: str
    difference: Interval | None


@dataclass(frozen=True)
class Proof:
    """All strategies on the same examples. ``priced``: costs are money; else they count calls.

    ``threshold`` is the router's. The raw signals, random and the oracle send the same share: their ``operation`` is at
    its coverage. ``risk``: (coverage, share of failures among the served) of the router.
    """

    n: int
    local_quality: float
    cloud_quality: float
    threshold: float
    priced: bool
    strategies: tuple[Strategy, ...]
    margins: tuple[Margin, ...]
    risk: tuple[tuple[float, float], ...]

    def get(self, name: str) -> Strategy:
        """Return the strategy called ``name``."""
        return next(s for s in self.strategies if s.name == name)


def pair_cases(
    local: Sequence[LocalAnswer],
    cloud: Sequence[CloudAnswer],
    calibration: Calibration,
    *,
    joules: Sequence[float | None] | None = None,
) -> tuple[Case, ...]:
    """Pair local and cloud answers by id.

    Args:
        local: the bundle's answers.
        cloud: the endpoint's or a file's answers; those without a local answer are ignored.
        calibration: the bundle's calibration, with the ``prefix`` by which answers are given up early.
        joules: energy of each local answer.

    Raises:
        RouteError: a local answer has no cloud answer.
    """
    others = {c.id: c for c in cloud}
    missing = [a.id for a in local if a.id not in others]
    if missing:
        raise RouteError(
            f"{len(missing)} of {len(local)} examples have no cloud answer, among them '{missing[0]}'",
            "give the answers the ids of the data",
        )
    spent = joules if joules is not None else [None] * len(local)
    return tuple(_case(a, others[a.id], calibration, j) for a, j in zip(local, spent, strict=True))


def prove(cases: Sequence[Case], threshold: float, *, seed: int = 0) -> Proof:
    """Evaluate all strategies.

    Args:
        cases: examples that fitted nothing.
        threshold: the router's; it sends what is likelier to be wrong, and what was given up early.
        seed: seed of the bootstrap.

    Raises:
        RouteError: there are no cases.
    """
    if not cases:
        raise RouteError("no examples to evaluate the router", "pass data with answers")
    c = _Columns.of(cases)
    sent = _sent(c, threshold)
    scores = {ROUTER: c.raw, ENTROPY: c.entropy, LOGPROB: -c.logprob}
    scores |= {RANDOM: np.zeros(len(cases)), ORACLE: curves.oracle_score(c.local, c.cloud)}
    strategies = [_strategy(name, score, c, sent, seed) for name, score in scores.items()]
    for name, share in ((LOCAL, 0.0), (CLOUD, 1.0)):
        strategies.append(_fixed(name, share, c))
    return Proof(
        n=len(cases),
        local_quality=float(c.local.mean()),
        cloud_quality=float(c.cloud.mean()),
        threshold=threshold,
        priced=c.priced,
        strategies=tuple(strategies),
        margins=_margins(scores, c, seed),
        risk=_thin_risk(metrics.risk_coverage(c.raw, ~c.local)),
    )


def operate_router(cases: Sequence[Case], threshold: float) -> Operation:
    """Evaluate the router at one threshold only, as ``prove`` does, without the curves.

    Raises:
        RouteError: there are no cases.
    """
    if not cases:
        raise RouteError("no examples to evaluate the router", "pass data with answers")
    c = _Columns.of(cases)
    return _operate(ROUTER, _sent(c, threshold).astype(float), c)


def cost_margin(
    score: NDArray[np.float64],
    local: NDArray[np.bool_],
    cloud: NDArray[np.bool_],
    cost: NDArray[np.float64],
    *,
    seed: int,
) -> Interval | None:
    """Cost at 95 % of the cloud's quality, router less random, as a share of always-cloud's; paired bootstrap.

    Random is the expectation on each resample, not one draw.
    """

    def statistic(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        found = []
        for r in rows:
            total = float(cost[r].mean())
            router = curves.trace(score[r], local[r], cloud[r], cost[r])
            random = curves.trace(np.zeros(len(r)), local[r], cloud[r], cost[r])
            gap = curves.cost_needed(router, OF_CLOUD) - curves.cost_needed(random, OF_CLOUD)
            found.append(gap / total if total else np.nan)
        return np.asarray(found)

    return metrics.bootstrap(statistic, len(score), seed=seed)


# --- the parts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Cases as columns [N]; NaN for unknown numbers. ``price`` counts calls if costs are unknown."""

    local: NDArray[np.bool_]
    cloud: NDArray[np.bool_]
    wrong: NDArray[np.float64]
    raw: NDArray[np.float64]
    entropy: NDArray[np.float64]
    logprob: NDArray[np.float64]
    seconds: NDArray[np.float64]
    given_up: NDArray[np.float64]
    joules: NDArray[np.float64]
    cloud_seconds: NDArray[np.float64]
    price: NDArray[np.float64]
    priced: bool

    @classmethod
    def of(cls, cases: Sequence[Case]) -> _Columns:
        cost = _numbers([c.cloud_cost for c in cases])
        priced = bool(np.isfinite(cost).all() and cost.sum() > 0)
        unknown = np.isnan(_numbers([c.raw for c in cases]))
        return cls(
            local=np.asarray([c.local_right for c in cases], bool),
            cloud=np.asarray([c.cloud_right for c in cases], bool),
            wrong=_numbers([c.wrong for c in cases]),
            raw=np.where(unknown, np.inf, _numbers([c.raw for c in cases])),
            entropy=np.where(unknown, np.inf, _numbers([c.entropy for c in cases])),
            logprob=np.where(unknown, -np.inf, _numbers([c.logprob for c in cases])),
            seconds=_numbers([c.seconds for c in cases]),
            given_up=_numbers([c.given_up for c in cases]),
            joules=_numbers([c.joules for c in cases]),
            cloud_seconds=_numbers([c.cloud_seconds for c in cases]),
            price=cost if priced else np.ones(len(cases)),
            priced=priced,
        )


def _case(a: LocalAnswer, b: CloudAnswer, calibration: Calibration, joules: float | None) -> Case:
    early, given_up = calibration.prefix, None
    if early and a.prefix and a.prefix_seconds is not None:
        given_up = a.prefix_seconds if cautious_probability(early.score, a.prefix) > early.threshold else None
    return Case(
        id=a.id,
        local_right=a.right,
        cloud_right=b.right,
        wrong=cautious_probability(calibration.score, a.signals),
        raw=raw_score(calibration.score, a.signals),
        entropy=a.signals.mean_entropy,
        logprob=a.signals.mean_logprob,
        seconds=a.seconds,
        given_up=given_up,
        joules=joules,
        cloud_seconds=b.seconds,
        cloud_cost=b.cost,
    )


def _sent(c: _Columns, threshold: float) -> NDArray[np.bool_]:
    """Whether the router sends each example [N]: likelier wrong than the threshold, or given up early."""
    return (c.wrong > threshold) | np.isfinite(c.given_up)


def _strategy(name: str, score: NDArray[np.float64], c: _Columns, sent: NDArray[np.bool_], seed: int) -> Strategy:
    curve = curves.trace(score, c.local, c.cloud, c.price)
    says = name in AFTER or name == ORACLE
    whole = float(curve.cost[-1])
    probability = name == ROUTER
    share = float(sent.mean())
    weight = sent.astype(float) if name == ROUTER else _sent_share(score, share)
    return Strategy(
        name=name,
        apgr=curves.area_recovered(curve),
        cpt50=curves.share_needed(curve, 0.5),
        cpt80=curves.share_needed(curve, 0.8),
        cpt95=curves.share_needed(curve, 0.95),
        cost95=curves.cost_needed(curve, OF_CLOUD) / whole if whole else None,
        aiq=curves.hull_area(curve),
        auroc=metrics.auroc_interval(score, ~c.local, seed=seed) if says and name != ORACLE else None,
        aurc=metrics.aurc(score, ~c.local) if name != ORACLE else None,
        ece=metrics.expected_calibration_error(c.wrong, ~c.local) if probability else None,
        brier=metrics.brier(c.wrong, ~c.local) if probability else None,
        operation=_operate(name, weight, c),
        curve=curves.thin(curve),
    )


def _fixed(name: str, share: float, c: _Columns) -> Strategy:
    quality = float((c.cloud if share else c.local).mean())
    operation = _operate(name, np.full(len(c.local), share), c)
    good_enough = quality >= OF_CLOUD * float(c.cloud.mean())
    cost95, unknown = share if good_enough else None, (None,) * 5
    return Strategy(name, None, None, None, None, cost95, *unknown, operation, ((share, quality),))


def _operate(name: str, sent: NDArray[np.float64], c: _Columns) -> Operation:
    """Evaluate at one threshold. ``sent`` [N]: probability of being sent; between 0 and 1 only for ties and random."""
    n, kept = len(sent), 1 - sent
    coverage = float(kept.mean())
    served, failures = float(kept.sum()), float((kept * ~c.local).sum())
    waste = np.zeros(n)
    if name in AFTER:
        waste = np.where(np.isfinite(c.given_up), c.given_up, c.seconds) if name == ROUTER else c.seconds
    works = name in AFTER
    # Each example may end on the device or in the cloud: a weighted sample of twice the size.
    times = np.concatenate([c.seconds, waste + c.cloud_seconds])
    p50, p95 = _percentiles(times, np.concatenate([kept, sent]))
    quality = float((kept * c.local + sent * c.cloud).mean())
    gap = float(c.cloud.mean() - c.local.mean())
    energy = c.joules * kept + (c.joules * (waste / np.where(c.seconds > 0, c.seconds, 1)) * sent if works else 0)
    return Operation(
        coverage=coverage,
        quality=quality,
        recovered=(quality - float(c.local.mean())) / gap if gap > 1e-12 else None,
        failures=exact_interval(round(failures), round(served)) if served >= 0.5 else None,
        p50=p50,
        p95=p95,
        wasted=float((waste * sent).mean()),
        cost=float((c.price * sent).mean() * 1000) if c.priced or not sent.any() else None,
        joules=_known(float(energy.mean() * 1000)),
    )


def _sent_share(score: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Probability [N] of being sent if the highest ``share`` of the scores are; ties split the remainder."""
    _, group, sizes = np.unique(-score, return_inverse=True, return_counts=True)
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.asarray(np.clip((share * len(score) - before) / sizes, 0, 1)[group], np.float64)


def _percentiles(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Weighted median and 95th percentile; None if a value with weight is unknown."""
    counted = weights > 0
    values, weights = values[counted], weights[counted]
    if not len(values) or not np.isfinite(values).all():
        return None, None
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    at = np.minimum(np.searchsorted(reached, [0.5 - 1e-12, 0.95 - 1e-12]), len(values) - 1)
    p50, p95 = values[order][at]
    return float(p50), float(p95)


def _margins(scores: dict[str, NDArray[np.float64]], c: _Columns, seed: int) -> tuple[Margin, ...]:
    wrong = ~c.local
    return (
        Margin("cost at 95 % of cloud quality", RANDOM, cost_margin(c.raw, c.local, c.cloud, c.price, seed=seed)),
        *(
            Margin("AUROC", name, metrics.auroc_difference(c.raw, scores[name], wrong, seed=seed))
            for name in (ENTROPY, LOGPROB)
        ),
    )


def _thin_risk(risk: NDArray[np.float64], points: int = 100) -> tuple[tuple[float, float], ...]:
    at = np.unique(np.linspace(1, len(risk), min(points, len(risk))).round().astype(int))
    return tuple((float(k / len(risk)), float(risk[k - 1])) for k in at)


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.asarray([np.nan if v is None else v for v in values], np.float64)


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None
