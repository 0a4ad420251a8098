"""Collect an answer's signals token by token while it is generated. Plain Python, as it runs for every token."""

from __future__ import annotations

from hashlib import sha256
from math import fsum, isnan
from typing import TYPE_CHECKING

from edgekit.types.calibration import Signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types import Emitted


SHORT = 8
"""Most tokens of an answer that gets a digest, as it may occur again word for word."""


def digest_answer(text: str, tokens: int) -> str:
    """Return a digest of a short answer, 12 hexadecimal digits that ignore case and whitespace; "" if it is longer."""
    return sha256(" ".join(text.split()).casefold().encode()).hexdigest()[:12] if tokens <= SHORT else ""


class SignalTrail:
    """The signals of the tokens of one answer. A push stores three numbers; all work is done in ``read``.

    Every emitted token counts, the end token and the tokens of a stop string included: how sure the model is that the
    answer ends is a signal too. ``len()`` is the number of tokens.
    """

    def __init__(self) -> None:
        self._logprobs: list[float] = []
        self._prob_margins: list[float] = []
        self._entropies: list[float] = []
        self._text = ""

    def __len__(self) -> int:
        return len(self._logprobs)

    def push(self, emitted: Emitted) -> None:
        """Add a token that was generated with ``signals=True``."""
        self._logprobs.append(emitted.logprob)
        self._prob_margins.append(emitted.prob_margin)
        self._entropies.append(emitted.entropy)
        if len(self) <= SHORT:
            self._text += emitted.text

    def read(self) -> Signals:
        """Compute the signals of all tokens so far. Quantiles are numpy's default, ``linear`` between order statistics.

        Raises:
            ValueError: there is no token, or a token has no signals.
        """
        if not self._logprobs:
            raise ValueError("an answer without tokens has no signals")
        ordered = sorted(self._logprobs)
        count = len(ordered)
        signals = Signals(
            tokens=count,
            mean_logprob=fsum(ordered) / count,
            q05=_quantile(ordered, 0.05),
            q10=_quantile(ordered, 0.10),
            q25=_quantile(ordered, 0.25),
            min_logprob=ordered[0],
            mean_prob_margin=fsum(self._prob_margins) / count,
            mean_entropy=fsum(self._entropies) / count,
            first_entropy=self._entropies[0],
            first_logprob=self._logprobs[0],
            first_prob_margin=self._prob_margins[0],
            answer=digest_answer(self._text, count),
        )
        if isnan(signals.mean_logprob + signals.mean_prob_margin + signals.mean_entropy):
            raise ValueError("the tokens have no signals: generate them with signals=True")
        return signals


def _quantile(ordered: Sequence[float], q: float) -> float:
    at = (len(ordered) - 1) * q
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)
