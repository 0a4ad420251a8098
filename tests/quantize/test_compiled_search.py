"""The compiled search gives NumPy's bytes, and is taken only where it does."""

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgekit.errors import QuantizeError
from edgekit.quantize import rtn, search, tensor
from edgekit.quantize.model import load_method, methods
from edgekit.types import Grid
from edgekit.types.layout import Layout

GRIDS = (
    Grid(4, 32, False),
    Grid(4, 64, False, "float32"),
    Grid(4, 128, True),
    Grid(8, 32, True),
    Grid(8, 16, False),
    Grid(2, 16, True),
    Grid(2, 64, False),
)


class OneWeight:
    """Weights of one tensor."""

    def __init__(self, weight):
        self.weight = weight

    def names(self):
        return ("w",)

    def shape(self, _):
        return self.weight.shape

    def read(self, _, start=0, stop=None):
        return self.weight[start:stop].copy()


@pytest.fixture
def compiled():
    pytest.importorskip("numba")
    tensor._compiled.cache_clear()
    yield importlib.import_module("edgekit.quantize.jit.search")
    tensor._compiled.cache_clear()


def awkward(columns=512):
    """Rows that a search stumbles over: zeros, one sign, one outlier, denormal halves, ties, large weights."""
    random = np.random.default_rng(7)
    w = (random.standard_normal((41, columns)) * 0.02).astype(np.float32)
    w[1] = 0
    w[2] = np.abs(w[2])
    w[3] = -np.abs(w[3])
    w[4, ::32] = 3
    w[5] *= 1e-6
    w[6] = random.integers(-8, 8, columns)
    w[7] *= 1e6
    w[8, :16] = 0
    w[9] = 1e-30
    return w


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_byte_and_every_sum_is_numpys(compiled, grid):
    w = awkward()
    layout = Layout.of(w.shape, grid)
    found = compiled.quantize_rows(w, layout, grid)
    expected = tensor._quantize_rows(w, layout, grid, search.fit)
    for name, ours, theirs in zip(("codes", "scales", "zeros", "lost", "total"), found, expected, strict=True):
        assert ours.dtype == theirs.dtype, name
        assert np.array_equal(ours.ravel(), theirs.ravel()), name


def test_a_large_weight_is_packed_the_same_with_and_without(compiled, monkeypatch):
    weight, grid = awkward(columns=500), Grid(4, 32, False)  # the last block of each row is padded
    monkeypatch.setattr(tensor, "LARGE", 1)
    calls = []
    original = compiled.quantize_rows
    monkeypatch.setattr(compiled, "quantize_rows", lambda *a: calls.append(1) or original(*a))
    with ThreadPoolExecutor(2) as pool:
        fast = tensor.quantize_weight(OneWeight(weight), "w", grid, load_method("search"), pool)
        assert calls
        monkeypatch.setattr(tensor, "LARGE", weight.size + 1)
        before = len(calls)
        plain = tensor.quantize_weight(OneWeight(weight), "w", grid, load_method("search"), pool)
    assert len(calls) == before
    assert fast.error == plain.error
    for part in ("codes", "scales", "zeros"):
        assert np.array_equal(getattr(fast, part), getattr(plain, part)), part


def test_a_scale_that_float16_cannot_hold_is_refused_by_name(compiled, monkeypatch):
    monkeypatch.setattr(tensor, "LARGE", 1)
    weight = awkward()
    weight[12, 3] = 3e6
    with ThreadPoolExecutor(1) as pool, pytest.raises(QuantizeError, match=r"^loud: .*too large for float16"):
        tensor.quantize_weight(OneWeight(weight), "loud", Grid(4, 32, False), search.fit, pool)


def test_where_its_bytes_are_others_it_is_not_taken(compiled, monkeypatch):
    original = compiled.quantize_rows

    def rounds_otherwise(*arguments):
        codes, scale, zero, lost, total = original(*arguments)
        return codes, scale, zero, np.nextafter(lost, np.float32(1)), total

    monkeypatch.setattr(compiled, "quantize_rows", rounds_otherwise)
    assert tensor._compiled(search.fit) is None


def test_where_no_folder_may_be_written_it_is_compiled_anew(compiled, monkeypatch):
    import numba

    plain = numba.njit

    def njit(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return plain(**options)

    monkeypatch.setattr(numba, "njit", njit)
    importlib.reload(compiled)
    assert tensor._compiled(search.fit) is compiled.quantize_rows
    monkeypatch.undo()
    importlib.reload(compiled)


def test_a_method_without_a_twin_has_none(compiled):
    assert tensor._compiled(rtn.fit) is None
    assert tensor._compiled(search.fit) is compiled.quantize_rows


def test_all_methods_are_there_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "edgekit.quantize.jit.search", raising=False)
    tensor._compiled.cache_clear()
    try:
        assert "search" in methods()
        assert tensor._compiled(load_method("search")) is None
    finally:
        tensor._compiled.cache_clear()
