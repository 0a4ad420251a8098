"""Estimated cost of a token on an NPU, from the DRAM traffic that its compiler reports. Not measured on a device.

A token takes at least as long as its bytes take through the DRAM:

    bytes per token = (read + written + spilled + filled) of one run of the graph, over all parts / tokens per run
    floor           = bytes per token / the device's bandwidth
    tok/s           = efficiency * bandwidth / bytes per token      (decoding; for the lowest and highest efficiency)

Work on the host (the token's embedding, copying the cache) and computation on the NPU add to the floor. A prompt's
graph is also bound by arithmetic, so it has a floor but no range of speeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.types.npu import ROLES, NpuBuild, Role, Traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types.device import Target


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a token in one graph on a device, not measured.

    ``traffic``: DRAM bytes of a run over ``tokens`` with ``context`` cache slots, summed over the parts of a split
    model. ``bandwidth_bytes_per_s`` and ``efficiency`` come from the device's file, None if unknown. ``floor_ms`` is
    per token; ``tokens_per_s`` is the likely range, for decoding only. ``formula`` has the numbers filled in.
    """

    target: str
    role: Role
    tokens: int
    context: int
    traffic: Traffic
    bytes_per_token: float
    bandwidth_bytes_per_s: float | None
    efficiency: tuple[float, float] | None
    floor_ms: float | None
    tokens_per_s: tuple[float, float] | None
    formula: str


def estimate_build(build: NpuBuild) -> tuple[Estimate, ...]:
    """Estimate each graph of a build as run on the emulator; graphs with unknown traffic are left out."""
    chains = [(role, build.chain(role)) for role in ROLES]
    found = (
        estimate(build.target, role, chain[0].tokens, build.past, [graph.traffic for graph in chain])
        for role, chain in chains
        if chain
    )
    return tuple(e for e in found if e)


def estimate(
    target: Target, role: Role, tokens: int, context: int, traffics: Sequence[Traffic | None]
) -> Estimate | None:
    """Estimate a token's cost in a chain of graphs; None if the compiler did not report the traffic of each part.

    Args:
        target: the device.
        role: role of the chain.
        tokens: tokens per run.
        context: slots of the cache.
        traffics: DRAM bytes of one run of each part.
    """
    known = [traffic for traffic in traffics if traffic]
    if not known or len(known) < len(traffics):
        return None
    traffic = Traffic(*(sum(getattr(t, kind) for t in known) for kind in ("read", "written", "spilled", "filled")))
    each, rate = traffic.total / tokens, target.bandwidth_bytes_per_s
    efficiency = target.npu.efficiency if target.npu and role == "decode" else None
    speeds = (efficiency[0] * rate / each, efficiency[1] * rate / each) if rate and efficiency else None
    return Estimate(
        target=target.name,
        role=role,
        tokens=tokens,
        context=context,
        traffic=traffic,
        bytes_per_token=each,
        bandwidth_bytes_per_s=rate,
        efficiency=efficiency,
        floor_ms=1e3 * each / rate if rate else None,
        tokens_per_s=speeds,
        formula=_formula(traffic.total, tokens, rate, efficiency),
    )


def _formula(total: int, tokens: int, rate: float | None, efficiency: tuple[float, float] | None) -> str:
    each = f"{total:,} B" if tokens == 1 else f"{total:,} B / {tokens} tokens"
    if not rate:
        return f"{each}; the device's bandwidth is unknown"
    floor = f"floor = {each} / {rate / 1e9:g} GB/s"
    if not efficiency:
        return floor
    return f"{floor}; tok/s = {efficiency[0]:g} to {efficiency[1]:g} of {rate / 1e9:g} GB/s / {each}"
