"""Made-up local answers whose law is known: what is likelier to be wrong is less sure of itself."""

from __future__ import annotations

import numpy as np

from edgekit.types.calibration import Signals
from edgekit.types.routing import CloudAnswer, LocalAnswer


def probability(u: np.ndarray) -> np.ndarray:
    """P(wrong) of an answer whose hidden difficulty is u, 0 to 1."""
    return 0.02 + 0.9 * u**2


def signals(u: float, random: np.random.Generator, *, noise: float = 0.05) -> Signals:
    lp = -2 * u + noise * random.standard_normal()
    shift, tokens = random.standard_normal(6), int(random.integers(1, 30))
    values = {
        "mean_logprob": lp, "q05": lp - 1 + 0.5 * shift[0], "q10": lp - 0.8 + 0.4 * shift[1],
        "q25": lp - 0.4 + 0.3 * shift[2], "min_logprob": lp - 2 + 0.8 * shift[3],
        "mean_prob_margin": 1 - u + 0.3 * shift[4], "mean_entropy": 3 * u + 0.8 * shift[5],
        "first_entropy": 3 * u + random.standard_normal(), "first_logprob": lp + random.standard_normal(),
        "first_prob_margin": random.random(),
    }  # fmt: skip
    return Signals(tokens=tokens, **{name: float(value) for name, value in values.items()})


def local_answers(n: int, seed: int = 0, *, noise: float = 0.05, prefix: bool = True) -> tuple[LocalAnswer, ...]:
    random = np.random.default_rng(seed)
    us = random.random(n)
    wrong = random.random(n) < probability(us)
    return tuple(
        LocalAnswer(
            id=f"q{seed}-{i}", text="", finish="stop", right=bool(not wrong[i]),
            signals=signals(u, random, noise=noise),
            prefix=signals(u, random, noise=4 * noise) if prefix else None, prompt_tokens=20, seconds_to_first=0.01,
            seconds=0.2, prefix_seconds=0.1 if prefix else None,
        )
        for i, u in enumerate(us)
    )  # fmt: skip


def cloud_answers(local: tuple[LocalAnswer, ...], right: float = 0.95, seed: int = 0) -> tuple[CloudAnswer, ...]:
    random = np.random.default_rng(seed)
    return tuple(CloudAnswer(a.id, "", bool(random.random() < right), 20, 10, 1.0, 0.002) for a in local)
