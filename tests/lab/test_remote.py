"""bench, run and verify on a device: the numbers and tokens of here, from there; what is wrong is said."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.bundle import open_bundle
from edgekit.cli import run
from edgekit.errors import BundleError, LabError, LinkLost
from edgekit.host.processor import processor_class
from edgekit.lab import transport
from edgekit.lab.driver import device
from edgekit.lab.driver.device import needed_memory, read_line
from edgekit.lab.driver.python import PLACES, Python, find_python
from edgekit.lab.driver.wheels import find_wheels
from edgekit.lab.lease import lease
from edgekit.lab.quality import DevicePredictor, verify_on
from edgekit.lab.remote import answering_on, bench_on
from edgekit.run import Tokenizer, generate, load_runner
from edgekit.testing import tiny_checkpoint
from edgekit.types import Sampling, Task
from tests.lab.devices import Counted, pretend, python_at
from tests.lab.loopback import Board, need_sshd

SMALL = {"pp": (8,), "tg": (2,), "depth": (0,), "repetitions": 1, "warmup": 0, "threads": 1}
PI = Python("/usr/bin/python3", "3.11.2", "glibc 2.36", "linux", "CPython", "aarch64", 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    return build_bundle(str(tiny_checkpoint(folder / "m")), recipe="fast", out=folder / "b"), folder / "m"


@pytest.fixture(scope="module")
def bundle(made):
    return made[0]


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return pretend(tmp_path, monkeypatch)


def kept(address):
    return Path(address.removeprefix("local:")) / "kept"


def left_running(address):
    """Processes that still have a job's folder in their environment."""
    mark = f"EDGEKIT_JOB={address.removeprefix('local:')}/".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [path] if mark in path.read_bytes() else []
        except OSError:
            continue
    return found


def test_bench_gives_the_devices_measurement(bundle, address):
    told = []
    measurement = bench_on(address, bundle, progress=lambda *report: told.append(report), **SMALL)
    assert [s.name for s in measurement.series] == ["load", "pp8", "ttft8", "tg2@0", "tpot@0"]
    assert measurement.environment.processor_class == processor_class()
    assert (f"measuring on {address}", 2, 2, "workloads") in told
    assert left_running(address) == []
    assert list((kept(address).parent / "runs").iterdir()) == []
    assert list((kept(address).parent / "lease").iterdir()) == []


def test_an_answer_is_the_one_of_here(bundle, address):
    tokenizer, prompt = Tokenizer.of(bundle), [5, 6, 7]
    sampling = Sampling(max_new_tokens=5)
    runner = load_runner(bundle, threads=1)
    here = generate(runner, tokenizer, prompt, sampling)
    expected = [(e.token, e.text) for e in here]
    runner.close()
    with answering_on(address, bundle, tokenizer, prompt, sampling, threads=1) as there:
        assert [(e.token, e.text) for e in there] == expected
        assert there.finish == here.finish
    with answering_on(address, bundle, tokenizer, prompt, replace(sampling, max_new_tokens=200)) as there:
        next(there)
        there.close()
    assert there.finish == "cancelled"
    assert left_running(address) == []


def test_verify_scores_the_devices_own_logits(made, address, tmp_path):
    bundle, model = made
    options = {"source": str(model), "tokens": 8, "window": 4, "max_kld": 9.0, "min_top1": 0.0}
    verification = verify_on(address, bundle.path, **options)
    assert {c.name: c.status for c in verification.checks} == {
        "manifest": "pass", "files": "pass", "source": "pass", "device": "info", "quality": "pass",
    }  # fmt: skip
    from edgekit.verify.bundle import verify_bundle

    here = verify_bundle(bundle, **options).quality
    assert verification.quality.kld_mean == here.kld_mean
    assert verification.quality.processor_class == processor_class()
    assert verification.quality.runtime.endswith(f"on {address}")


