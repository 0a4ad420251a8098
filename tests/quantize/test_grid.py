from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from edgekit.errors import QuantizeError
from edgekit.numerics.nibbles import pack_bits, unpack_bits
from edgekit.quantize import rtn, search, tensor
from edgekit.quantize.grid import decode, encode, storable
from edgekit.quantize.pack import Packed, pack_columns, unpack
from edgekit.quantize.tensor import quantize_weight
from edgekit.types import Grid
from edgekit.types.layout import Layout

GRIDS = [
    Grid(bits, block_size, symmetric, scale)
    for bits, block_size, symmetric, scale in product(
        (2, 4, 8), (0, 16, 32, 64, 128, 256), (True, False), ("float16", "float32")
    )
]
FITS = {"rtn": rtn.fit, "search": search.fit}


class OneWeight:
    """Weights with a single tensor, that counts the rows it was asked for."""

    def __init__(self, weight):
        self.weight, self.rows = weight, []

    def names(self):
        return ("w",)

    def shape(self, name):
        return self.weight.shape

    def read(self, name, start=0, stop=None):
        self.rows.append((start, stop))
        return self.weight[start:stop].copy()


def quantized(weight, grid, fit=search.fit) -> Packed:
    with ThreadPoolExecutor(2) as pool:
        return quantize_weight(OneWeight(weight), "w", grid, fit, pool)


def normal(rows=24, columns=256, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_weight_on_the_grid_comes_back_bit_for_bit(grid):
    """What was decoded once is on the grid: packing it again gives the same bytes and the same floats."""
    first = quantized(normal(), grid)
    on_grid = unpack(first, (24, 256), grid)

    def same(x, _):
        layout = Layout.of((24, 256), grid)
        scales = np.broadcast_to(first.scales, (24, layout.scale_columns)).astype(np.float32).ravel()
        if first.zeros is None:
            return scales, np.full_like(scales, 2 ** (grid.bits - 1))
        return scales, unpack_bits(first.zeros, grid.bits, layout.scale_columns).astype(np.float32).ravel()

    again = quantized(on_grid, grid, same)
    assert np.array_equal(first.codes, again.codes)
    assert np.array_equal(first.scales, again.scales)
    assert np.array_equal(unpack(again, (24, 256), grid), on_grid)
    assert again.error == 0


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_bytes_are_those_that_the_grid_promises(grid):
    packed = quantized(normal(), grid)
    total = packed.codes.nbytes + packed.scales.nbytes + (0 if packed.zeros is None else packed.zeros.nbytes)
    assert total == Layout.of((24, 256), grid).nbytes(grid)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_no_weight_is_further_from_its_value_than_the_step_allows(grid, fit):
    """Round-to-nearest stays within half a step; a searched, narrower span may clip more."""
    weight = normal()
    packed = quantized(weight, grid, fit)
    layout = Layout.of(weight.shape, grid)
    step = np.abs(np.broadcast_to(packed.scales.astype(np.float32), (24, layout.blocks)))
    step = np.repeat(step, layout.block_size, axis=1)[:, :256]
    allowed = 1.02 if fit is rtn.fit else 3.0
    assert np.all(np.abs(unpack(packed, weight.shape, grid) - weight) <= allowed * step)
    lost = np.linalg.norm(unpack(packed, weight.shape, grid) - weight) / np.linalg.norm(weight)
    assert packed.error == pytest.approx(lost, rel=1e-3)


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.bits < 8], ids=str)
def test_searched_scales_beat_round_to_nearest(grid):
    weight = normal(64, 512)
    assert quantized(weight, grid).error < 0.99 * quantized(weight, grid, rtn.fit).error


@pytest.mark.parametrize("grid", [Grid(8, 32, True), Grid(8, 0, False), Grid(4, 16, True)], ids=str)
def test_search_is_never_worse_than_round_to_nearest_in_any_block(grid):
    weight = normal(16, 512, seed=3) ** 3
    layout = Layout.of(weight.shape, grid)

    def squared(fit):
        difference = unpack(quantized(weight, grid, fit), weight.shape, grid) - weight
        size = 512 if layout.per_channel else layout.block_size
        return np.square(difference).reshape(-1, size).sum(axis=1)

    assert np.all(squared(search.fit) <= squared(rtn.fit) * (1 + 1e-4))


def test_a_short_last_block_is_padded_and_cut_off_again():
    grid = Grid(4, 32, False)
    weight = normal(8, 75)
    packed = quantized(weight, grid)
    assert packed.codes.shape == (8, 3, 16)
    assert unpack(packed, weight.shape, grid).shape == (8, 75)
    assert packed.error < 0.12


