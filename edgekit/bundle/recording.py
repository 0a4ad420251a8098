"""``record``: what was measured goes into edgekit.json, beside what others write there at the same time."""

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
    """Write what was measured into edgekit.json, in one stroke; what is not given stays as it is there now.

    A tuning takes the place of an older one of the same machine and runtime, what is for an NPU that of its device.

    Returns:
        The bundle with all that edgekit.json holds now, what others recorded since ``bundle`` was opened included.

    Raises:
        BundleError: edgekit.json cannot be written, another process holds it, or the bundle was replaced by another.
    """
    fresh = {npu.target.name: npu for npu in npus}
    with writing(bundle.path / MANIFEST), locked(bundle.path):
        now = open_bundle(bundle.path, check=False)
        if now.sha256 != bundle.sha256:
            raise BundleError(
                f"{bundle.path}: nothing was recorded: another bundle was put here since this one was opened",
                "measure it again",
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
    """Remove what killed recorders were making: the lock is ours, so nobody is making it any more."""
    for path in folder.iterdir():
        if is_scrap(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
