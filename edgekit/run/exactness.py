"""Check with known sums whether the runtime computes a bundle's integer matmuls exactly on this processor.

ONNX Runtime selects kernels by processor, and not all are exact. ``probes/`` holds small graphs with known sums (see
``graph/probes.py``). The probes that a bundle needs run when it is first opened on a machine; results are cached by
processor, ONNX Runtime version, session entries and probe.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import RunError
from edgekit.host.arithmetic import NOTHING, Arithmetic
from edgekit.host.cache import cache_folder, foreign, make_own
from edgekit.host.disk import write_whole
from edgekit.host.processor import identify_processor, processor_class
from edgekit.run import probing
from edgekit.run.runtime import onnxruntime
from edgekit.types import Check
from edgekit.types.tensor_names import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.run.subprocess_predictor import Interpreter
    from edgekit.types import Grid, Manifest

    Entries = tuple[tuple[str, str], ...]
    Matmuls = Mapping[str, frozenset[str]]

PROBES = files("edgekit.run") / "probes"
"""In a folder or, on a lab's device, in the driver's archive."""


UNSIGNED_WEIGHTS = (("session.x64quantprecision", "1"),)
"""Converts signed constant weights to unsigned ones with a zero point when the session is created. Products of unsigned
integers are computed in 16 bits: exact, but slower. Has no effect except on x86."""

REMEDIES: tuple[Entries, ...] = ((), UNSIGNED_WEIGHTS)
"""The session entries to try, fastest first."""

PROMPT_MATMULS = {"prompt_matmul": frozenset({"MatMulIntegerToFloat, 1 row", "MatMulIntegerToFloat, 16 rows"})}
"""The matmuls of the prompt graph."""

_BLOCKS, _FOLDED_BLOCKS, _ROWS = (16, 32, 64, 128, 256), (32, 64, 128), ("1 row", "16 rows")


def folding_entry(accuracy_level: int) -> tuple[str, str]:
    """The session entry for the accuracy level at which standard operators are fused into MatMulNBits at load.

    The default is level 4, whatever level the bundle was scored at.
    """
    return "session.qdq_matmulnbits_accuracy_level", str(accuracy_level)


@dataclass(frozen=True)
class Survey:
    """The result of one probe.

    ``sums``: whether each matmul's sum was right; None if the runtime did not load the probe or the process crashed.
    ``died``: the exit status of a crashed process, else 0.
    """

    probe: str
    sums: dict[str, bool] | None
    died: int = 0

    @property
    def wrong(self) -> tuple[str, ...]:
        """Matmuls whose sums are wrong."""
        return tuple(name for name, right in (self.sums or {}).items() if not right)


def decoder_matmuls(manifest: Manifest) -> dict[str, frozenset[str]]:
    """The kinds of matmuls in a bundle's decoder graph, by probe."""
    found: dict[str, set[str]] = {}
    lacks, level = manifest.cpu_target.lacks, manifest.accuracy_level
    for grid, table in {(t.grid, t.name == EMBEDDING) for t in manifest.tensors if t.grid}:
        if "op:MatMulNBits" in lacks:
            found.setdefault("dequantize_matmul", set()).add(_folded(grid))
        else:
            # 2 bits are computed at level 4, or as at level 0.
            narrow, at = grid.bits == 2, level if grid.bits != 2 or level == 4 else 0
            kind = f"MatMulNBits, {_kind(grid)}, float32, level {at}"
            found.setdefault(f"matmul_{'2_bits' if narrow else 'nbits'}_level_{at}", set()).update(
                f"{kind}, {rows}" for rows in _ROWS
            )
        if table and "op:GatherBlockQuantized" not in lacks:
            probe = "gather_2_bits" if grid.bits == 2 else "gather_block_quantized"
            found.setdefault(probe, set()).add(f"GatherBlockQuantized, {_kind(grid)}")
    return {probe: frozenset(names) for probe, names in found.items()}


def find_arithmetic(
    matmuls: Matmuls, kernels: Entries = (), *, keep: bool = True, root: Path = Path("/")
) -> Arithmetic:
    """Find the session entries under which matmuls are exact on this processor: the first of REMEDIES that works.

    Args:
        matmuls: names by probe.
        kernels: session entries that the bundle sets anyway.
        keep: write the probes' results to the cache.
        root: the folder that contains ``proc``.
    """
    if not matmuls:
        return NOTHING
    count = sum(len(names) for names in matmuls.values())
    best: Arithmetic | None = None
    for remedy in REMEDIES:
        found = Arithmetic(remedy, _wrong(matmuls, kernels, remedy, keep=keep, root=root), count)
        if found.exact:
            return found
        best = found if best is None or len(found.inexact) < len(best.inexact) else best
    assert best is not None
    return best


def require_exact(arithmetic: Arithmetic) -> None:
    """Raise RunError if a graph's matmuls are wrong on this processor."""
    if arithmetic.inexact:
        raise RunError(
            f"onnxruntime {onnxruntime.__version__} computes wrong sums on this processor "
            f"({processor_class() or 'unknown class'}): {'; '.join(arithmetic.inexact)}",
            hint="use another version of onnxruntime, or build without integers: `edgekit build --precision fp16`",
        )


