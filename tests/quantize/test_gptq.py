"""GPTQ against the formulas written out, and what it is for: a smaller error on the inputs that come."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.errors import QuantizeError
from edgekit.quantize.gptq import curvature, fit_weighted, gram, round_columns
from edgekit.types import Grid
from edgekit.types.layout import Layout

GRIDS = [
    Grid(4, 32, False),
    Grid(4, 32, True),
    Grid(8, 32, True),
    Grid(4, 0, False),
    Grid(4, 16, False, "float32"),
    Grid(2, 32, True),
    Grid(2, 32, False),
]


def correlated(tokens: int, columns: int, seed: int = 0) -> np.ndarray:
    """Inputs whose channels depend on each other and differ in size, as activations do."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((columns // 4, columns)) + 0.1 * random.standard_normal((1, columns))
    noise = 0.3 * random.standard_normal((tokens, columns))
    x = random.standard_normal((tokens, columns // 4)) @ mix + noise
    return (x * np.exp(random.standard_normal(columns))).astype(np.float32)


def spread(values: np.ndarray, layout: Layout, columns: int) -> np.ndarray:
    size = layout.blocks * layout.block_size if layout.per_channel else layout.block_size
    return np.repeat(values, size, axis=1)[:, :columns]


def test_the_factor_is_that_of_the_damped_inverse():
    x = correlated(400, 96)
    h = gram(x)
    found = curvature(h)
    assert np.array_equal(np.sort(found.order), np.arange(96))
    assert (np.diff(found.diagonal[found.order]) <= 0).all()
    damped = h.astype(np.float64) + 0.01 * np.diag(h).mean() * np.eye(96)
    inverse = np.linalg.inv(damped[np.ix_(found.order, found.order)])
    assert np.array_equal(np.triu(found.factor), found.factor)
    np.testing.assert_allclose(found.factor.T @ found.factor, inverse, rtol=2e-3, atol=1e-6 * np.abs(inverse).max())


def test_large_triangles_are_inverted_by_halves():
    random = np.random.default_rng(1)
    x = random.standard_normal((900, 300)).astype(np.float32)
    found = curvature(gram(x))
    inverse = np.linalg.inv(gram(x).astype(np.float64) + 0.01 * np.diag(gram(x)).mean() * np.eye(300))
    order = found.order
    np.testing.assert_allclose(found.factor.T @ found.factor, inverse[np.ix_(order, order)], rtol=1e-3, atol=1e-7)


def test_a_loud_token_counts_like_a_loud_one_and_no_more():
    x = np.ones((9, 4), np.float32)
    x[0] *= 1000
    assert gram(x)[0, 0] == pytest.approx(10 + 8, rel=1e-5)
    assert gram(np.ones((9, 4), np.float32))[0, 0] == 9


def test_text_that_overflows_is_refused():
    x = np.ones((4, 8), np.float32)
    x[0, 0] = np.inf
    with pytest.raises(QuantizeError, match="overflows"), np.errstate(all="ignore"):
        curvature(gram(x))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_weighted_scales_are_never_worse_than_any_start(grid):
    """Against a brute-force search over spans, in the weighted error that both minimize."""
    random = np.random.default_rng(2)
    w = random.standard_normal((6, 64)).astype(np.float32)
    h = np.exp(2 * random.standard_normal(64)).astype(np.float32)
    layout = Layout.of(w.shape, grid)
    scale, zero = fit_weighted(w, h, layout, grid)
    s, z = spread(scale, layout, 64), spread(zero, layout, 64)
    top = 2**grid.bits - 1
    error = (h * (w - (np.clip(np.rint(w / s + z), 0, top) - z) * s) ** 2).sum()
    low, high = np.minimum(w, 0), np.maximum(w, 0)
    size = 64 if layout.per_channel else layout.block_size
    blocks = (6, -1, size)
    lowest, highest = low.reshape(blocks).min(-1), high.reshape(blocks).max(-1)
    if grid.symmetric:
        s0 = np.where(-lowest > highest, lowest, highest) / -(2 ** (grid.bits - 1))
        z0 = np.full_like(s0, 2 ** (grid.bits - 1))
    else:
        s0 = (highest - lowest) / top
        z0 = np.rint(-lowest / s0)
    s0, z0 = (np.repeat(a, size, axis=1) for a in (s0, z0))
    plain = (h * (w - (np.clip(np.rint(w / s0 + z0), 0, top) - z0) * s0) ** 2).sum()
    assert error <= plain * 1.001
    assert (np.rint(zero) == zero).all()
    assert (zero >= 0).all()
    assert (zero <= top).all()
    if grid.scale == "float16":
        assert (scale == scale.astype(np.float16)).all()


def test_positive_scales_stay_above_zero():
    w = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    grid = Grid(4, 32, True)
    signed, _ = fit_weighted(w, np.ones(64, np.float32), Layout.of(w.shape, grid), grid)
    above, _ = fit_weighted(w, np.ones(64, np.float32), Layout.of(w.shape, grid), grid, positive=True)
    assert (signed < 0).any()
    assert (above > 0).all()


def by_hand(w, s, z, x, top, damping=0.01):
    """GPTQ as the paper's algorithm 1 has it: the inverse is updated after every column (float64)."""
    h = (x.T @ x).astype(np.float64)
    h += damping * np.diag(h).mean() * np.eye(len(h))
    left, rest = w.astype(np.float64).copy(), list(np.argsort(-np.diag(x.T @ x), kind="stable"))
    codes = np.zeros_like(left)
    while rest:
        j = rest[0]
        inverse = np.linalg.inv(h[np.ix_(rest, rest)])
        codes[:, j] = np.clip(np.rint(left[:, j] / s[:, j] + z[:, j]), 0, top)
        error = (left[:, j] - (codes[:, j] - z[:, j]) * s[:, j]) / inverse[0, 0]
        left[:, rest] -= np.outer(error, inverse[0])
        rest.pop(0)
    return codes


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_columns_are_rounded_as_the_paper_does(grid):
    x = correlated(300, 160, seed=4)
    quiet = np.einsum("ij,ij->i", x, x)
    x = x[quiet < 10 * np.median(quiet)]
    w = np.random.default_rng(5).standard_normal((7, 160)).astype(np.float32)
    layout, curve = Layout.of(w.shape, grid), curvature(gram(x))
    padded = np.pad(w, ((0, 0), (0, layout.blocks * layout.block_size - 160)))
    scale, zero = fit_weighted(padded, np.pad(curve.diagonal, (0, padded.shape[1] - 160)), layout, grid)
    s, z = spread(scale, layout, 160), spread(zero, layout, 160)
    codes = round_columns(w, s, z, curve, grid)
    expected = by_hand(w, s, z, x, 2**grid.bits - 1)
    assert (codes == expected).mean() > 0.995  # near-ties round either way in float32
    assert codes.min() >= 0
    assert codes.max() <= 2**grid.bits - 1


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_outputs_are_nearer_than_with_the_nearest_codes(grid):
    x, held = np.split(correlated(1200, 96, seed=6), [800])
    w = np.random.default_rng(7).standard_normal((16, 96)).astype(np.float32)
    layout, curve = Layout.of(w.shape, grid), curvature(gram(x))
    scale, zero = fit_weighted(w, curve.diagonal, layout, grid)
    s, z = spread(scale, layout, 96), spread(zero, layout, 96)
    nearest = np.clip(np.rint(w / s + z), 0, 2**grid.bits - 1)
    ours = round_columns(w, s, z, curve, grid)
    lost = [np.square(held @ (w - (codes - z) * s).T).sum() for codes in (ours, nearest)]
    assert lost[0] < 0.6 * lost[1]
