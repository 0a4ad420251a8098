"""Measure what the machine can do, and the fraction of it that a model reaches.

For decoding: the processor reads B bytes per second (peak, measured here); a token needs at least b bytes, so at most
B / b tokens per second are achievable; the model achieved r: MBU = r * b / B. For a prompt: the processor computes F
operations per second (measured here, times a factor, see below); a token needs f of them, so MFU = r * f / F. Needs are
lower bounds and ceilings upper bounds, so a fraction above 1 means that a number is wrong, and is rejected.

Bandwidth is measured at the model's own size. Decoding reads the same weights once per token, and weights that fit a
cache are read faster than from memory: relative to memory bandwidth, a tiny model would reach 300 %. So the probe
repeatedly reads an array of the weights' size from front to back, as decoding does, and benefits from caches in the
same way. SMALLEST bounds the array from below: smaller ones only matter if a token takes less than about 20
microseconds. LARGEST bounds it from above: nothing of that size stays in a cache.

The compute ceiling has a factor. The probe runs fp32 matmuls with numpy's BLAS, one on each of the runner's threads, at
their fastest size. A model whose matmuls use int8 activations (MatMulNBits with accuracy_level 4) uses other
instructions with more operations each, and may legitimately exceed the fp32 rate. An int8 probe would have to use the
runtime, which is what is being measured. So the fp32 rate is multiplied by the instruction set's advantage
(``gemm_factor``), which gives an upper bound. The factor is 1 for fp32 activations, and is part of the record.

Both ceilings are the best of their samples: other work on the machine can only lower a sample.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import MeasureError
from edgekit.estimate.needs import decode_bytes, prefill_flop
from edgekit.types import Ceilings, Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgekit.types import ModelSpec

SMALLEST = 1 << 20
LARGEST = 512 << 20
GEMM_SIZE = 384
"""Three such matrices fit a core's second-level cache; larger matmuls were slower on every machine tried."""


_INT8_FACTORS = (
    # flag in /proc/cpuinfo, int8 multiply-adds per cycle over fp32 ones of the same core, source
    ("amx_int8", 32.0),  # TDPBUSD: 1024 multiply-adds per cycle (16 * 64 * 16 in 16); two 512-bit fp32 FMAs: 32
    ("i8mm", 8.0),  # SMMLA: 32 multiply-adds on 128 bits; FMLA: 4
    ("asimddp", 4.0),  # SDOT: 16 on 128 bits; FMLA: 4
    ("avx2", 4.0),  # VPDPBUSD: 4 in the place of one fp32; without VNNI it is three instructions, so less
)
"""The first entry whose flag the processor has is used. From Intel's and Arm's instruction set manuals."""


def measure_ceilings(threads: int, working_set: int, repetitions: int = 5) -> Ceilings:
    """Measure read bandwidth and fp32 GEMM rate.

    Args:
        threads: for both probes; pass the runner's.
        working_set: bytes that the model reads per token, the size of the bandwidth probe's array.
        repetitions: samples of each, after a warm-up.
    """
    return Ceilings(
        bandwidth_bytes_per_s=measure_bandwidth(threads, working_set, repetitions),
        gemm_flop_per_s=measure_gemm(threads, repetitions),
    )