def test_a_lost_link_loses_no_window(bundle, address, monkeypatch):
    transport_ = transport.connect(address)
    stream, cut = transport_.stream, [True]

    def broken(command):
        for data in stream(command):
            yield data[: len(data) // 2] if cut[0] else data
            if cut[0]:
                cut[0] = False
                raise LinkLost("the cable", "plug it in")

    windows = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    runner = load_runner(bundle)
    with lease(transport_), device.open_device(transport_) as there:
        task = Task("logits", there.bring(bundle, 8))
        monkeypatch.setattr(transport_, "stream", broken)
        predictor = DevicePredictor(there, task, windows, runner.vocab_size)
        for window in windows:
            assert (predictor.logits(window) == runner.logits(window)).all()
        assert not cut[0]
        with pytest.raises(LabError, match="one order"):
            predictor.logits([1])
        predictor.close()
    runner.close()
    assert left_running(address) == []


def test_the_command_line_prints_the_same_tables(bundle, address, capsys):
    flags = ["--pp", "8", "--tg", "2", "--depth", "0", "--repetitions", "1", "--warmup", "0", "--json"]
    assert run(["bench", str(bundle.path), "--on", address, *flags]) == 0
    assert json.loads(capsys.readouterr().out)["bundle_sha256"] == bundle.sha256
    flags = ["--raw", "--max-new-tokens", "3"]
    assert run(["run", str(bundle.path), "the", "--on", address, *flags]) == 0
    there = capsys.readouterr().out
    assert run(["run", str(bundle.path), "the", *flags]) == 0
    assert capsys.readouterr().out == there


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "--on", "carrier-pigeon:x"], "unknown transport 'carrier-pigeon'"),
        (["bench", "--tune", "--on", "local"], "--on does not apply to --tune"),
        (["run", "hello", "--on", "local", "--signals"], "--signals does not apply to --on"),
        (["verify", "--on", "local", "--npu-steps", "3"], "do not apply to --on"),
        (["verify", "--on", "local", "--beside", "."], "--beside needs --on arm64"),
    ],
)
def test_what_makes_no_sense_is_refused(bundle, address, capsys, arguments, said):
    assert run([arguments[0], str(bundle.path), *arguments[1:]]) == 1
    error, hint = capsys.readouterr().err.strip().splitlines()
    assert said in error
    assert hint.startswith("hint: ")


def test_too_little_memory_is_said_before_anything_is_pushed(bundle, address, monkeypatch):
    monkeypatch.setattr(device, "needed_memory", lambda *_, **__: 1 << 50)
    with pytest.raises(LabError, match=r"too little memory: [\d,]+ bytes needed") as caught:
        bench_on(address, bundle, **SMALL)
    assert "smaller bundle" in caught.value.hint
    assert not kept(address).exists()


def test_the_memory_that_a_bundle_takes_grows_with_its_parts(bundle):
    assert needed_memory(bundle, 512) > needed_memory(bundle, 8)
    assert needed_memory(bundle, 8) > needed_memory(bundle, 8, small_memory=True)


def test_a_bundle_that_changed_here_is_not_pushed(made, address, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(made[0].path, copy)
    data = next((copy / "onnx").glob("*_data"))
    data.write_bytes(b"\1" + data.read_bytes()[1:])
    with pytest.raises(BundleError, match="has changed"):
        bench_on(address, open_bundle(copy, check=False), **SMALL)


# --- what a driver may say -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [b"", b"warning: something", b'{"mark":{"at":"now","name":"x"}}', b'{"mark":{"at":1.0}}', b'{"other":{}}', b"\xff",
     b'{"done":{"at":1.0,"measurement":{"schema":2}}}', b'{"token":{"at":1.0,"id":1},"mark":1}'],
)  # fmt: skip
def test_a_line_that_is_none_is_refused(line):
    with pytest.raises(LabError, match="board: it printed what cannot be read"):
        read_line("board", line)


def test_a_drivers_own_failure_is_passed_on(bundle, address):
    with pytest.raises(LabError, match="no meter is called 'sundial'") as caught:
        bench_on(address, bundle, meter="sundial", **SMALL)
    assert "known: battery" in caught.value.hint


def test_a_driver_that_crashes_is_said_with_its_last_words(bundle, address, tmp_path, monkeypatch):
    body = f'case "$*" in *kept/driver*) echo "it fell over" >&2; exit 3;; *) exec {sys.executable} "$@";; esac'
    path = str(python_at(tmp_path / "crashing", body) / "python3")
    monkeypatch.setattr(device, "find_python", lambda there: replace(find_python(there), path=path))
    with pytest.raises(LabError, match="ended with status 3 before it was done: it fell over"):
        bench_on(address, bundle, **SMALL)


# --- Pythons and wheels ------------------------------------------------------------------------------


def answering(tmp_path, monkeypatch, body):
    monkeypatch.setenv("PATH", f"{python_at(tmp_path / 'only', body)}:{only_sh(tmp_path)}")
    return Counted(tmp_path / "device")


def only_sh(tmp_path):
    """A folder with the few programs that a script needs, and no Python."""
    folder = tmp_path / "few"
    folder.mkdir(exist_ok=True)
    for name in ("sh", "uname"):
        link = folder / name
        if not link.exists():
            link.symlink_to(f"/bin/{name}")
    return folder


