import os
import stat
from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.inspect import doctor


def found(checks, name):
    return next(check for check in checks if check.name == name)


@pytest.fixture
def machine(tmp_path):
    """A fixture tree of a machine with two cores, VNNI and a RAPL package."""
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("processor : 0\nmodel name : Made-up CPU\nflags : avx2 avx512_vnni\n")
    domain = root / "sys/class/powercap/intel-rapl:0"
    domain.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("energy_uj", "1000"), ("max_energy_range_uj", "262143328850")):
        (domain / name).write_text(text)
    return root


def test_it_tells_about_the_machine(machine):
    checks = doctor.examine(machine)
    assert found(checks, "python").status == "pass"
    assert "Made-up CPU" in found(checks, "processor").detail
    assert found(checks, "machine class").detail.startswith("Made-up CPU, ")
    assert found(checks, "instructions").status == "pass"
    assert "avx512_vnni" in found(checks, "instructions").detail
    assert "CPUExecutionProvider" in found(checks, "providers").detail
    assert found(checks, "energy").detail == "RAPL package-0"
    assert len({check.name for check in checks}) == len(checks)


def test_a_processor_without_dot_products_is_told(machine):
    (machine / "proc/cpuinfo").write_text("model name : Old CPU\nflags : avx2\n")
    check = found(doctor.examine(machine), "instructions")
    assert check.status == "info"
    assert "no int8 dot products" in check.detail


def test_no_meter_means_no_energy(tmp_path):
    check = found(doctor.examine(tmp_path), "energy")
    assert check.status == "info"
    assert check.detail.startswith("none: ")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_meter_that_may_not_be_read_carries_its_fix(machine, monkeypatch):
    counter = machine / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.chmod(0)
    if os.geteuid() == 0:
        # Root reads everything, so the refusal is acted.
        read = Path.read_text

        def refuse(path, *arguments, **options):
            if not stat.S_IMODE(path.stat().st_mode):
                raise PermissionError(13, "Permission denied", str(path))
            return read(path, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", refuse)
    checks = doctor.examine(machine)
    meter = found(checks, "meter RAPL package-0")
    assert meter.status == "skip"
    assert "chmod" in meter.hint
    assert found(checks, "energy").status == "info"


def test_what_is_missing_comes_with_the_command_that_gets_it(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "empty"))
    checks = doctor.examine(tmp_path)
    for name in ("sentencepiece", "nvidia-ml-py", "onnxruntime-genai", "node", "model smollm2-135m"):
        check = found(checks, name)
        assert check.status in ("skip", "info"), name
        assert check.hint, name
    assert not (tmp_path / "empty").exists(), "doctor changes nothing"


def test_a_cache_that_cannot_be_written_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    check = found(doctor.examine(tmp_path), "cache")
    assert check.status == "fail"
    assert "EDGEKIT_CACHE" in check.hint


def test_an_unknown_part_is_refused():
    with pytest.raises(ConfigError, match="doctor cannot install"):
        doctor.install_part("nonsense")


def test_optimum_is_installed_by_its_room(monkeypatch):
    from edgekit.graph import optimum

    asked = []
    monkeypatch.setattr(optimum, "install_optimum", asked.append)
    doctor.install_part("optimum")
    assert len(asked) == 1
