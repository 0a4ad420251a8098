"""Tiny bundles of every recipe, what exact arithmetic makes of them, and processors of other classes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.hidden import can_hide, hidden_environment
from edgekit import build_bundle
from edgekit.testing import tiny_checkpoint
from tests.classes.exact import exact_logits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.types import Bundle

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "edgekit" / "recipes").glob("*.toml"))
TOKENS = np.random.default_rng(0).integers(4, 380, 40).tolist()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Every recipe for a CPU with ONNX Runtime's own operators, and the precisions in standard ones."""
    folder = tmp_path_factory.mktemp("classes")
    model = str(tiny_checkpoint(folder / "model"))
    made = {name: build_bundle(model, recipe=_recipe(name), out=folder / name) for name in RECIPES}
    for precision in ("int4", "int8"):
        name = f"portable-{precision}"
        made[name] = build_bundle(model, target="portable", precision=precision, out=folder / name)
    return made


def _recipe(name: str) -> str:
    return str(ROOT / "edgekit" / "recipes" / f"{name}.toml")


@pytest.fixture(scope="session")
def exact(bundles: dict[str, Bundle]) -> dict[tuple[str, bool, bool], np.ndarray]:
    """Logits by bundle, whether they are of the graph for prompts, and whether level 4 rounds activations."""
    graphs = [(name, prompts) for name, b in bundles.items() for prompts in {False, b.manifest.prefill is not None}]
    return {
        (name, prompts, rounded): exact_logits(bundles[name], TOKENS, prompts=prompts, rounded=rounded)
        for name, prompts in graphs
        for rounded in (False, True)
    }


@dataclass(frozen=True)
class Machine:
    """How a Python of this environment is run on a processor of another class."""

    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def whole_environment(self, folder: Path) -> dict[str, str]:
        """The environment of a process there, with a cache of its own."""
        search = os.pathsep.join([str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))])
        # A suite that runs as an older class itself (benchmarks/hidden.py) must not hide anything from qemu.
        kept = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "HIDE_BELOW", "HIDE_CPUINFO")}
        own = {"PYTHONPATH": search, "EDGEKIT_CACHE": str(folder / "cache")}
        return (kept if self.command else dict(os.environ)) | self.environment | own

    def drive(self, bundles: Mapping[str, Bundle], out: Path) -> dict[str, np.ndarray]:
        """What edgekit gives there: see drive_bundles.py."""
        paths = [str(bundle.path) for bundle in bundles.values()]
        # qemu runs the interpreter itself, without the links by which it finds its environment.
        python = Path(sys.executable).resolve() if self.command else Path(sys.executable)
        command = [
            *self.command,
            python,
            HERE / "drive_bundles.py",
            out,
            json.dumps(TOKENS),
            *paths,
        ]
        environment = self.whole_environment(out.parent)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(np.load(out))


FLAGS = {
    "Nehalem": "sse4_1 sse4_2",
    "SandyBridge": "sse4_1 sse4_2 avx",
    "Haswell": "sse4_1 sse4_2 avx avx2 fma",
    "EPYC-Milan": "sse4_1 sse4_2 avx avx2 fma vaes",
}
"""Processors that qemu has, and what /proc/cpuinfo says there. It emulates no AVX-512."""


def emulated_x86(model: str, folder: Path) -> Machine:
    """A processor of FLAGS under qemu-user; skips where that is not installed."""
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if not qemu:
        pytest.skip("qemu-x86_64 is not installed: apt-get install qemu-user-static")
    (folder / "root" / "proc").mkdir(parents=True)
    core = f"processor\t: 0\nmodel name\t: emulated {model}\nflags\t\t: {FLAGS[model]}\n\n"
    (folder / "root" / "proc" / "cpuinfo").write_text(core)
    return Machine((qemu, "-cpu", model, "-L", str(folder / "root")))


def hidden(newest: str, folder: Path) -> Machine:
    """This processor without the instructions of newer classes; skips where CPUID cannot be trapped."""
    if "HIDE_BELOW" in os.environ:
        pytest.skip("instructions are hidden from this suite already")
    if not can_hide():
        pytest.skip("this processor cannot trap CPUID")
    if not shutil.which("gcc"):
        pytest.skip("there is no C compiler")
    return Machine(environment=hidden_environment(newest, folder))
