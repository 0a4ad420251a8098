"""The program that shows where the time goes: it runs, and its shares are shares. No time is asserted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import build_bundle
from edgekit.testing import tiny_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("recipe", ["small", "int4"])
def test_both_phases_are_taken_apart_and_the_products_run_alone(recipe, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", max_position_embeddings=1024)
    bundle = build_bundle(str(checkpoint), recipe=recipe, out=tmp_path / "out")
    command = [sys.executable, str(ROOT / "benchmarks/operators.py"), str(bundle.path), "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    for phase in ("prompt", "token") if recipe == "small" else ("token",):
        section = done.stdout.partition(f"\n{phase}: ")[2].partition("\n\n")[0]
        shares = [float(share) for share in re.findall(r"([\d.]+)%", section)]
        assert 3 < len(shares) <= 10
        assert 60 < sum(shares) < 100.6
        assert "products" in section
        assert "attention" in section
    for name in ("token at 32", "products alone", "products and attention at 32", "products and attention at 512"):
        assert re.search(rf"  {name}\s+[\d.]+ ms", done.stdout), name
    assert re.search(r"share of a token at 512: matmuls \d+%, with attention \d+%", done.stdout)
    # Codes, scales and zero points of all weights, the table once: what the manifest says, norms aside.
    read = float(re.search(r"read ([\d.]+) MB", done.stdout)[1])
    stored = sum(t.bytes for t in bundle.manifest.tensors if t.grid) / 1e6
    assert read == pytest.approx(stored, abs=0.06)