def measure_bandwidth(threads: int, working_set: int, repetitions: int = 5, seconds: float = 0.2) -> Series:
    """Bytes per second at which ``threads`` threads read an array of ``working_set`` bytes (SMALLEST to LARGEST).

    Each thread computes the maximum of its part as int32 (numpy vectorizes that on every processor and releases the
    interpreter lock), repeated for about ``seconds``; a sample is bytes read / wall seconds.
    """
    size = min(max(working_set, SMALLEST), LARGEST)
    array = np.ones(size // 4, np.int32)  # all-zero arrays share one page of the kernel
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:

        def read(passes: int) -> float:
            started = perf_counter()
            list(pool.map(_read, parts, [passes] * threads))
            return perf_counter() - started

        read(1)
        passes = max(1, int(seconds / read(1)))
        samples = tuple(array.nbytes * passes / read(passes) for _ in range(repetitions))
    return Series(f"read of {array.nbytes / 1e6:.0f} MB on {threads} threads", "B/s", samples)


def measure_gemm(threads: int, repetitions: int = 5, seconds: float = 0.2) -> Series:
    """FLOP per second of fp32 matmuls with numpy's BLAS, one at a time on each of ``threads`` threads.

    The BLAS itself uses one thread and the matrices fit the cores' caches, so that neither waiting nor memory lowers
    the rate. A sample is 2 * GEMM_SIZE^3 * matmuls / wall seconds. The series' name includes the BLAS.
    """
    random = np.random.default_rng(0)
    a = random.random((GEMM_SIZE, GEMM_SIZE), np.float32)
    outs = [np.empty_like(a) for _ in range(threads)]
    flop = 2 * GEMM_SIZE**3 * threads
    with _one_blas_thread() as blas, ThreadPoolExecutor(threads) as pool:

        def multiply(times: int) -> float:
            started = perf_counter()
            list(pool.map(_multiply, [a] * threads, outs, [times] * threads))
            return perf_counter() - started

        multiply(1)
        times = max(1, int(seconds / multiply(1)))
        samples = tuple(flop * times / multiply(times) for _ in range(repetitions))
    return Series(f"fp32 GEMM {GEMM_SIZE} of {blas} on each of {threads} threads", "FLOP/s", samples)


@contextmanager
def _one_blas_thread() -> Iterator[str]:
    """Keep numpy's BLAS to one thread; yields its name.

    A lab's device has no threadpoolctl: its driver limits the BLAS by environment before numpy is loaded.
    """
    try:
        from threadpoolctl import threadpool_info, threadpool_limits
    except ImportError:
        built = np.show_config(mode="dicts") or {}
        yield str(built["Build Dependencies"]["blas"]["name"]).removeprefix("scipy-")
        return
    with threadpool_limits(1, user_api="blas"):
        yield next((i["internal_api"] for i in threadpool_info() if i["user_api"] == "blas"), "an unknown BLAS")


def _multiply(a: NDArray[np.float32], out: NDArray[np.float32], times: int) -> None:
    for _ in range(times):
        np.matmul(a, a, out=out)


def _read(part: NDArray[np.int32], passes: int) -> None:
    for _ in range(passes):
        part.max()


def gemm_factor(int8_activations: bool, flags: frozenset[str]) -> float | None:
    """The maximum ratio of the model's arithmetic rate to the fp32 GEMM rate.

    Args:
        int8_activations: whether the matmuls use int8 activations.
        flags: the processor's, from cpu_flags().

    Returns:
        1.0 for fp32 activations; else the instruction set's factor, or None for an unknown processor.
    """
    if not int8_activations:
        return 1.0
    return next((factor for flag, factor in _INT8_FACTORS if flag in flags), None)


def roofline(
    series: Sequence[Series], ceilings: Ceilings, spec: ModelSpec, weights: int, factor: float | None
) -> tuple[tuple[str, float], ...]:
    """The fraction of the ceiling that the mean of every ``pp`` (MFU) and ``tg`` (MBU) series reaches.

    MBU = tokens/s * decode_bytes / best bandwidth. MFU = tokens/s * prefill_flop / tokens / (best GEMM rate * factor).
    Without a factor there is no MFU.

    Raises:
        MeasureError: a fraction is above 1.0: the timing, the probe or the byte count is wrong.
    """
    bandwidth = max(ceilings.bandwidth_bytes_per_s.samples)
    gemm = max(ceilings.gemm_flop_per_s.samples)
    found: list[tuple[str, float]] = []
    for one in series:
        if one.name.startswith("tg"):
            tokens, depth = map(int, one.name.removeprefix("tg").split("@"))
            fraction = one.mean * decode_bytes(weights, spec, depth, tokens) / bandwidth
        elif one.name.startswith("pp") and factor is not None:
            tokens = int(one.name.removeprefix("pp"))
            fraction = one.mean * prefill_flop(spec, tokens) / tokens / (gemm * factor)
        else:
            continue
        if fraction > 1.0:
            raise MeasureError(
                f"{one.name}: {one.mean:.1f} {one.unit} is {fraction:.2f} times this machine's limit, so a number is "
                f"wrong ({ceilings.bandwidth_bytes_per_s.name}: {bandwidth / 1e9:.1f} GB/s; "
                f"{ceilings.gemm_flop_per_s.name}: {gemm / 1e9:.0f} GFLOP/s)",
                "measure again on an idle machine: it was probably busy while its limits were measured",
            )
        found.append((one.name, fraction))
    return tuple(found)
