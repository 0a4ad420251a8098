"""Does the runtime compute a bundle's integer matmuls exactly on this processor? Known sums tell, once a machine.

ONNX Runtime picks its kernels by processor, and not all are exact. ``probes/`` holds small graphs with known sums (see
``graph/probes.py``). Those that a bundle needs are run when it is first opened on a machine, and what they say is kept
in the cache: by processor, ONNX Runtime, session entries and probe.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
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

PROBES = Path(__file__).with_name("probes")


UNSIGNED_WEIGHTS = (("session.x64quantprecision", "1"),)
"""Signed constant weights become unsigned ones with a zero point while a session is made. Unsigned by unsigned integers
are widened to 16 bits before they are multiplied: exact, and slower. Elsewhere than on x86 it changes nothing."""

REMEDIES: tuple[Entries, ...] = ((), UNSIGNED_WEIGHTS)
"""What to try, the fastest first."""

PROMPT_MATMULS = {"prompt_matmul": frozenset({"MatMulIntegerToFloat, 1 row", "MatMulIntegerToFloat, 16 rows"})}
"""The matmuls of a graph for prompts."""

_BLOCKS, _FOLDED_BLOCKS, _ROWS = (16, 32, 64, 128, 256), (32, 64, 128), ("1 row", "16 rows")


def folding_entry(accuracy_level: int) -> tuple[str, str]:
    """The entry that says at which level standard operators become MatMulNBits at load.

    Without it that is level 4, whatever the bundle was scored at.
    """
    return "session.qdq_matmulnbits_accuracy_level", str(accuracy_level)


@dataclass(frozen=True)
class Survey:
    """What one probe said.

    ``sums``: by matmul whether its sum came out, None where the runtime does not load the probe or the process died of
    it; ``died``: the status it ended with, else 0.
    """

    probe: str
    sums: dict[str, bool] | None
    died: int = 0

    @property
    def wrong(self) -> tuple[str, ...]:
        """Matmuls whose sums are wrong."""
        return tuple(name for name, right in (self.sums or {}).items() if not right)


def decoder_matmuls(manifest: Manifest) -> dict[str, frozenset[str]]:
    """What the decoder's graph of a bundle multiplies: names of matmuls by the probe that holds them."""
    found: dict[str, set[str]] = {}
    lacks, level = manifest.cpu_target.lacks, manifest.accuracy_level
    for grid, table in {(t.grid, t.name == EMBEDDING) for t in manifest.tensors if t.grid}:
        if "op:MatMulNBits" in lacks:
            found.setdefault("dequantize_matmul", set()).add(_folded(grid))
        else:
            kind = f"MatMulNBits, {_kind(grid)}, float32, level {level}"
            found.setdefault(f"matmul_nbits_level_{level}", set()).update(f"{kind}, {rows}" for rows in _ROWS)
        if table and "op:GatherBlockQuantized" not in lacks:
            found.setdefault("gather_block_quantized", set()).add(f"GatherBlockQuantized, {_kind(grid)}")
    return {probe: frozenset(names) for probe, names in found.items()}