def test_this_python_is_found(tmp_path, monkeypatch):
    found = find_python(answering(tmp_path, monkeypatch, f'exec {sys.executable} "$@"'))
    assert found.version == sys.version.split()[0]
    assert (found.system, found.implementation, found.bits) == ("linux", "CPython", 64)
    assert found.libc.startswith("glibc 2.")


def test_a_python_that_is_too_old_is_said(tmp_path, monkeypatch):
    old = json.dumps({"path": "/usr/bin/python3", "version": "3.9.2", "libc": "glibc 2.31", "system": "linux",
                      "implementation": "CPython", "machine": "armv7l", "bits": 32})  # fmt: skip
    with pytest.raises(LabError, match=r"Python 3.9.2 is too old") as caught:
        find_python(answering(tmp_path, monkeypatch, f"echo '{old}'; exit 1"))
    assert "3.11 or newer" in caught.value.hint
    assert PLACES[0] in caught.value.hint


def test_no_python_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(only_sh(tmp_path)))
    with pytest.raises(LabError, match="no Python there") as caught:
        find_python(Counted(tmp_path / "device"))
    assert "apt-get install python3" in caught.value.hint


def test_nonsense_for_a_python_is_said(tmp_path, monkeypatch):
    with pytest.raises(LabError, match="does not answer as one does"):
        find_python(answering(tmp_path, monkeypatch, "echo '{\"path\": 3}'"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"libc": "musl"}, "musl"),
        ({"libc": "bionic"}, "bionic"),
        ({"libc": ""}, "an unknown libc"),
        ({"machine": "riscv64"}, "riscv64"),
        ({"bits": 32}, "32 bits"),
        ({"implementation": "PyPy"}, "PyPy"),
        ({"system": "darwin"}, "darwin"),
    ],
)
def test_wheels_that_do_not_exist_are_said(change, said):
    with pytest.raises(LabError, match=said) as caught:
        find_wheels(replace(PI, **change), "ssh:board")
    assert "ssh:board" in caught.value.message


def test_wheels_are_asked_for_by_libc_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    asked = []

    def download(folder, **given):
        asked.append(given)
        (folder / "numpy.whl").touch()

    monkeypatch.setattr("edgekit.run.wheels.download_wheels", download)
    first = find_wheels(PI, "ssh:board")
    assert [path.name for path in first] == ["numpy.whl"]
    assert find_wheels(PI, "ssh:board") == first
    (given,) = asked
    assert given["python"] == "3.11"
    assert given["platforms"][0] == "manylinux_2_36_aarch64"
    assert given["platforms"][-2:] == ("manylinux_2_17_aarch64", "manylinux2014_aarch64")
    find_wheels(replace(PI, version="3.12.1"), "ssh:board")
    assert len(asked) == 2


def test_wheels_that_pip_does_not_find_leave_nothing(tmp_path, monkeypatch):
    from edgekit.errors import RunError

    def download(folder, **_):
        (folder / "numpy.whl").touch()
        raise RunError("pip: ERROR: No matching distribution found for onnxruntime", "run pip")

    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("edgekit.run.wheels.download_wheels", download)
    with pytest.raises(LabError, match=r"no wheel for CPython 3.11.2, aarch64, glibc 2.36"):
        find_wheels(PI, "ssh:board")
    assert list((tmp_path / "wheels").iterdir()) == []


# --- over SSH -----------------------------------------------------------------------------------------


@pytest.fixture
def board(tmp_path, monkeypatch):
    need_sshd()
    (tmp_path / "board").mkdir()
    board = Board(tmp_path / "board")
    pretend(tmp_path, monkeypatch)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(board.client))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    usual = Python(sys.executable, "3.11.0", "glibc 2.36", "linux", "CPython", "x86_64", 64)
    monkeypatch.setattr(device, "find_python", lambda _: usual)
    yield board
    board.stop()


def test_a_measurement_survives_a_link_that_is_cut(bundle, board):
    cut = []

    def cut_once(task, done, *_):
        if task.startswith("measuring") and done == 1:
            board.cut()
            cut.append(done)

    measurement = bench_on("ssh:board", bundle, progress=cut_once, **SMALL | {"repetitions": 3})
    assert cut == [1]
    assert measurement.get("pp8").n == 3
    folder = board.cache / "edgekit/device"
    assert list((folder / "runs").iterdir()) == []
    assert left_running(f"local:{folder}") == []
