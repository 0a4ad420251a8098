"""The system for emulated ARM: what is said where something is missing. Nothing is fetched here."""

import stat

import pytest

from edgekit.errors import RunError
from edgekit.run import arm64
from edgekit.run.runtime import onnxruntime


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An x86 machine with an empty cache and no program but those that a test makes."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(arm64.platform, "machine", lambda: "x86_64")
    (tmp_path / "bin").mkdir()


@pytest.fixture
def program(tmp_path):
    """Makes a program of a shell script."""

    def make(name, script="exit 0"):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


@pytest.fixture
def system(tmp_path):
    """What install_arm64 leaves, as far as find_arm64 looks."""
    root = tmp_path / "cache" / "arm64"
    (root / "usr/bin").mkdir(parents=True)
    for name in ("python3.9", "python3-config", "pdb3.9"):
        (root / "usr/bin" / name).touch()
    (root / "site" / f"onnxruntime-{onnxruntime.__version__}.dist-info").mkdir(parents=True)
    return root


@pytest.mark.parametrize("call", [arm64.find_arm64, arm64.install_arm64])
def test_without_qemu_the_hint_installs_it(call, tmp_path):
    with pytest.raises(RunError, match="not installed") as caught:
        call()
    assert caught.value.hint == "apt-get install qemu-user-static"
    assert not (tmp_path / "cache").exists()


def test_without_the_system_the_hint_makes_it(program):
    program("qemu-aarch64")
    with pytest.raises(RunError, match="not installed") as caught:
        arm64.find_arm64()
    assert "edgekit doctor --install arm64" in caught.value.hint


def test_a_system_for_another_runtime_is_refused(program, system):
    program("qemu-aarch64-static")
    (system / "site" / f"onnxruntime-{onnxruntime.__version__}.dist-info").rename(
        system / "site/onnxruntime-0.dist-info"
    )
    with pytest.raises(RunError, match="another onnxruntime") as caught:
        arm64.find_arm64()
    assert "edgekit doctor --install arm64" in caught.value.hint


def test_the_emulated_python_sees_only_its_own_system(program, system):
    qemu = program("qemu-aarch64-static")
    found = arm64.find_arm64()
    assert found.command == (str(qemu), "-cpu", "cortex-a76", "-L", str(system), str(system / "usr/bin/python3.9"))
    assert found.environment["PYTHONPATH"] == str(system / "site")
    assert "PATH" not in found.environment
    assert "emulated" in found.name


def test_on_arm_itself_nothing_is_emulated(monkeypatch):
    monkeypatch.setattr(arm64.platform, "machine", lambda: "aarch64")
    found = arm64.find_arm64()
    assert found == arm64.this_interpreter()
    assert "emulated" not in found.name


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_other_distributions_are_told(program, missing):
    for name in {"qemu-aarch64-static", "apt-get", "dpkg-deb"} - {missing}:
        program(name)
    with pytest.raises(RunError, match=f"{missing} is not installed") as caught:
        arm64.install_arm64()
    assert "Debian" in caught.value.hint


def test_what_apt_says_is_passed_on_and_nothing_is_left(program, tmp_path):
    program("qemu-aarch64-static")
    program("dpkg-deb")
    program(
        "apt-get", 'echo reading >&2; echo "E: Unable to locate package python3-minimal" >&2; echo bye >&2; exit 100'
    )
    with pytest.raises(RunError, match="apt-get failed to set up the ARM system: E: Unable to locate") as caught:
        arm64.install_arm64()
    assert "APT::Architecture=arm64" in caught.value.hint
    assert list((tmp_path / "cache").iterdir()) == []


def test_packages_without_a_python_are_no_system(program, tmp_path):
    for name in ("qemu-aarch64-static", "dpkg-deb", "apt-get"):
        program(name)
    with pytest.raises(RunError, match="no Python interpreter"):
        arm64.install_arm64()
    assert list((tmp_path / "cache").iterdir()) == []
