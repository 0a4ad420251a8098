"""What is recorded is neither lost nor put into another bundle."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.bundle import manifest as manifest_module
from edgekit.bundle import open_bundle, record
from edgekit.errors import BundleError
from edgekit.host import disk
from edgekit.types import Bundle, Interval, Quality, Settings, Tuning

Build = Callable[..., Bundle]

_ABOUT = Interval(0.5, 0.4, 0.6)
QUALITY = Quality(
    kld_mean=_ABOUT, kld_p99=_ABOUT, kld_p999=_ABOUT, top1=_ABOUT, ppl_ratio=_ABOUT, ppl=11.0, reference_ppl=10.0,
    reference="fp32", text="topics", text_sha256="0" * 64, window=512, tokens=4096, top_k=64, runtime="onnxruntime",
    accuracy_level=0,
)  # fmt: skip
SETTINGS = Settings(
    threads=1, spinning=False, pinned=False, prompt_graph="own", prefill_chunk=64, decode_graph_max_tokens=1
)
TUNING = Tuning("machine", "1", SETTINGS, kept=True, trials=(), left_out=(), waited=None, time="2026-01-01T00:00:00Z")


@pytest.fixture
def bundle(tmp_path: Path, build: Build) -> Bundle:
    return build(tmp_path / "out")


def machines(path: Path) -> set[str]:
    return {tuning.machine for tuning in open_bundle(path).manifest.tunings}


def test_of_two_recorders_none_is_lost(bundle: Bundle) -> None:
    one, other = open_bundle(bundle.path), open_bundle(bundle.path)
    record(one, quality=QUALITY)
    after = record(other, tuning=TUNING)
    assert (after.manifest.quality, after.manifest.tunings) == (QUALITY, (TUNING,))
    assert open_bundle(bundle.path) == after


RECORD = """
import sys
from dataclasses import replace
from edgekit.bundle import manifest as manifest_module
from edgekit.bundle import open_bundle, record
bundle = open_bundle(sys.argv[1])
tuning = bundle.manifest.tunings[0]
for n in range(50):
    record(bundle, tuning=replace(tuning, machine=f"{sys.argv[2]}{n}"))
"""


def test_two_processes_that_record_at_once_lose_nothing(bundle: Bundle) -> None:
    record(bundle, quality=QUALITY, tuning=TUNING)
    recorders = [subprocess.Popen([sys.executable, "-c", RECORD, str(bundle.path), word]) for word in "ab"]
    assert [recorder.wait() for recorder in recorders] == [0, 0]
    assert open_bundle(bundle.path).manifest.quality == QUALITY
    assert machines(bundle.path) == {f"{word}{n}" for word in "ab" for n in range(50)} | {"machine"}
    assert {p.name for p in bundle.path.iterdir() if p.name.startswith(".")} == set()


def test_what_was_measured_of_another_bundle_is_not_recorded(bundle: Bundle, build: Build) -> None:
    other = build(bundle.path, force=True, last=lambda: ir.Tensor(np.ones((7, 50), np.float32)))
    with pytest.raises(BundleError, match="the bundle was replaced since") as caught:
        record(bundle, quality=QUALITY)
    assert caught.value.hint
    assert open_bundle(bundle.path) == other


def test_the_same_bundle_built_again_takes_the_record(bundle: Bundle, build: Build) -> None:
    build(bundle.path, force=True)
    assert record(bundle, quality=QUALITY) == open_bundle(bundle.path)


def test_a_bundle_is_not_replaced_while_it_is_written(
    bundle: Bundle, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.bundle.write.locked", partial(disk.locked, patience=0.1))
    with disk.locked(bundle.path), pytest.raises(BundleError, match="locked by another process"):
        build(bundle.path, force=True)
    assert open_bundle(bundle.path) == bundle


def test_no_link_that_lies_in_the_bundle_is_written_through(bundle: Bundle, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in (f".edgekit.json-{os.getpid()}", ".edgekit-0123456789abcdef"):
        (bundle.path / name).symlink_to(victim)
    record(bundle, quality=QUALITY)
    assert victim.read_text() == "mine"
    assert open_bundle(bundle.path).manifest.quality == QUALITY


def test_a_manifest_that_is_a_link_becomes_a_file(bundle: Bundle, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.json"
    (bundle.path / "edgekit.json").rename(elsewhere)
    (bundle.path / "edgekit.json").symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    try:
        record(bundle, quality=QUALITY)
    except BundleError as error:  # a link that leads out of the bundle is not even opened
        assert error.hint
    assert elsewhere.read_bytes() == before


def test_the_manifest_keeps_its_mode(bundle: Bundle) -> None:
    (bundle.path / "edgekit.json").chmod(0o664)
    record(bundle, quality=QUALITY)
    assert stat.S_IMODE((bundle.path / "edgekit.json").stat().st_mode) == 0o664


def test_what_a_killed_recorder_left_is_swept_and_no_hindrance(bundle: Bundle, build: Build) -> None:
    left = bundle.path / disk.scrap_name()
    left.write_text("{")
    assert open_bundle(bundle.path) == bundle
    build(bundle.path, force=True)
    (bundle.path / left.name).write_text("{")
    record(bundle, quality=QUALITY)
    assert not (bundle.path / left.name).exists()


def test_a_full_disk_keeps_what_was_recorded(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    record(bundle, quality=QUALITY)
    before = sorted(p.name for p in bundle.path.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="not enough disk space") as caught:
        record(bundle, tuning=TUNING)
    assert caught.value.hint
    assert open_bundle(bundle.path).manifest.quality == QUALITY
    assert sorted(p.name for p in bundle.path.iterdir()) == before


def test_a_bundle_that_is_replaced_while_it_is_opened_is_opened_again(
    bundle: Bundle, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is of the old bundle, the files are of the new one."""
    left = [1, 1, 1]
    inside = manifest_module.inside

    def replaced(root: Path, name: str) -> Path:
        if left:
            left.pop()
            monkeypatch.setattr(manifest_module, "inside", inside)
            build(bundle.path, force=True, last=lambda: ir.Tensor(np.full((7, 50), len(left), np.float32)))
            monkeypatch.setattr(manifest_module, "inside", replaced)
        return inside(root, name)

    monkeypatch.setattr(manifest_module, "inside", replaced)
    opened = open_bundle(bundle.path)
    assert left == []
    assert opened.sha256 != bundle.sha256


def test_what_the_system_refuses_is_an_error_of_the_bundle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "the file")

    monkeypatch.setattr(manifest_module, "inside", refuse)
    with pytest.raises(BundleError, match="the file: cannot be read: Permission denied") as caught:
        open_bundle(bundle.path)
    assert caught.value.hint
