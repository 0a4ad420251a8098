"""Tables of NPU graphs: compilation, emulated quality, and the estimated cost of a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from edgekit import words
from edgekit.cli.layout import columns, facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from edgekit.build.dry_run import TargetCheck, TargetTried
    from edgekit.cli.documents import Estimated
    from edgekit.estimate.npu_cost import Estimate
    from edgekit.types import Manifest, NpuBuild
    from edgekit.types.npu import Emulation, Traffic

LOSSES = (("total", "total"), ("quantization", "lost by quantization"), ("npu", "lost by the NPU"))
"""Fields of an Emulation and the names of their rows."""


def npu_tables(manifest: Manifest, build: NpuBuild, estimates: Sequence[Estimate]) -> Iterator[RenderableType]:
    """Show everything about one device of a bundle."""
    npu = build.target.npu
    yield Text.assemble(
        (build.target.name, "bold"),
        f": {npu.name if npu else build.target.provider}, activations {build.activations}, "
        f"a cache of {words.count(build.past)} tokens, compiled by {_last_tool(build)}",
    )
    yield _graphs_table(build)
    yield ""
    yield emulations_table(build.emulations) if build.emulations else Text("not run on an emulator")
    if build.emulations:
        yield Text(f"emulated, on {build.emulations[0].text}; KL in nats per token", style="dim")
    yield ""
    yield facts([*_file_rows(manifest, build), *estimate_rows(estimates)])


def npu_words(build: NpuBuild) -> str:
    """One line about one device of a bundle."""
    from edgekit.estimate.npu_cost import estimate_build

    said = [f"activations {build.activations}, a cache of {words.count(build.past)} tokens, {_last_tool(build)}"]
    said += [
        f"{e.role} emulated: top-1 {words.percent(e.total.top1)}, KL {words.number(e.total.kld)}"
        for e in build.emulations
    ]
    if not build.emulations:
        said.append("not run on an emulator")
    said += [f"{e.role} estimated: {estimate_words(e)}" for e in estimate_build(build) if e.role == "decode"]
    return "; ".join(said)


def _last_tool(build: NpuBuild) -> str:
    return " ".join(build.tools[-1]) if build.tools else build.target.provider


def _graphs_table(build: NpuBuild) -> Table:
    """A row for each graph compiled alone; graphs with shared weights have the same nodes."""
    table = columns("graph", "tokens>", "nodes>", "on the CPU>", "compile time>", "peak RSS>", "DRAM/run>")
    for g in build.graphs:
        if not g.shared:
            name = g.context.rsplit("/", 1)[-1].removesuffix(".onnx")
            traffic = words.size(g.traffic.total) if g.traffic else "not reported"
            # Compilation refuses an EPContext graph with any other node, so none is on the CPU.
            cells = (str(g.tokens), words.count(g.nodes), "0", words.seconds(g.seconds), words.size(g.peak_rss_bytes))
            table.add_row(name, *cells, traffic)
    return table


def emulations_table(emulations: Sequence[Emulation]) -> Table:
    """Three rows for each graph: the total loss, and the parts of quantization and of the NPU."""
    table = columns("emulated", "tokens>", "", "top-1>", "KL>", "cosine>", "repeatable")
    for e in emulations:
        for field, name in LOSSES:
            a, first = getattr(e, field), field == LOSSES[0][0]
            head = (e.role, str(e.tokens)) if first else ("", "")
            same = ("yes" if e.repeatable else Text("no", style="bold red")) if first else ""
            table.add_row(*head, name, words.percent(a.top1), words.number(a.kld), f"{a.cosine:.5f}", same)
    return table


def _file_rows(manifest: Manifest, build: NpuBuild) -> Iterator[tuple[str, str]]:
    """The binaries, which of them ran, and what to push to the device."""
    sizes = {file.path: file.bytes for file in manifest.files}
    for shared, name in ((False, "binaries"), (True, "shared")):
        graphs = [g for g in build.graphs if g.shared == shared]
        binaries = sorted({g.binary for g in graphs})
        if not binaries:
            continue
        total = words.size(sum(sizes.get(path, 0) for path in binaries))
        if all(g.executed for g in graphs):
            ran = "run on the emulator"
        else:
            ran = "not run: emulators cannot load shared weights" if shared else "not run"
        yield name, f"{total} in {', '.join(path.removeprefix(f'{build.folder}/') for path in binaries)}: {ran}"
    inside = (path for path in sizes if path.startswith(f"{build.folder}/"))
    total = words.size(sum(sizes[path] for path in inside if not path.startswith(f"{build.folder}/shared/")))
    yield "push", f"{build.folder}/, {total} without shared/, which the device does not need (docs/npu-device.md)"


def estimate_rows(estimates: Sequence[Estimate]) -> Iterator[tuple[str, str]]:
    """A row for each graph, and below it the formula with its numbers."""
    for e in estimates:
        yield f"{e.role}, estimated", estimate_words(e)
        yield "", e.formula


def estimate_words(e: Estimate) -> str:
    """``72.1 MB of DRAM per token at 1,024 cache slots; at least 1.2 ms per token; 120 to 500 tok/s``, where known."""
    said = [f"{words.size(e.bytes_per_token)} of DRAM per token at {words.count(e.context)} cache slots"]
    if e.floor_ms is not None:
        said.append(f"at least {words.number(e.floor_ms)} ms per token")
    if e.tokens_per_s:
        said.append(" to ".join(words.number(rate) for rate in e.tokens_per_s) + " tok/s")
    return "; ".join(said)


_KINDS = ("read>", "written>", "spilled>", "filled>")


def _kinds(t: Traffic) -> Iterator[str]:
    return (words.size(count) for count in (t.read, t.written, t.spilled, t.filled))


def estimates_table(estimates: Sequence[Estimate]) -> Iterator[RenderableType]:
    """DRAM bytes and the speeds they allow, by device, graph and context; then each formula."""
    table = columns("estimated", "graph", "context>", *_KINDS, "per token>", "least time>", "tok/s>")
    for e in estimates:
        floor = "unknown" if e.floor_ms is None else f"{words.number(e.floor_ms)} ms"
        speeds = " to ".join(words.number(rate) for rate in e.tokens_per_s) if e.tokens_per_s else ""
        cost = (words.size(e.bytes_per_token), floor, speeds)
        table.add_row(e.target, e.role, words.count(e.context), *_kinds(e.traffic), *cost)
    yield table
    for e in estimates:
        yield Text(f"{e.target} {e.role} at {words.count(e.context)}: {e.formula}", style="dim")


def estimated_tables(estimated: Estimated) -> Iterator[RenderableType]:
    """Show what ``bench`` prints instead of a measured speed."""
    if not estimated.estimates:
        yield Text(f"{estimated.note}: none", style="yellow")
    else:
        yield Text(f"{estimated.note}:", style="yellow")
        yield from estimates_table(estimated.estimates)
    yield Text(f"  edgekit bench {estimated.bundle} --cpu    measures the CPU graph", style="dim")


# --- targets check ----------------------------------------------------------------------------


def check_tables(check: TargetCheck) -> Iterator[RenderableType]:
    """Show each graph and where its nodes run, refused nodes and rewrites for them, and the bytes of a token."""
    whole = check.layers == check.all_layers
    layers = f"all {check.layers} layers" if whole else f"1 of {check.all_layers} layers (the middle one)"
    yield Text.assemble((check.model, "bold"), f": {layers} and the head, compiled on this machine")
    cures = dict(check.cures)
    for tried in check.targets:
        yield ""
        yield Text.assemble(
            (tried.target.name, "bold"),
            f": {tried.precision} weights (recipe {tried.recipe}), {tried.activations} activations",
        )
        yield _tried_table(tried)
        yield from _refused_tables(tried, cures)
    yield ""
    if whole:
        yield from estimates_table([e for tried in check.targets for e in tried.estimates])
    else:
        yield _bytes_table(check)
        yield Text(
            "DRAM bytes per run that the compiler reports for this layer and the head; --whole counts all", style="dim"
        )


def _bytes_table(check: TargetCheck) -> Table:
    table = columns("target", "graph", "context>", *_KINDS, "per token>")
    for tried in check.targets:
        for g in tried.graphs:
            if g.traffic:
                each = words.size(g.traffic.total / g.tokens)
                table.add_row(tried.target.name, g.role, words.count(g.context), *_kinds(g.traffic), each)
    return table


def _tried_table(tried: TargetTried) -> Table:
    table = columns("graph", "context>", "nodes>", "on the NPU>", "refused>", "compile time>", "peak RSS>", "")
    for g in tried.graphs:
        nodes, off = len(g.placement.nodes), len(g.placement.off(tried.target.provider))
        said = Text(g.error or "compiled", style="red" if g.error else "green")
        compiled = ("", "") if g.error else (words.seconds(g.seconds), words.size(g.peak_rss_bytes))
        name = g.placement.graph.removesuffix(".onnx")
        table.add_row(name, words.count(g.context), str(nodes), str(nodes - off), str(off), *compiled, said)
    return table


def _refused_tables(tried: TargetTried, cures: Mapping[str, str]) -> Iterator[RenderableType]:
    """A row for each operator and reason, over all graphs."""
    rows: dict[tuple[str, str], list[str]] = {}
    for graph in tried.graphs:
        for node in graph.placement.off(tried.target.provider):
            rows.setdefault((node.operator, node.reason), []).append(node.node)
    if not rows:
        return
    yield ""
    table = columns("refused", "node", "nodes>", "reason", "rewrite")
    for (operator, reason), nodes in rows.items():
        cure = f"edgekit/{cures[operator]}" if cures.get(operator) else "none in edgekit/lower"
        table.add_row(operator, nodes[0], str(len(nodes)), reason or "not reported", cure)
    yield table