def find_arithmetic(
    matmuls: Matmuls, kernels: Entries = (), *, keep: bool = True, root: Path = Path("/")
) -> Arithmetic:
    """Under which session entries matmuls are exact on this processor: the first of REMEDIES that makes all so.

    Args:
        matmuls: names by probe.
        kernels: session entries that the bundle sets anyway.
        keep: what the probes say is written into the cache.
        root: where ``proc`` is looked for.
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
    """Refuse a graph whose matmuls are wrong on this processor.

    Raises:
        RunError: some are.
    """
    if arithmetic.inexact:
        raise RunError(
            f"onnxruntime {onnxruntime.__version__} gives wrong sums on this processor "
            f"({processor_class() or 'of an unknown class'}): {'; '.join(arithmetic.inexact)}",
            hint="use another version of onnxruntime, or build without integers: `edgekit build --precision fp16`",
        )


def describe_arithmetic(decoder: Arithmetic, prompts: Arithmetic) -> str:
    """What a runner's matmuls are worth, and what was chosen for it.

    Args:
        decoder: of the decoder's graph, which was opened.
        prompts: of the graph for prompts, NOTHING or ``decoder`` where there is none.
    """
    if not decoder.probed and not prompts.probed:
        return "floating point"
    chosen = "exact by known sums"
    if not prompts.exact:
        return f"{chosen}; prompts on the decoder's graph, since their own gives wrong sums on this processor"
    if prompts.entries == UNSIGNED_WEIGHTS:
        chosen += "; prompts multiply unsigned weights, since signed ones saturate on this processor"
    return chosen


def survey(interpreter: Interpreter, entries: Entries = ()) -> tuple[Survey, ...]:
    """All probes, in processes of their own: a kernel that the processor lacks ends the process that runs it.

    Args:
        interpreter: who runs them.
        entries: session config entries.

    Raises:
        RunError: it does not start.
    """
    waiting = sorted(PROBES.glob("*.onnx"))
    found: list[Survey] = []
    settings = [f"{key}={value}" for key, value in (folding_entry(4), *entries)]
    while waiting:
        command = [*interpreter.command, probing.__file__, *map(str, waiting), *settings]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=interpreter.environment
        )
        lines = [json.loads(line)[1] for line in done.stdout.splitlines()]
        found += [Survey(path.stem, sums) for path, sums in zip(waiting, lines, strict=False)]
        waiting = waiting[len(lines) :]
        if waiting and not done.returncode:
            raise RunError(f"{interpreter.name}: the probes ended early", "report this, with what `doctor` prints")
        if waiting:
            found.append(Survey(waiting.pop(0).stem, None, died=done.returncode))
    return tuple(found)


def check_survey(name: str, interpreter: Interpreter) -> Check:
    """All probes where a bundle would run: which matmuls come out wrong, and what ends the process.

    What a bundle multiplies is looked at when it is opened: a matmul that none of its graphs has is no failure here.
    """
    found = survey(interpreter)
    wrong = [matmul for probe in found for matmul in probe.wrong]
    dead = [probe.probe for probe in found if probe.died]
    count = sum(len(probe.sums or ()) for probe in found)
    where = interpreter.processor_class or "unknown class"
    detail = f"{where}: {count - len(wrong)} of {count} integer matmuls are exact by known sums"
    if wrong:
        detail += f"; wrong by themselves: {'; '.join(wrong)}"
    if dead:
        detail += f"; the process dies of: {', '.join(dead)}"
    return Check(name, "info", detail)


def _wrong(matmuls: Matmuls, kernels: Entries, remedy: Entries, *, keep: bool, root: Path) -> tuple[str, ...]:
    wrong: list[str] = []
    for probe, names in sorted(matmuls.items()):
        found = _known(probe, (*kernels, *remedy), keep=keep, root=root)
        if found is not None:
            wrong += sorted(name for name in names if not found.get(name, False))
        elif remedy:
            wrong += sorted(names)  # a remedy that does not load is none; a graph without one refuses by itself
    return tuple(wrong)


def _known(probe: str, entries: Entries, *, keep: bool, root: Path) -> dict[str, bool] | None:
    """What a probe says under some entries, from the cache where it was run before."""
    key = sha256(json.dumps([probe, entries, *_here(root)]).encode()).hexdigest()[:32]
    path = cache_folder() / "exactness" / f"{probe}-{key}.json"
    own = not foreign(path)  # what others could have written is not believed
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        kept: dict[str, bool] | None = json.loads(path.read_text(encoding="utf-8")) if own else {}
        if own and (kept is None or all(type(value) is bool for value in kept.values())):
            return kept
    found = probing.run_probe(onnxruntime, (PROBES / f"{probe}.onnx").read_bytes(), entries)
    if keep and own:
        with suppress(OSError):  # a cache that cannot be written costs some milliseconds at each start
            make_own(path.parent)
            write_whole(path, json.dumps(found).encode())
    return found


@lru_cache(maxsize=8)
def _here(root: Path) -> tuple[str, ...]:
    """What sums depend on besides the entries: the processor, ONNX Runtime and the probes themselves."""
    probes = (PROBES / "sha256").read_text(encoding="utf-8").strip()
    name, flags = identify_processor(root)
    return name, " ".join(sorted(flags)), onnxruntime.__version__, probes


def _kind(grid: Grid) -> str:
    """A grid as the probes name it."""
    zeros = "symmetric" if grid.symmetric else "zero points"
    return f"{grid.bits} bits, block {_nearest(grid.block_size, _BLOCKS)}, {zeros}"


def _folded(grid: Grid) -> str:
    return f"DequantizeLinear + MatMul, {grid.bits} bits, block {_nearest(grid.block_size, _FOLDED_BLOCKS)}"


def _nearest(block: int, blocks: tuple[int, ...]) -> int:
    """The probed block that stands for one; a whole row (0) counts as the longest."""
    return next((b for b in blocks if 0 < block <= b), blocks[-1])