def test_zero_blocks_and_constant_blocks_survive():
    weight = np.zeros((4, 64), np.float32)
    weight[1], weight[2] = 3.5, -3.5
    for grid in GRIDS:
        if grid.block_size in (0, 16, 32, 64):
            back = unpack(quantized(weight, grid), weight.shape, grid)
            assert np.array_equal(back[0], weight[0]), grid
            assert np.allclose(back, weight, rtol=2e-3), grid


def test_zero_is_exact_on_every_grid():
    weight = normal(8, 256)
    weight[:, ::5] = 0
    for grid in GRIDS:
        assert np.all(unpack(quantized(weight, grid), weight.shape, grid)[:, ::5] == 0), grid


def test_a_scale_too_large_for_float16_is_an_error_that_says_so():
    weight = normal() * np.float32(1e7)
    with pytest.raises(QuantizeError, match=r"w: .*float16") as error:
        quantized(weight, Grid(4, 32, True))
    assert 'scale = "float32"' in error.value.hint
    assert quantized(weight, Grid(4, 32, True, "float32")).error < 0.1


def test_a_scale_that_vanishes_in_float16_makes_a_block_of_zeros():
    weight = normal() * np.float32(1e-12)
    assert np.all(unpack(quantized(weight, Grid(4, 32, False)), weight.shape, Grid(4, 32, False)) == 0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_columns_are_packed_like_rows(bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, (7, 32), dtype=np.uint8)
    for columns in (np.ascontiguousarray(codes.T, np.float32), codes.astype(np.float32).T):
        assert np.array_equal(pack_columns(columns, bits), pack_bits(codes, bits))


def test_scales_become_what_numpy_makes_of_them():
    random = np.random.default_rng(0)
    scale = (random.standard_normal(100_000) * np.exp2(random.uniform(-13, 9, 100_000))).astype(np.float32)
    ties = 1 + (2 * np.arange(1024, dtype=np.float32) + 1) * np.float32(2.0**-11)
    edges = np.array([2.0**-14, 65503, 65504, -65519, 6e-5, 2.0**-25, 1e-9, 0], np.float32)
    for values in (scale[np.abs(scale) > 2.0**-14], ties, *edges[:, None], scale):
        expected = values.astype(np.float16).astype(np.float32)
        expected[expected == 0] = 1
        assert np.array_equal(storable(values, Grid(4, 32, True)), expected)


def test_bits_are_packed_low_nibble_first():
    assert pack_bits(np.array([[1, 2, 3, 15]], np.uint8), 4).tolist() == [[0x21, 0xF3]]
    assert pack_bits(np.array([[7, 8, 9]], np.uint8), 4).tolist() == [[0x87, 0x09]]
    codes = np.random.default_rng(0).integers(0, 16, (5, 7), dtype=np.uint8)
    assert np.array_equal(unpack_bits(pack_bits(codes, 4), 4, 7), codes)
    deep = np.random.default_rng(2).integers(0, 16, (2, 3, 4, 5), dtype=np.uint8)
    for bits, width in ((4, 3), (8, 5)):
        for some in (deep, deep[0], deep[0, 0], deep[0, 0, 0]):
            packed = pack_bits(some, bits)
            assert packed.shape == (*some.shape[:-1], width)
            assert np.array_equal(unpack_bits(packed, bits, 5), some)
            assert np.array_equal(unpack_bits(packed, bits, 2), some[..., :2])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rows_are_read_in_pieces_and_the_result_does_not_depend_on_them(grid, monkeypatch):
    weight = normal(64, 1024 if grid.block_size == 0 else 256)
    whole = quantized(weight, grid)
    monkeypatch.setattr(tensor, "PIECE", weight.shape[1] * 10)
    source = OneWeight(weight)
    with ThreadPoolExecutor(2) as pool:
        pieces = quantize_weight(source, "w", grid, search.fit, pool)
    assert len(source.rows) == 7
    assert np.array_equal(whole.codes, pieces.codes)
    assert np.array_equal(whole.scales, pieces.scales)


def test_encode_and_decode_are_inverse_for_every_code():
    for grid in (Grid(4, 16, False), Grid(8, 256, False)):
        codes = np.arange(2**grid.bits, dtype=np.float32)[:, None]
        scale, zero = np.array([0.37], np.float32), np.array([5], np.float32)
        assert np.array_equal(encode(decode(codes, scale, zero), scale, zero, grid), codes)


def test_storable_rounds_to_what_the_file_holds():
    half, single = Grid(4, 32, True), replace(Grid(4, 32, True), scale="float32")
    scale = np.array([0.1, 0.0], np.float32)
    assert storable(scale, half).tolist() == [float(np.float16(0.1)), 1.0]
    assert storable(scale, single).tolist() == [float(np.float32(0.1)), 1.0]
