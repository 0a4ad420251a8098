"""A device with an ARM64 userland: qemu-user in its Python's place. Quality is by ARM's kernels; times mean nothing."""

from __future__ import annotations

from shlex import quote

import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.errors import EdgekitError, LabError
from edgekit.host.cache import cache_folder
from edgekit.lab.driver import device
from edgekit.lab.driver.system import push_system
from edgekit.lab.quality import verify_on
from edgekit.lab.remote import bench_on
from edgekit.run import find_arm64
from edgekit.testing import tiny_checkpoint
from tests.lab.devices import Counted, empty_wheel, python_at

SMALL = {"pp": (4,), "tg": (2,), "depth": (0,), "repetitions": 1, "warmup": 0, "threads": 1}


@pytest.fixture
def arm():
    try:
        found = find_arm64()
    except EdgekitError as error:
        pytest.skip(error.message)
    if "-L" not in found.command:
        pytest.skip("this machine is ARM already")
    return found


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The emulated system has numpy and onnxruntime, so that no wheels are downloaded."""
    made = empty_wheel(tmp_path)
    monkeypatch.setattr(device, "find_wheels", lambda *_: (made,))


@pytest.fixture
def address(arm, wheel, tmp_path, monkeypatch):
    home, site = arm.environment["PYTHONHOME"], arm.environment["PYTHONPATH"]
    body = f'export PYTHONHOME={home} PYTHONPATH="$PYTHONPATH:{site}"\nexec {" ".join(map(quote, arm.command))} "$@"'
    monkeypatch.setenv("PATH", f"{python_at(tmp_path / 'bin', body)}:/usr/bin:/bin")
    return f"local:{tmp_path / 'device'}"


@pytest.mark.arm64
def test_bench_and_verify_on_it(address, tmp_path):
    bundle = build_bundle(str(tiny_checkpoint(tmp_path / "m")), recipe="fast", out=tmp_path / "b")
    try:
        measurement = bench_on(address, bundle, **SMALL)
    except LabError as error:  # an emulator's ceilings are no ceilings
        assert "times this machine's limit" in error.message
    else:
        assert measurement.environment.processor_class == "dotprod"
    options = {"source": str(tmp_path / "m"), "tokens": 8, "window": 4, "max_kld": 9.0, "min_top1": 0.0}
    verification = verify_on(address, bundle.path, **options)
    assert verification.quality.processor_class == "dotprod"
    assert [c.status for c in verification.checks if c.name == "quality"] == ["pass"]


@pytest.mark.arm64
def test_a_phone_without_python_gets_a_system(arm, tmp_path, monkeypatch):
    # In the place of the phone's processor: what is started by the system's loader is emulated.
    emulator = " ".join(map(quote, arm.command[:-1]))
    body = f'while :; do case "$1" in *=*) export "$1"; shift;; *) break;; esac; done\nexec {emulator} "$@"'
    folder = python_at(tmp_path / "bin", body)
    (folder / "python3").rename(folder / "env")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    phone = Counted(tmp_path / "phone")
    python = push_system(phone)
    assert (python.machine, python.minor) == ("aarch64", arm.command[-1].rpartition("python")[2])
    assert python.libc.startswith("glibc 2.")
    assert phone.put_files == ["system.tar"]
    assert push_system(phone) == python
    assert phone.put_files == ["system.tar"]
    done = phone.run(f"{python.command} -c 'import ctypes, json, zipfile; print(6 * 7)'")
    assert (done.out, done.code) == (b"42\n", 0)


def test_without_the_system_here_the_way_to_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    assert not cache_folder().exists()
    with pytest.raises(LabError, match="no Python there") as caught:
        push_system(Counted(tmp_path / "phone"))
    assert "edgekit doctor --install arm64" in caught.value.hint
