"""Meters read from real kernel drivers: Debian's kernel, booted by qemu with registers of known values.

The initramfs holds this interpreter, what the meters import, and edgekit's own files of meters; no network, no root.
"""

import importlib.util
import json
import lzma
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import edgekit
from edgekit.host.cache import cache_folder

HERE = Path(__file__).parent / "kernel"
PACKAGE = Path(edgekit.__file__).parent
MODULES = ("i2c-dev", "industrialio", "kfifo_buf", "i2c-stub", "ina2xx-adc", "sbs-battery", "ltc4151")
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "dpkg-deb": "dpkg", "ldd": "libc-bin"}

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


def kernel() -> Path:
    """The folder with Debian's kernel and the drivers, fetched once into the cache."""
    folder = cache_folder() / "kernel"
    if not (folder / "vmlinuz").exists():
        told = subprocess.run(
            ["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False
        )
        found = re.search(r"linux-image-[\d.]\S+", told.stdout)
        if not found:
            pytest.skip("no package linux-image-amd64 is known here: apt-get update")
        work = folder.with_name(f"kernel.{id(folder):x}")
        work.mkdir(parents=True)
        try:
            command = ["apt-get", "download", "-qq", found[0]]
            if subprocess.run(command, cwd=work, capture_output=True, timeout=250, check=False).returncode:
                pytest.skip(f"{found[0]} cannot be downloaded")
            (package,) = work.glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", package, work / "all"], check=True)
            (image,) = (work / "all/boot").glob("vmlinuz-*")
            image.rename(work / "vmlinuz")
            for name in MODULES:
                (file,) = (work / "all").rglob(f"{name}.ko*")
                data = file.read_bytes()
                (work / f"{name}.ko").write_bytes(lzma.decompress(data) if file.suffix == ".xz" else data)
            shutil.rmtree(work / "all")
            package.unlink()
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def fill(root: Path, drivers: Path) -> None:
    """Lay out the initramfs."""
    for name in MODULES:
        put(drivers / f"{name}.ko", root / f"modules/{name}.ko")
    for folder in ("proc", "sys", "dev", "tmp"):
        (root / folder).mkdir()
    put(Path(shutil.which("busybox")), root / "bin/busybox")
    put(HERE / "init", root / "init")
    (root / "init").chmod(0o755)
    put(HERE / "guest.py", root / "edgekit/guest.py")
    # As in the archive of a device: only what meters need, without the rooms' lists of names.
    parts = ["errors.py", "record.py", "ranges.py", "host/clock.py", "types/power.py", "types/measurement.py"]
    parts += ["types/device.py", "types/generation.py"]
    measure = ("energy", "trace", "sampling", "appliance", "alignment")
    parts += [f"measure/{name}.py" for name in measure]
    parts += [f"measure/power/{file.name}" for file in (PACKAGE / "measure/power").glob("*.py")]
    for part in parts:
        put(PACKAGE / part, root / "edgekit/edgekit" / part)
    for folder in (".", "host", "types", "measure"):
        (root / "edgekit/edgekit" / folder / "__init__.py").touch()
    interpreter(root)


def interpreter(root: Path) -> None:
    """This Python, with the modules that the guest's program imports, and its libraries."""
    binary, stdlib = Path(sys._base_executable).resolve(), Path(sysconfig.get_path("stdlib"))
    command = [binary, "-S", "-E", root / "edgekit/guest.py", "--modules"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    used = [Path(f) for f in files if Path(f).is_relative_to(stdlib)] + list((stdlib / "encodings").glob("*.py"))
    place = root / f"python/lib/python{sysconfig.get_python_version()}"
    for file in used:
        put(file, place / file.relative_to(stdlib))
        cached = Path(importlib.util.cache_from_source(str(file)))
        if cached.exists():
            put(cached, place / cached.relative_to(stdlib))
    put(binary, root / "python/bin/python")
    (place / "lib-dynload").mkdir(exist_ok=True)
    for item in (binary, *(f for f in used if f.suffix == ".so")):
        told = subprocess.run(["ldd", item], capture_output=True, text=True, check=False).stdout
        for library in set(re.findall(r"(/\S+)", told)):
            put(Path(library), root / library[1:])
    compiled = subprocess.run([binary, "-m", "compileall", "-q", root / "edgekit"], check=False)
    assert compiled.returncode == 0


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    """What the guest found."""
    for program, package in PROGRAMS.items():
        if not shutil.which(program):
            pytest.skip(f"{program} is missing: apt-get install {package}")
    if sys.platform != "linux" or sysconfig.get_platform() != "linux-x86_64":
        pytest.skip("the guest runs this machine's Python, so this must be x86-64 Linux")
    drivers, root = kernel(), tmp_path_factory.mktemp("guest")
    fill(root, drivers)
    archive = tmp_path_factory.mktemp("boot") / "initramfs"
    pack = f"cd {root} && find . | busybox cpio -o -H newc > {archive}"
    subprocess.run(["sh", "-c", pack], check=True, capture_output=True)
    command = ["qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-nographic", "-no-reboot", "-nic", "none"]
    command += ["-kernel", drivers / "vmlinuz", "-initrd", archive, "-append", "console=ttyS0 quiet panic=-1"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False, errors="replace"
    )
    found = re.search(r"FOUND (\{.*\})", done.stdout)
    assert found, done.stdout[-3000:]
    return json.loads(found[1])


@pytest.mark.parametrize(
    ("meter", "watts"),
    [
        ("iio:ina226/power2", 2.5),  # 400 * 6.25 mW
        ("hwmon:ltc4151/curr1", 46.08),  # 12 V * 3.84 A
        ("battery", 1.925),  # 3.85 V * 0.5 A
    ],
)
def test_known_registers_come_back_as_watts_and_joules(booted, meter, watts):
    found = booted["meters"][meter]
    assert found["low"] == pytest.approx(watts, rel=1e-3)
    assert found["high"] == pytest.approx(2 * watts, rel=1e-3)
    true = watts * (found["first"] + 2 * found["second"])
    # The guest's program takes some milliseconds between its clock and the meter's start and stop.
    assert abs(found["joules"] - true) <= found["bound"] + 0.1 * true
    assert found["bound"] < true


def test_a_driver_s_battery_is_listed_once_and_tells_its_charge(booted):
    assert [name.split(",")[0] for name in booted["names"]] == [
        "battery sbs-0-000b",
        "hwmon ltc4151 curr1",
        "IIO ina226 power2",
    ]
    assert booted["charge"] == pytest.approx(5000 * 10e-3 * 3600)  # SBS counts 10 mWh
