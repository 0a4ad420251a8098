"""Counters since the server's start, for the page and for Prometheus."""

from __future__ import annotations

import threading
import time
from collections import Counter as Count
from collections import deque
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgekit.types.routing import DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable
    from http import HTTPStatus

    from edgekit.types.routing import Request, Routed

_REMEMBERED = 1000
"""Number of latest answers in the page's percentiles."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

CODES = {
    "local": "answered here",
    "empty": "empty prompt",
    "no-template": "no chat template for a conversation",
    "template": "refused by the chat template",
    "privacy": "privacy",
    "capability": "not supported by this model",
    "language": "not one of this model's languages",
    "context": "longer than this model's context",
    "memory": "not enough free memory",
    "latency": "too slow here",
    "battery": "battery low",
    "thermal": "processor too hot",
    "money": "over the budget",
    "reachable": "endpoint unavailable",
    "ended": "local answer cut off",
    "repetition": "local answer repeated itself",
    "schema": "local answer violated its schema",
    "quality": "local answer probably wrong",
    "prefix": "local answer started badly",
}
"""Words for the codes of a verdict on the page."""


class Live:
    """Counters of requests and answers. Thread-safe.

    Args:
        currency: the policy's currency.
        clock: returns seconds since 1970.
    """

    def __init__(self, currency: str, clock: Callable[[], float] = time.time) -> None:
        self.currency = currency
        self.started = clock()
        self._clock = clock
        self._lock = threading.Lock()
        self._tiers: Count[str] = Count()
        self._left: Count[str] = Count()
        self._refused: Count[str] = Count()
        self._degraded = 0
        self._turned_away = 0
        self._cost = 0.0
        self._spared: float | None = None
        self._joules: float | None = None
        self._times: deque[tuple[float, float | None]] = deque(maxlen=_REMEMBERED)
        self.registry = registry = CollectorRegistry()
        labels = ("tier", "code", "degraded")
        self._requests = Counter(
            "edgekit_requests", "Answers by tier (none: nobody) and deciding check.", labels, registry=registry
        )
        self._rejected = Counter(
            "edgekit_rejected", "Rejected requests by HTTP status.", ("status",), registry=registry
        )
        self._tokens = Counter("edgekit_tokens", "Tokens by tier.", ("tier", "kind"), registry=registry)
        self._spent = Counter("edgekit_cost", "Money spent on endpoints.", ("currency",), registry=registry)
        self._saved = Counter("edgekit_spared", "What endpoints would have cost.", ("currency",), registry=registry)
        self._seconds = Histogram(
            "edgekit_seconds", "Seconds to the whole answer.", ("tier",), buckets=_SECONDS, registry=registry
        )
        self._first = Histogram(
            "edgekit_seconds_to_first", "Seconds to the first token.", ("tier",), buckets=_SECONDS, registry=registry
        )

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read at every scrape."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def add(self, _request: Request, routed: Routed) -> None:
        """Count an answer."""
        verdict = routed.verdict
        tier = verdict.tier or "none"
        with self._lock:
            self._tiers[verdict.tier] += 1
            if not verdict.tier:
                self._refused[verdict.code] += 1
            elif verdict.tier != DEVICE:
                self._left[verdict.code] += 1
            self._degraded += verdict.degraded
            self._cost += routed.cost
            if routed.spared is not None:
                self._spared = (self._spared or 0.0) + routed.spared
            if routed.joules is not None:
                self._joules = (self._joules or 0.0) + routed.joules
            if verdict.tier:
                self._times.append((routed.seconds, routed.seconds_to_first))
        self._requests.labels(tier, verdict.code, str(verdict.degraded).lower()).inc()
        self._tokens.labels(tier, "prompt").inc(routed.prompt_tokens)
        self._tokens.labels(tier, "new").inc(routed.new_tokens)
        self._spent.labels(self.currency).inc(max(0.0, routed.cost))
        self._saved.labels(self.currency).inc(max(0.0, routed.spared or 0.0))
        if verdict.tier:
            self._seconds.labels(tier).observe(routed.seconds)
            if routed.seconds_to_first is not None:
                self._first.labels(tier).observe(routed.seconds_to_first)

    def reject(self, status: HTTPStatus) -> None:
        """Count a request that was rejected before the router."""
        with self._lock:
            self._turned_away += 1
        self._rejected.labels(str(int(status))).inc()

    def exposition(self) -> bytes:
        """Return the counters in Prometheus' text format."""
        return generate_latest(self.registry)

    def snapshot(self) -> dict[str, Any]:
        """Return the page's numbers. A missing number is None, never 0."""
        with self._lock:
            times = list(self._times)
            answered = sum(n for tier, n in self._tiers.items() if tier)
            return {
                "started": self.started,
                "now": self._clock(),
                "answered": answered,
                "local": self._tiers[DEVICE],
                "degraded": self._degraded,
                "refused": _in_words(self._refused),
                "left": _in_words(self._left),
                "tiers": {tier: n for tier, n in self._tiers.items() if tier},
                "turned_away": self._turned_away,
                "seconds": _percentiles([whole for whole, _ in times]),
                "seconds_to_first": _percentiles([first for _, first in times if first is not None]),
                "joules": self._joules,
                "cost": self._cost,
                "spared": self._spared,
                "currency": self.currency,
            }


def _in_words(codes: Count[str]) -> list[dict[str, Any]]:
    return [{"code": code, "words": CODES.get(code, code), "count": n} for code, n in codes.most_common()]


def _percentiles(values: list[float]) -> dict[str, float] | None:
    """Return p50 and p95 by nearest rank, and the number of values; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p95 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95))
    return {"p50": p50, "p95": p95, "n": len(ordered)}
