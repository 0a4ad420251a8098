"""benchmarks/reference.py: noise stays within each weight's own bin, in the order of the rows it belongs to."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from ggufs import byte_level_entries, write_gguf
from safetensors.numpy import load_file

from edgekit.source import open_model

REFERENCE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "reference.py"))


@pytest.fixture(params=["Q4_0", "Q4_1", "Q8_0"])
def gguf(request, tmp_path):
    kind = GGMLQuantizationType[request.param]
    write_gguf(tmp_path / "m.gguf", kind=kind, metadata=byte_level_entries())
    return tmp_path / "m.gguf"


def test_each_weight_moves_within_its_bin(gguf, tmp_path):
    out = REFERENCE["make_reference"](str(gguf), tmp_path / "reference", 7)
    noisy, source = load_file(out / "model.safetensors"), open_model(str(gguf)).weights
    for name in source.names():
        moved = np.abs(noisy[name] - source.read(name))
        if len(source.shape(name)) == 1:
            assert not moved.any()
            continue
        widths = REFERENCE["bin_widths"](source.extent(name))
        assert widths.shape == moved.shape
        assert np.all(moved <= widths / 2 * (1 + 1e-4) + 1e-7)
        # Uniform over the bin: a quarter of it on average, and every bin is a real one.
        assert moved.sum() == pytest.approx(widths.sum() / 4, rel=0.05)


def test_the_reference_opens_and_is_made_once(gguf, tmp_path):
    out = REFERENCE["make_reference"](str(gguf), tmp_path / "reference", 7)
    before = (out / "model.safetensors").read_bytes()
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert open_model(str(out)).spec == open_model(str(gguf)).spec
    REFERENCE["make_reference"](str(gguf), tmp_path / "reference", 7)
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    REFERENCE["make_reference"](str(gguf), tmp_path / "again", 7)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == before
    REFERENCE["make_reference"](str(gguf), tmp_path / "reference", 8)
    assert (out / "model.safetensors").read_bytes() != before