def describe_arithmetic(decoder: Arithmetic, prompts: Arithmetic) -> str:
    """Describe how exact a runner's matmuls are, and what was chosen to make them so.

    Args:
        decoder: the result for the decoder's graph.
        prompts: the result for the prompt graph, NOTHING or ``decoder`` if there is none.
    """
    if not decoder.probed and not prompts.probed:
        return "floating point"
    chosen = "exact by known sums"
    if not prompts.exact:
        return f"{chosen}; prompts run on the decoder's graph, since theirs computes wrong sums on this processor"
    if prompts.entries == UNSIGNED_WEIGHTS:
        chosen += "; prompts use unsigned weights, since signed ones saturate on this processor"
    return chosen


def survey(interpreter: Interpreter) -> tuple[Survey, ...]:
    """Run all probes in subprocesses, since a kernel that the processor does not support crashes its process.

    Args:
        interpreter: the Python to run them with.

    Raises:
        RunError: the interpreter stopped without crashing.
    """
    waiting = sorted(Path(str(PROBES)).glob("*.onnx"))
    found: list[Survey] = []
    setting = "=".join(folding_entry(4))
    while waiting:
        command = [*interpreter.command, probing.__file__, *map(str, waiting), setting]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=interpreter.environment
        )
        lines = [json.loads(line)[1] for line in done.stdout.splitlines()]
        found += [Survey(path.stem, sums) for path, sums in zip(waiting, lines, strict=False)]
        waiting = waiting[len(lines) :]
        if waiting and not done.returncode:
            raise RunError(f"{interpreter.name}: the probes ended early", "report this, with `edgekit doctor`'s output")
        if waiting:
            found.append(Survey(waiting.pop(0).stem, None, died=done.returncode))
    return tuple(found)


def check_survey(name: str, interpreter: Interpreter) -> Check:
    """Run all probes and report which matmuls are wrong and which crash.

    This is only information: when a bundle is opened, the matmuls that it uses are checked.
    """
    found = survey(interpreter)
    wrong = [matmul for probe in found for matmul in probe.wrong]
    dead = [probe.probe for probe in found if probe.died]
    count = sum(len(probe.sums or ()) for probe in found)
    where = interpreter.processor_class or "unknown class"
    detail = f"{where}: {count - len(wrong)} of {count} integer matmuls are exact by known sums"
    if wrong:
        detail += f"; wrong: {'; '.join(wrong)}"
    if dead:
        detail += f"; crashed: {', '.join(dead)}"
    return Check(name, "info", detail)


def _wrong(matmuls: Matmuls, kernels: Entries, remedy: Entries, *, keep: bool, root: Path) -> tuple[str, ...]:
    wrong: list[str] = []
    for probe, names in sorted(matmuls.items()):
        found = _known(probe, (*kernels, *remedy), keep=keep, root=root)
        if found is not None:
            wrong += sorted(name for name in names if not found.get(name, False))
        elif remedy:
            wrong += sorted(names)  # a remedy that does not load does not help; without one, loading the graph fails
    return tuple(wrong)


def _known(probe: str, entries: Entries, *, keep: bool, root: Path) -> dict[str, bool] | None:
    """The result of a probe under some entries, from the cache if it was run before."""
    key = sha256(json.dumps([probe, entries, *_here(root)]).encode()).hexdigest()[:32]
    path = cache_folder() / "exactness" / f"{probe}-{key}.json"
    own = not foreign(path)  # ignore a cache that others can write
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        kept: dict[str, bool] | None = json.loads(path.read_text(encoding="utf-8")) if own else {}
        if own and (kept is None or all(type(value) is bool for value in kept.values())):
            return kept
    found = probing.run_probe(onnxruntime, (PROBES / f"{probe}.onnx").read_bytes(), entries)
    if keep and own:
        with suppress(OSError):  # without a writable cache, each start takes a few milliseconds more
            make_own(path.parent)
            write_whole(path, json.dumps(found).encode())
    return found


@lru_cache(maxsize=8)
def _here(root: Path) -> tuple[str, ...]:
    """The key of the results besides the entries: the processor, ONNX Runtime's version and the probes' hash."""
    probes = (PROBES / "sha256").read_text(encoding="utf-8").strip()
    name, flags = identify_processor(root)
    return name, " ".join(sorted(flags)), onnxruntime.__version__, probes


def _kind(grid: Grid) -> str:
    """The name of a grid in the probes."""
    zeros = "symmetric" if grid.symmetric else "zero points"
    return f"{grid.bits} bits, block {_nearest(grid.block_size, _BLOCKS)}, {zeros}"


def _folded(grid: Grid) -> str:
    return f"DequantizeLinear + MatMul, {grid.bits} bits, block {_nearest(grid.block_size, _FOLDED_BLOCKS)}"


def _nearest(block: int, blocks: tuple[int, ...]) -> int:
    """The probed block size to use for a block size; a whole row (0) counts as the longest."""
    return next((b for b in blocks if 0 < block <= b), blocks[-1])
