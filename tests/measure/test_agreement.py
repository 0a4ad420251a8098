"""How far logits are from others, against the formulae written out position by position."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from edgekit.errors import MeasureError
from edgekit.measure import agree


def logits(rows: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((rows, 50))).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 64, 65, 200])
def test_every_number_is_the_mean_over_the_positions(rows: int) -> None:
    reference = logits(rows, 0)
    other = reference + logits(rows, 1, 0.7) + 0.5
    found = agree(reference, other)
    pairs = list(zip(reference.astype(float), other.astype(float), strict=True))
    assert found.top1 == pytest.approx(np.mean([p.argmax() == q.argmax() for p, q in pairs]))
    assert found.kld == pytest.approx(np.mean([rel_entr(softmax(p), softmax(q)).sum() for p, q in pairs]))
    assert found.cosine == pytest.approx(
        np.mean([np.dot(p, q) / np.sqrt(np.dot(p, p) * np.dot(q, q)) for p, q in pairs])
    )


def test_the_divergence_is_of_the_reference_from_the_logits_and_not_the_other_way() -> None:
    sure, unsure = np.array([[9.0, 0.0]], np.float32), np.array([[1.0, 0.0]], np.float32)
    p, q = (log_softmax(x[0].astype(float)) for x in (sure, unsure))
    assert agree(sure, unsure).kld == pytest.approx(float((np.exp(p) * (p - q)).sum()))
    assert agree(unsure, sure).kld == pytest.approx(float((np.exp(q) * (q - p)).sum()))


def test_logits_agree_with_themselves() -> None:
    same = agree(logits(70, 3), logits(70, 3))
    assert (same.top1, same.kld) == (1, 0)
    assert same.cosine == pytest.approx(1)
    assert 0 <= agree(logits(70, 3), logits(70, 3) + np.float32(1.3)).kld < 1e-6, "a softmax knows no shift"
    assert agree(logits(70, 3), -logits(70, 3)).cosine == pytest.approx(-1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    broken = logits(3, 0)
    broken[2, 49] = value
    with pytest.raises(MeasureError, match="NaN or infinity"):
        agree(logits(3, 0), broken)
