"""What a token costs on an NPU, estimated: no such device is here to measure. From the bytes that the compiler reports.

A token takes at least as long as its bytes take through the DRAM:

    bytes a token = (read + written + spilled + filled) of one run of the graph, over all parts / tokens of a run
    floor         = bytes a token / the device's bandwidth
    tok/s         = efficiency * bandwidth / bytes a token          (decoding; the lowest and highest efficiency)

What the host does (the token's embedding, the cache's copy) and what the NPU computes come on top of the floor. A
prompt's graph is bounded by arithmetic as well, so it has a floor and no range of speeds.
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
    """What a token of one graph costs on a device; nothing of it was measured on one.

    ``traffic`` are the DRAM bytes of a run over ``tokens`` with ``context`` slots of cache, summed over the parts of a
    model that was split. ``bandwidth_bytes_per_s`` and ``efficiency`` are the device file's, None where it does not
    know them. ``floor_ms`` a token; ``tokens_per_s`` its likely range, of decoding alone. ``formula`` has the numbers
    filled in.
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
    """Estimates of a build's graphs, as they were executed on the emulator; none for one whose bytes are not known."""
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
    """What a token costs on a chain of graphs; None where the compiler did not report the bytes of each.

    Args:
        target: the device.
        role: of the chain.
        tokens: of one run.
        context: slots of the cache.
        traffics: the bytes of one run of each part.
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
        return f"{each}; the device's bandwidth is not known"
    floor = f"floor = {each} / {rate / 1e9:g} GB/s"
    if not efficiency:
        return floor
    return f"{floor}; tok/s = {efficiency[0]:g} to {efficiency[1]:g} of {rate / 1e9:g} GB/s / {each}"
