"""Quality over the share of questions that go to the cloud. Pure numpy.

A score orders the questions: the highest are sent first. With r() the share of right answers, w the local model, s the
cloud, R the two under a router that sends the share c: PGR(c) = (r(R) - r(w)) / (r(s) - r(w)), performance gap
recovered; APGR is its area over c from 0 to 1; CPT(x) the least c with PGR(c) >= x (RouteLLM, arXiv 2406.18665).

Ties count as their expectation in random order: between two different scores the curves are straight lines. So a
constant score is exactly the random router: PGR(c) = c, APGR = 0.5. If the cloud is not better than the local model,
none of these is defined, and all are None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Curve:
    """Corners [K] of the straight lines: share sent to the cloud from 0 to 1, share of right answers, mean cost.

    ``cost`` is the mean over all questions.
    """

    share: NDArray[np.float64]
    quality: NDArray[np.float64]
    cost: NDArray[np.float64]

    @property
    def local(self) -> float:
        """r(w): quality if nothing is sent."""
        return float(self.quality[0])

    @property
    def cloud(self) -> float:
        """r(s): quality if everything is sent."""
        return float(self.quality[-1])


def trace(
    score: NDArray[np.float64], local: NDArray[np.bool_], cloud: NDArray[np.bool_], cost: NDArray[np.float64]
) -> Curve:
    """Compute the curve of a score [N].

    Args:
        score: larger scores are sent earlier [N].
        local: whether the local answer is right [N].
        cloud: whether the cloud's answer is right [N].
        cost: cost of sending each question [N]; all ones to count calls.
    """
    n = len(score)
    _, group, sizes = np.unique(-score, return_inverse=True, return_counts=True)
    gain = np.bincount(group, weights=cloud.astype(float) - local.astype(float), minlength=len(sizes))
    spent = np.bincount(group, weights=cost, minlength=len(sizes))
    start = np.zeros(1)
    return Curve(
        share=np.concatenate([start, np.cumsum(sizes) / n]),
        quality=local.mean() + np.concatenate([start, np.cumsum(gain) / n]),
        cost=np.concatenate([start, np.cumsum(spent) / n]),
    )


def gap_recovered(curve: Curve) -> NDArray[np.float64] | None:
    """PGR at the curve's corners [K]."""
    gap = curve.cloud - curve.local
    return np.asarray((curve.quality - curve.local) / gap, np.float64) if gap > 1e-12 else None


def area_recovered(curve: Curve) -> float | None:
    """APGR: 0.5 for random; at best 1 less half the share of answers that need the cloud."""
    recovered = gap_recovered(curve)
    return None if recovered is None else float(np.trapezoid(recovered, curve.share))


def share_needed(curve: Curve, recovered: float) -> float | None:
    """CPT: the least share sent that recovers this fraction (0 to 1) of the gap."""
    reached = gap_recovered(curve)
    return None if reached is None else _first(curve.share, reached, recovered)


def cost_needed(curve: Curve, of_cloud: float = 0.95) -> float:
    """The least mean cost per question at which quality is ``of_cloud`` of the cloud's; 0 if the local model's is."""
    found = _first(curve.cost, curve.quality, of_cloud * curve.cloud)
    return float(curve.cost[-1]) if found is None else found


def hull_area(curve: Curve) -> float | None:
    """AIQ: area under the non-decreasing convex hull of quality over cost, by the range of the cost (RouterBench).

    None if sending costs nothing.
    """
    if curve.cost[-1] <= 0:
        return None
    hull: list[tuple[float, float]] = []
    for x, y in zip(curve.cost, np.maximum.accumulate(curve.quality), strict=True):
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((float(x), float(y)))
    xs, ys = np.asarray(hull).T
    return float(np.trapezoid(ys, xs) / curve.cost[-1])


def thin(curve: Curve, points: int = 101) -> tuple[tuple[float, float], ...]:
    """(share, quality) at equally spaced shares, for a plot or a record."""
    shares = np.linspace(0, 1, points)
    return tuple(
        (float(c), float(q)) for c, q in zip(shares, np.interp(shares, curve.share, curve.quality), strict=True)
    )


def oracle_score(local: NDArray[np.bool_], cloud: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The best score [N]: 1 where only the cloud is right, -1 where only the local model is, else 0."""
    return np.asarray(cloud.astype(float) - local.astype(float), np.float64)


def _first(x: NDArray[np.float64], y: NDArray[np.float64], goal: float) -> float | None:
    """The least x, linear between corners, at which y reaches ``goal``; None if it never does."""
    above = np.flatnonzero(y >= goal - 1e-12)
    if not len(above):
        return None
    k = int(above[0])
    if k == 0:
        return float(x[0])
    return float(x[k - 1] + (x[k] - x[k - 1]) * (goal - y[k - 1]) / (y[k] - y[k - 1]))


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or under the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) >= (b[1] - a[1]) * (c[0] - a[0])
