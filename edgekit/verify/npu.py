"""The NPU checks of ``verify``: binaries are intact and for this chip, and their quality on the emulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit import words
from edgekit.build.npu_emulate import STEPS, TOKENS, emulate_build, make_probe, shortfalls
from edgekit.build.npu_plan import npu_of, plugin_of
from edgekit.bundle.reading import read_context, read_placements
from edgekit.errors import EdgekitError
from edgekit.run.npu import require_compatible, require_compiler
from edgekit.types import Check, Progress, silent
from edgekit.types.npu import ROLES
from edgekit.verify.text import NO_SOURCE, PASS_SOURCE, REBUILD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgekit.build.npu_emulate import Probe
    from edgekit.measure import Text
    from edgekit.types import Bundle, Checkpoint
    from edgekit.types.device import AccuracyLimits
    from edgekit.types.npu import CompiledGraph, Emulation, NpuBuild


@dataclass(frozen=True)
class OnEmulator:
    """What the emulator runs: ``tokens`` at once, then ``steps`` one by one, limited by the cache."""

    tokens: int = TOKENS
    steps: int = STEPS


def verify_npus(
    bundle: Bundle,
    checkpoint: Checkpoint | None,
    wanted: OnEmulator,
    *,
    text: Text | None = None,
    progress: Progress = silent,
) -> tuple[tuple[Check, ...], tuple[NpuBuild, ...]]:
    """Check a bundle's graphs for the NPU of each device.

    Args:
        bundle: a bundle whose files passed their checks.
        checkpoint: the FP32 source, None if it is not available.
        wanted: how many tokens to run.
        text: the text to run; by default CPython's help topics.
        progress: called with the tokens run.

    Returns:
        The checks, and the builds that were run, with their new emulator results.
    """
    checks: list[Check] = []
    run: list[NpuBuild] = []
    probes: dict[int, Probe] = {}
    for build in bundle.manifest.npus:
        name = build.target.name
        if npu_of(build.target).plugin is None:
            checks.append(Check(f"{name}: graphs", "info", "compiled on the device; cannot be checked here"))
            continue
        found = (_check_binaries(bundle.path, build), _check_chip(bundle.path, build))
        checks += found
        reason = _unable(build, found, checkpoint)
        if reason or checkpoint is None:
            checks += [Check(f"{name}: emulator", "skip", *(reason or ("",)))]
            continue
        try:
            steps = min(wanted.steps, build.past - 1)
            count = min(wanted.tokens + steps, build.past)
            if count not in probes:
                probes[count] = make_probe(checkpoint, count, text=text, progress=progress)
            emulations = emulate_build(bundle.path, build, probes[count], steps=steps, progress=progress)
        except EdgekitError as error:
            checks += [Check(f"{name}: emulator", "fail", error.message, error.hint)]
            continue
        checks += _judge(bundle, build, emulations)
        run.append(build.emulated(emulations))
    return tuple(checks), tuple(run)


def _unable(build: NpuBuild, found: tuple[Check, ...], checkpoint: Checkpoint | None) -> tuple[str, str] | None:
    """Return why the emulator cannot run and a hint, None if it can."""
    if any(check.status == "fail" for check in found):
        return "the binaries are damaged", REBUILD
    try:
        require_compiler(plugin_of(build.target))
    except EdgekitError as error:
        return error.message, error.hint
    if checkpoint is None:
        return NO_SOURCE, PASS_SOURCE
    return None


def _check_binaries(root: Path, build: NpuBuild) -> Check:
    """Check that each compiled graph is one node with its binary, and agrees with the manifest."""
    wrong = [f"{graph.context}: {problem}" for graph in build.graphs for problem in _problems(root, graph)]
    wrong += [f"{build.placement}: {problem}" for problem in _misplaced(root, build)]
    name = f"{build.target.name}: binaries"
    if wrong:
        return Check(name, "fail", "; ".join(wrong), REBUILD)
    binaries = {graph.binary for graph in build.graphs}
    size = words.size(sum((root / binary).stat().st_size for binary in binaries))
    nodes = ", ".join(f"{sum(g.nodes for g in build.chain(role))} ({role})" for role in ROLES)
    return Check(name, "pass", f"{len(build.graphs)} graphs, {len(binaries)} binaries of {size}; nodes {nodes}, CPU 0")


def _misplaced(root: Path, build: NpuBuild) -> Iterator[str]:
    """Yield how the recorded placement differs from the manifest."""
    try:
        placed = {placement.graph: placement for placement in read_placements(root / build.placement)}
    except EdgekitError as error:
        yield error.message
        return
    for role in ROLES:
        for graph in build.chain(role):
            name = graph.context.removeprefix(f"{build.folder}/")
            nodes = placed[name].nodes if name in placed else ()
            if len(nodes) != graph.nodes:
                yield f"it lists {len(nodes)} nodes of {name}, the manifest {graph.nodes}"
            elif off := placed[name].off(build.target.provider):
                yield f"{len(off)} nodes of {name} run off the NPU, first {off[0].operator} '{off[0].node}'"


def _problems(root: Path, graph: CompiledGraph) -> Iterator[str]:
    try:
        facts = read_context(root / graph.context)
    except EdgekitError as error:
        yield error.message
        return
    if facts.others:
        yield f"{', '.join(sorted(set(facts.others)))} would run on the CPU"
    if (root / graph.context).parent / facts.binary != root / graph.binary:
        yield f"it opens {facts.binary}, but the manifest lists {graph.binary}"
    elif not (root / graph.binary).is_file():
        yield f"{graph.binary} is missing"
    if facts.compatibility != graph.compatibility:
        yield f"its compatibility info is {facts.compatibility!r}, in the manifest {graph.compatibility!r}"


def _check_chip(root: Path, build: NpuBuild) -> Check:
    """Check that the graphs are for the chip in the options, and not from a newer compiler than the installed one."""
    name, plugin = f"{build.target.name}: chip", plugin_of(build.target)
    graphs = [root / graph.context for graph in build.graphs]
    try:
        require_compatible(plugin, build.target.provider, build.options, graphs, tools=build.tools)
    except EdgekitError as error:
        return Check(name, "fail", error.message, error.hint)
    chip = dict(build.options).get(plugin.chip)
    tools = ", ".join(f"{package} {version}" for package, version in build.tools)
    return Check(name, "pass", f"{f'{plugin.chip} {chip}, ' if chip else ''}compiled by {tools}")


def _judge(bundle: Bundle, build: NpuBuild, emulations: tuple[Emulation, ...]) -> Iterator[Check]:
    """Compare each emulated graph with the limits of its scheme."""
    precision = bundle.manifest.recipe.precision
    scheme = next((r for r in npu_of(build.target).schemes if r.activations == build.activations), None)
    limits = scheme.limits_for(precision) if scheme else None
    for emulation in emulations:
        name = f"{build.target.name}: {emulation.role}"
        short = shortfalls(limits, emulation) if limits else ()
        if short:
            hint = "build with more bits: `edgekit build --precision int8`"
            yield Check(name, "fail", "; ".join(s.removeprefix(f"{emulation.role}: ") for s in short), hint)
            continue
        tokens = f"{emulation.tokens} token{'s' * (emulation.tokens > 1)}"
        yield Check(name, "pass", f"{emulation_words(emulation, limits)}; {tokens} of {emulation.text}")


def emulation_words(emulation: Emulation, limits: AccuracyLimits | None) -> str:
    """Describe the quality of an emulated graph, with its limits if there are any."""
    total, npu = emulation.total, emulation.npu
    top1, kld = (f" (limit {words.percent(limits.top1)})", f" (limit {limits.kld:g})") if limits else ("", "")
    return (
        f"emulated: top-1 {words.percent(total.top1)}{top1}, KL {words.number(total.kld)}{kld} against "
        f"FP32; the NPU alone: top-1 {words.percent(npu.top1)}, KL {words.number(npu.kld)}, cosine {npu.cosine:.5f}; "
        f"{'bitwise repeatable' if emulation.repeatable else 'not repeatable'}"
    )
