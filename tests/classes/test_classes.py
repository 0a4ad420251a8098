"""The same answer on every class of processor: bundles of every recipe against exact arithmetic in NumPy."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgekit.errors import RunError
from edgekit.host.processor import processor_class
from edgekit.run import Interpreter, find_arm64, folding_entry, save_expanded, this_interpreter
from tests.classes.conftest import HERE, TOKENS, Machine, emulated_x86, hidden
from tests.classes.exact import exact_logits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.types import Bundle

STEPS = 4
EXACT = 1e-4
"""Of the logits' spread: how far a quarter of the positions may be from exact arithmetic. Most are 3e-7 away."""

ROUNDED = 0.02
"""How far all of them may be: a code on the edge between two falls to the other side in another order of additions, and
moves what follows. What saturates moves every position, by 0.1 and more."""

FOLDED = 0.03
"""Where the runtime makes MatMulNBits of standard operators at load: the reference rounds no activations there."""


@dataclass(frozen=True)
class Kind:
    """A class of processors.

    ``rounds``: it has kernels for level 4; elsewhere the runtime computes those products in floating point.
    ``own_blocks``: they round the activations of 8-bit matmuls by other blocks than the weights'.
    """

    name: str
    rounds: bool
    own_blocks: bool = False


SSE4, AVX = Kind("SSE4", rounds=False), Kind("AVX", rounds=False)
AVX2, AVX512 = Kind("AVX2", rounds=True), Kind("AVX512", rounds=True)
NEON, I8MM = Kind("NEON", rounds=False), Kind("i8mm", rounds=True)
DOTPROD = Kind("dotprod", rounds=True, own_blocks=True)

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 classes are tried on x86")
off_arm = pytest.mark.skipif(platform.machine() in ("aarch64", "arm64"), reason="nothing is emulated on ARM")


def spread(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact - exact.mean(axis=-1, keepdims=True)))


def check(found: Mapping[str, np.ndarray], bundles: Mapping[str, Bundle], exact: Mapping, kind: Kind) -> None:
    """Logits by ``bundle/graph``, the last n of all positions, are those of exact arithmetic."""
    far = {}
    for key, logits in found.items():
        name, _, graph = key.partition("/")
        wanted = exact[name, graph == "prompts", kind.rounds][-len(logits) :]
        folds = name.startswith("portable") and kind.rounds
        typical = np.quantile([spread(row, right) for row, right in zip(logits, wanted, strict=True)], 0.25)
        loose = folds or (kind.own_blocks and graph != "prompts")
        if not (spread(logits, wanted) <= (FOLDED if folds else ROUNDED) and (loose or typical <= EXACT)):
            far[key] = f"{spread(logits, wanted):.2e}, a quarter of the positions {typical:.2e}"
    assert not far, far


@on_x86
@pytest.mark.parametrize(
    ("model", "kind"), [("Nehalem", SSE4), ("SandyBridge", AVX), ("Haswell", AVX2), ("EPYC-Milan", AVX2)]
)
def test_x86_classes_under_emulation(model, kind, bundles, exact, tmp_path):
    check_machine(emulated_x86(model, tmp_path), kind, bundles, exact, tmp_path)


@on_x86
@pytest.mark.parametrize(("newest", "kind"), [("sse4", SSE4), ("avx", AVX), ("avx2", AVX2), ("avx512", AVX512)])
def test_x86_classes_by_hiding_instructions(newest, kind, bundles, exact, tmp_path):
    machine = hidden(newest, tmp_path)
    if newest == "avx512" and not processor_class().startswith(("AVX512", "AMX")):
        pytest.skip("this processor has no AVX-512 to show")
    check_machine(machine, kind, bundles, exact, tmp_path)


def test_this_machine(bundles, exact, tmp_path):
    name = processor_class()
    known = {kind.name: kind for kind in (SSE4, AVX, AVX2, AVX512, NEON, DOTPROD, I8MM)}
    check_machine(Machine(), known.get(name, Kind(name, rounds=True)), bundles, exact, tmp_path)


def check_machine(machine, kind, bundles, exact, folder):
    found = machine.drive(bundles, folder / "logits.npz")
    assert str(found.pop("processor_class")) == kind.name
    said = {name: str(found.pop(f"{name}/arithmetic")) for name in bundles}
    assert {said[name] for name in ("fast", "small", "int4", "int8")} == {"exact by known sums"}
    assert said["fp32"] == "floating point"
    assert len(found) == 2 * len(bundles) + 3, "a prompt and steps of each, and three graphs for prompts"
    check(found, bundles, exact, kind)


@on_x86
def test_weights_whose_pairs_saturate_are_found_by_the_comparison(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.run.prefill_weights.PAIR", 2 * 127)
    exact = {("fast", graph, True): exact_logits(bundles["fast"], TOKENS, prompts=graph) for graph in (False, True)}
    machine = hidden("avx2", tmp_path)
    interpreter = Interpreter("AVX2", (sys.executable,), machine.whole_environment(tmp_path))
    found = drive_graphs(interpreter, {"fast": bundles["fast"]}, tmp_path)
    assert spread(found["fast/prompts"], exact["fast", True, True]) > 0.1
    with pytest.raises(AssertionError, match="fast/prompts"):
        check(found, bundles, exact, AVX2)


@off_arm
@pytest.mark.arm64
@pytest.mark.parametrize("kind", [NEON, DOTPROD, I8MM], ids=lambda kind: kind.name)
def test_arm_classes_under_emulation(kind, bundles, exact, tmp_path):
    try:
        arm = find_arm64(kind.name)
    except RunError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    assert arm.processor_class == kind.name
    found = drive_graphs(arm, bundles, tmp_path)
    assert len(found) == len(bundles) + 3
    check(found, bundles, exact, kind)


def test_the_graphs_themselves_on_this_machine(bundles, tmp_path):
    found = drive_graphs(this_interpreter(), {"int4": bundles["int4"]}, tmp_path)
    assert list(found) == ["int4/decoder"]


def drive_graphs(interpreter: Interpreter, bundles: Mapping[str, Bundle], folder: Path) -> dict[str, np.ndarray]:
    """Logits of the graphs as they are, with the entries of the bundle's own session and no remedy."""
    jobs = []
    for name, bundle in bundles.items():
        entries = [folding_entry(bundle.manifest.accuracy_level)]
        job = {"graph": str(bundle.graph), "folder": str(bundle.graph.parent), "weights": "", "entries": entries}
        jobs.append(job | {"name": f"{name}/decoder"})
        if bundle.manifest.prefill:
            save_expanded(bundle, folder / f"{name}.npz")
            graph = str(bundle.path / bundle.manifest.prefill.graph)
            jobs.append(job | {"name": f"{name}/prompts", "graph": graph, "weights": str(folder / f"{name}.npz")})
    (folder / "jobs.json").write_text(json.dumps({"tokens": TOKENS, "graphs": jobs}))
    command = [*interpreter.command, HERE / "drive_graphs.py", folder / "jobs.json", folder / "graphs.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=interpreter.environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "graphs.npz"))
