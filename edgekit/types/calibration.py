"""What a local answer says of itself, and how much that is worth: the nouns. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgekit import ranges
from edgekit.record import added_later
from edgekit.types.interval import Interval


@dataclass(frozen=True)
class Signals:
    """What a local answer says of itself, over its tokens. Of the unmodified distribution; natural logarithms.

    ``mean_logprob`` of the tokens taken, with the ``q05``, ``q10``, ``q25`` quantiles and the least, ``min_logprob``;
    ``mean_prob_margin`` of the likeliest token's probability over the second's (UCCI's signal); ``mean_entropy`` and
    ``first_entropy`` in nats. ``first_logprob`` and ``first_prob_margin`` are the first token's. ``second_logprob``:
    mean log-probability of the same answer by another local bundle, None where none was asked. ``answer`` tells a short
    answer from others without its words (decision/signals.py), "" for a longer one: where few answers are possible, a
    model is readier to give one than another.
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
    """From signals to a probability of being wrong.

    ``features`` are fields of Signals (``log_tokens``: the logarithm of ``tokens``; ``answer:`` and a digest: 1 for
    that answer, 0 for others); the raw score is ``intercept`` plus their sum by ``weights``, larger for worse.
    ``knots`` are (raw, probability), not decreasing, linear between and flat outside: isotonic regression where
    ``method`` says so, else a sampled logistic curve (Platt).
    """

    features: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float
    method: Literal["isotonic", "platt"]
    knots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Guarantee:
    """With confidence 1 - ``delta``, at most ``alpha`` of the answers served locally are wrong.

    As long as questions come from where the calibration's came from. ``bound`` is the exact binomial upper bound
    (Clopper-Pearson) on ``failures`` of ``served`` among the ``n`` of the threshold's own split; ``coverage`` is
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
    """The same after the first ``tokens`` tokens: above ``threshold`` the answer is given up.

    ``caught``: share of the answers that would have been passed on anyway; ``lost``: of those that would have stood.
    """

    tokens: int
    score: Score
    threshold: float
    caught: float
    lost: float


@dataclass(frozen=True)
class Calibration:
    """How much this very artefact's signals are worth. Valid for one bundle, provider, runtime and chat template.

    ``threshold``: answers whose probability of being wrong is at most this are served; that of the guarantee where
    there is one. ``scores``: the probabilities on the threshold's split, sorted, with which live ones are compared.
    ``auroc``, ``ece`` and ``brier`` are of examples that fitted nothing. ``second_sha256``: of the bundle whose opinion
    the score needs, "" where it needs none.
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
