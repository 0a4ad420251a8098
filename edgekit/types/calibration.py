"""Confidence signals of local answers, and their calibration. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit import ranges
from edgekit.record import added_later
from edgekit.types.interval import Interval


@dataclass(frozen=True)
class Signals:
    """Confidence signals of a local answer, over its tokens and the unmodified distribution; natural logarithms.

    ``mean_logprob`` is of the generated tokens, with the quantiles ``q05``, ``q10``, ``q25`` and the minimum
    ``min_logprob``; ``mean_prob_margin`` is the probability of the top token minus the second's (UCCI's signal);
    ``mean_entropy`` and ``first_entropy`` are in nats. ``first_logprob`` and ``first_prob_margin`` are of the first
    token. ``second_logprob``: mean log-probability of the same answer in another local bundle, None without one.
    ``answer`` is a digest that identifies a short answer (decision/signals.py), "" for a longer one, because models are
    biased between few possible answers.
    """

    tokens: int
    mean_logprob: float
    q05: float
    q10: float
    q25: float
    min_logprob: float
    mean_prob_margin: float
    mean_entropy: float
    first_entropy: float
    first_logprob: float
    first_prob_margin: float
    second_logprob: float | None = added_later(None)
    answer: str = added_later("")


@dataclass(frozen=True)
class Score:
    """The map from signals to the probability of being wrong.

    ``features`` are fields of Signals (``log_tokens``: the logarithm of ``tokens``; ``answer:`` and a digest: 1 for
    that answer, 0 for others); the raw score is ``intercept`` plus their sum weighted by ``weights``, larger is worse.
    ``knots`` are non-decreasing (raw, probability) points, linear between and constant outside: from isotonic
    regression, or samples of a logistic curve (Platt), according to ``method``.
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float
    method: Literal["isotonic", "platt"]
    knots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Guarantee:
    """With confidence 1 - ``delta``, at most ``alpha`` of the answers served locally are wrong.

    Valid while questions have the same distribution as in the calibration. ``bound`` is the exact binomial upper bound
    (Clopper-Pearson) on ``failures`` of ``served`` among the ``n`` examples of the threshold's split; ``coverage`` is
    served / n.
    """

    alpha: float
    delta: float
    n: int
    served: int
    failures: int
    bound: float
    coverage: float


@dataclass(frozen=True)
class PrefixScore:
    """A score after the first ``tokens`` tokens; above ``threshold`` the answer is abandoned.

    ``caught``: share of the answers abandoned that would have been escalated anyway; ``lost``: share of those that
    would have been served.
    """

    tokens: int
    score: Score
    threshold: float
    caught: float
    lost: float


@dataclass(frozen=True)
class Calibration:
    """The calibration of a bundle's signals. Valid for one bundle, provider, runtime and chat template.

    ``threshold``: answers with at most this probability of being wrong are served; that of the guarantee if there is
    one. ``scores``: the sorted probabilities on the threshold's split, for comparison with live ones. ``auroc``,
    ``ece`` and ``brier`` are on held-out examples. ``second_sha256``: hash of the second bundle that the score needs,
    "" if it needs none.
    """

    bundle_sha256: ranges.Digest
    provider: str
    runtime: tuple[tuple[str, str], ...]
    template_sha256: ranges.Digest
    time: str
    data: str
    data_sha256: ranges.Digest
    n_fit: int
    n_threshold: int
    right: int
    score: Score
    threshold: float
    guarantee: Guarantee | None
    prefix: PrefixScore | None
    scores: tuple[float, ...]
    auroc: Interval | None
    ece: float
    brier: float
    second_sha256: str = added_later("")
