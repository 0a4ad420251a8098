"""What is trained is what is in the file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgekit.learn.fake_quant import GridWeight, round_to_int8  # noqa: E402
from edgekit.quantize import unpack  # noqa: E402
from edgekit.quantize.model import load_method  # noqa: E402
from edgekit.quantize.tensor import quantize_weight  # noqa: E402
from edgekit.types import Grid  # noqa: E402

GRIDS = {
    "int4": Grid(4, 32, symmetric=False),
    "int4, symmetric, whole rows": Grid(4, 0, symmetric=True),
    "int4, padded": Grid(4, 64, symmetric=False),
    "int8": Grid(8, 0, symmetric=True),
    "int8, float32 scales": Grid(8, 32, symmetric=False, scale="float32"),
}


class One:
    """Weights with one tensor."""

    def __init__(self, value):
        self.value = value

    def names(self):
        return ("w",)

    def shape(self, _):
        return self.value.shape

    def read(self, _, start=0, stop=None):
        return self.value[start:stop]


def started(grid, **options):
    value = np.random.default_rng(3).standard_normal((24, 96)).astype(np.float32)
    value[0] = 0
    with ThreadPoolExecutor(1) as pool:
        packed = quantize_weight(One(value), "w", grid, load_method("search"), pool)
    return value, packed, GridWeight(packed, value, grid, **options)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_it_starts_at_the_packed_weight(grid):
    value, packed, weight = started(grid)
    assert np.array_equal(weight().detach().numpy(), unpack(packed, value.shape, grid))
    again = weight.pack()
    assert np.array_equal(again.codes, packed.codes)
    assert np.array_equal(again.scales, packed.scales)
    assert (again.zeros is None) == (packed.zeros is None)
    if packed.zeros is not None:
        assert np.array_equal(again.zeros, packed.zeros)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_what_was_trained_is_what_is_packed_to_the_bit(grid):
    value, packed, weight = started(grid)
    target = torch.from_numpy(value) * 1.3 + 0.05
    optimizer = torch.optim.Adam([p for p in weight.parameters() if p.requires_grad], lr=0.003 * 2**grid.bits)
    before = (weight() - target).square().mean().detach()
    for _ in range(40):
        loss = (weight() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * before
    trained = weight.pack()
    assert not np.array_equal(trained.codes, packed.codes)
    assert not np.array_equal(trained.scales, packed.scales)
    if packed.zeros is not None:
        assert not np.array_equal(trained.zeros, packed.zeros)
    assert np.array_equal(weight().detach().numpy(), unpack(trained, value.shape, grid))


def test_only_what_is_asked_for_is_trained():
    _, _, weight = started(GRIDS["int4"], codes=False, zeros=False)
    weight().square().sum().backward()
    assert weight.latent.grad is None
    assert weight.zero.grad is None
    assert weight.ratio.grad is not None


def test_the_gradient_of_the_scale_is_the_finite_difference_where_codes_stay():
    """At whole codes a small step of the scale moves no code: (code - zero) * first is the slope, less the place's."""
    grid = Grid(4, 32, symmetric=True, scale="float32")
    value, _, weight = started(grid, codes=False)
    weight.latent.data = weight.latent.round()  # every weight in the middle of its bin
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    (weight() * weights).sum().backward()
    clipped = (weight.latent + weight.zero < -0.5) | (weight.latent + weight.zero > 15.5)
    assert not clipped.any()
    # In the middle of a bin the code follows the place exactly, so straight-through says: the weight does not move.
    torch.testing.assert_close(weight.ratio.grad, torch.zeros_like(weight.ratio))


def test_level_4_rounds_blocks_of_the_input_to_8_bits():
    rounding = round_to_int8({"w": Grid(4, 32, symmetric=False)})
    x = torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = rounding("w", x)
    blocks = x.detach().view(2, 3, 3, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(y.detach().view(2, 3, 3, 32), (blocks / scale).round() * scale)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert rounding("other", x) is x
