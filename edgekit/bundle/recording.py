"""``record``: write measurements into edgekit.json, safely with concurrent writers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgekit.bundle.disk import writing
from edgekit.bundle.manifest import MANIFEST, manifest_bytes, open_bundle
from edgekit.errors import BundleError
from edgekit.host.disk import is_scrap, locked, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.types import ArmQuality, Bundle, Calibration, Measurement, NpuBuild, Quality, Tuning


def record(
    bundle: Bundle,
    *,
    quality: Quality | None = None,
    latency: Measurement | None = None,
    tuning: Tuning | None = None,
    arm: ArmQuality | None = None,
    calibration: Calibration | None = None,
    npus: Sequence[NpuBuild] = (),
) -> Bundle:
    """Write measurements into edgekit.json atomically; those not given keep their current value.

    A tuning replaces an older one of the same machine and runtime, an NPU's build that of the same device.

    Returns:
        The bundle with the new contents of edgekit.json, including what others recorded since ``bundle`` was opened.

    Raises:
        BundleError: edgekit.json cannot be written, another process holds its lock, or the bundle was replaced.
    """
    fresh = {npu.target.name: npu for npu in npus}
    with writing(bundle.path / MANIFEST), locked(bundle.path):
        now = open_bundle(bundle.path, check=False)
        if now.sha256 != bundle.sha256:
            raise BundleError(
                f"{bundle.path}: nothing was recorded: the bundle was replaced since it was opened",
                "measure the new bundle",
            )
        there = now.manifest
        manifest = replace(
            there,
            quality=quality or there.quality,
            latency=latency or there.latency,
            tunings=there.tunings if tuning is None else _with(tuning, there.tunings),
            arm=arm or there.arm,
            calibration=calibration or there.calibration,
            npus=tuple(fresh.get(npu.target.name, npu) for npu in there.npus),
        )
        _sweep(bundle.path)
        write_whole(bundle.path / MANIFEST, manifest_bytes(manifest))
    return replace(bundle, manifest=manifest)


def _with(tuning: Tuning, others: Sequence[Tuning]) -> tuple[Tuning, ...]:
    same = (tuning.machine, tuning.runtime)
    return (*(t for t in others if (t.machine, t.runtime) != same), tuning)


def _sweep(folder: Path) -> None:
    """Remove temporary files of killed processes; safe because we hold the lock."""
    for path in folder.iterdir():
        if is_scrap(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
