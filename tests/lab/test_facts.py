"""Facts of a device, read with the tools of three systems, and room on it."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgekit import record
from edgekit.errors import LabError
from edgekit.host.processor import processor_class, processor_name
from edgekit.lab.facts import read_facts, require_room
from edgekit.lab.job import start
from edgekit.lab.lease import lease
from edgekit.lab.transports.local import Local
from edgekit.types import DeviceFacts

TOOLS = ("system", "busybox", "toybox")


def device_with(tools: str, folder: Path, monkeypatch) -> Local:
    """This machine as a device whose only programs are those of one box, and its shell."""
    if tools != "system":
        box, shell = shutil.which(tools), shutil.which("mksh" if tools == "toybox" else "busybox")
        if not box or not shell:
            pytest.skip(f"needs {tools} and a shell (apt-get install busybox-static toybox mksh)")
        programs = folder / "programs"
        programs.mkdir()
        names = subprocess.run(
            [box] if tools == "toybox" else [box, "--list"], capture_output=True, text=True, check=True
        )
        for name in names.stdout.split():
            (programs / name).symlink_to(box)
        if tools == "toybox":  # Android has grep and mksh beside it, and awk from elsewhere
            (programs / "sh").symlink_to(shell)
        monkeypatch.setenv("PATH", str(programs))

    class Device(Local):
        def _start(self, command, stdin, stderr):
            return subprocess.Popen(
                ("sh", "-c", command), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
            )

    return Device("local", folder / "home")


@pytest.fixture(params=TOOLS)
def device(request, tmp_path, monkeypatch):
    return device_with(request.param, tmp_path, monkeypatch)


def test_facts_are_those_of_this_machine(device):
    facts = read_facts(device)
    assert facts.machine == platform.machine()
    assert facts.cores == os.cpu_count()
    assert facts.memory_bytes == psutil.virtual_memory().total
    assert facts.free_memory_bytes == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    assert facts.free_disk_bytes == pytest.approx(shutil.disk_usage(Path(device.home).parent).free, rel=0.1)
    assert facts.processor == processor_name()
    assert facts.processor_class == processor_class()
    assert facts.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert facts.identity == Path("/etc/machine-id").read_text().strip()
    assert not Path(device.home).exists()
    assert record.from_json(DeviceFacts, record.to_json(facts)) == facts


def test_the_library_and_python_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    facts = read_facts(device_with("system", tmp_path, monkeypatch))
    assert facts.libc == " ".join(platform.libc_ver())
    assert facts.python == platform.python_version()


def test_a_job_and_a_lease_need_no_more_than_these_tools(device):
    with lease(device, seconds=60):
        job = start(device, "cat; setsid sleep 4377 & echo bad >&2; exit 3", f"{device.home}/runs/1", b"one\ntwo\n")
        assert list(job.lines()) == [b"one", b"two"]
        assert (job.code, job.errors) == (3, "bad\n")
        refused = pytest.raises(LabError, match="is used by")
        with refused, lease(device):
            pytest.fail("both hold it")
        with start(device, "sleep 4378", f"{device.home}/runs/2") as job:
            pass
        assert job.code == 137


def test_an_android_phone_says_what_it_is(tmp_path, monkeypatch):
    programs = tmp_path / "android"
    programs.mkdir()
    (programs / "getprop").write_text(
        "#!/bin/sh\ncase $1 in\nro.serialno) echo 1A2B;;\nro.product.manufacturer) echo Google;;\n"
        "ro.product.model) echo Pixel 9;;\nro.build.version.release) echo 16;;\nro.soc.manufacturer) echo Google;;\n"
        "ro.soc.model) echo Tensor G4;;\nesac\n"
    )
    (programs / "getprop").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    facts = read_facts(Local("local", tmp_path / "home"))
    assert (facts.identity, facts.model, facts.system) == ("1A2B", "Google Pixel 9", "Android 16")
    assert (facts.libc, facts.processor) == ("bionic", "Google Tensor G4")


def test_too_little_room_is_told_before_anything_is_sent(device):
    require_room(device, 1_000, 1_000)
    with pytest.raises(LabError, match=r"No space left on the device: 1,000,000,000,000,000 bytes needed"):
        require_room(device, 10**15)
    with pytest.raises(LabError, match=r"too little memory: 1,000,000,000,000,000 bytes needed"):
        require_room(device, 0, 10**15)
    assert list(Path(device.home).iterdir()) == []


def test_a_read_only_and_a_full_folder_are_told(tmp_path):
    if os.geteuid():
        pytest.skip("needs root to mount")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "x", small], check=False).returncode:
        pytest.skip("cannot mount here")
    device = Local("local", small / "home")
    try:
        require_room(device, 1_000)
        (small / "fill").write_bytes(b"1" * 60_000)
        with pytest.raises(OSError), (small / "more").open("wb", buffering=0) as file:
            while True:
                file.write(b"1" * 4096)
        with pytest.raises(LabError, match="No space left on device") as error:
            require_room(device, 1_000)
        assert error.value.hint == "free some space there"
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        with pytest.raises(LabError, match="Read-only file system") as error:
            require_room(device, 1_000)
        assert "mount it writable" in error.value.hint
    finally:
        subprocess.run(["umount", small], check=True)
