"""The driver: which modules it holds, that it needs only numpy and onnxruntime, and what its program prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from io import BytesIO

import numpy as np
import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.host.processor import processor_class
from edgekit.lab.driver import archive
from edgekit.lab.driver.archive import driver_archive, driver_name, needed_modules
from edgekit.lab.driver.device import read_line
from edgekit.record import to_json
from edgekit.run import default_settings, generate, load_runner
from edgekit.run.generation import Transcript
from edgekit.testing import tiny_checkpoint
from edgekit.types import Sampling, Task
from edgekit.types.lab import Done, Failed, Hello, Mark, Rate, Sample, Token

REFUSING = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {allowed}:
            raise ImportError("refused: " + name)

sys.meta_path.insert(0, Refusing())
import numpy, onnxruntime
sys.argv = {argv}
import runpy
runpy.run_path({driver!r}, run_name="__main__")
"""
"""Runs the driver where nothing else can be imported. What numpy itself asks for in vain is no matter."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    return build_bundle(str(tiny_checkpoint(folder / "m")), recipe="fast", out=folder / "b")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "driver.zip"
    path.write_bytes(driver_archive())
    return path


def drive(driver, task, tmp_path, given=b"", allowed=("numpy", "onnxruntime", "edgekit", "__main__")):
    (tmp_path / "task.json").write_text(to_json(task))
    argv = [str(driver), str(tmp_path / "task.json"), "its name"]
    code = REFUSING.format(allowed=allowed, argv=argv, driver=str(driver))
    environment = {"PATH": os.environ["PATH"], "EDGEKIT_CACHE": str(tmp_path / "cache")}
    # -P and another folder: edgekit comes from the archive or from nowhere.
    return subprocess.run(
        [sys.executable, "-P", "-c", code], input=given, capture_output=True, check=False, cwd=tmp_path, env=environment
    )


def lines_of(done):
    assert done.stderr.decode() == ""
    return [read_line("device", line) for line in done.stdout.splitlines()]


def test_the_same_sources_make_the_same_archive():
    first = driver_archive()
    driver_archive.cache_clear()
    assert driver_archive() == first
    assert len(driver_name()) == 64
    entries = zipfile.ZipFile(BytesIO(first)).infolist()
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)


def test_it_holds_what_the_program_imports_and_no_more():
    whole, parents = needed_modules()
    assert {"edgekit.bench.latency", "edgekit.run.runner", "edgekit.measure.power.battery"} <= whole
    assert not {"edgekit.run", "edgekit.bundle", "edgekit.run.text", "edgekit.lab.transport"} & whole
    assert "edgekit.run" in parents
    names = zipfile.ZipFile(BytesIO(driver_archive())).namelist()
    assert "edgekit/targets/providers/CPUExecutionProvider.toml" in names
    assert "edgekit/run/probes/sha256" in names


def test_imports_for_type_checkers_alone_are_left_out(tmp_path):
    source = tmp_path / "m.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nimport edgekit.words\nimport numpy\n"
        "if TYPE_CHECKING:\n    from edgekit.run import Chat\n"
        "def f():\n    from edgekit.run import threads, Chat\n"
    )
    assert sorted(archive._imports(source)) == ["edgekit.run", "edgekit.run.threads", "edgekit.words"]


def test_bench_prints_its_marks_and_the_whole_measurement(bundle, driver, tmp_path):
    task = Task("bench", str(bundle.path), threads=1, pp=(32,), tg=(4,), depth=(0, 16), repetitions=2, warmup=1)
    lines = lines_of(drive(driver, task, tmp_path))
    hello, done = lines[0], lines[-1]
    assert isinstance(hello, Hello)
    assert (hello.driver, hello.processor_class) == ("its name", processor_class())
    assert dict(hello.versions).keys() == {"edgekit", "onnxruntime", "numpy"}
    assert isinstance(done, Done)
    measurement = done.measurement
    assert measurement.bundle_sha256 == bundle.sha256
    assert [(s.name, s.n) for s in measurement.series if s.unit == "tok/s"] == [
        ("pp32", 2), ("tg4@0", 2), ("tg4@16", 2),
    ]  # fmt: skip
    assert measurement.ceilings.gemm_flop_per_s.name.startswith("fp32 GEMM")
    assert "openblas" in measurement.ceilings.gemm_flop_per_s.name
    marks = [line.name for line in lines if isinstance(line, Mark)]
    timed = [f"{name} {end}" for name in ("pp32", "tg4@0", "tg4@16") for end in ("begin", "end")]
    energy = ["energy begin", "energy end"] if measurement.energy.meter else []
    assert marks == ["load begin", "load end", *timed, *timed, *energy, "ceilings begin", "ceilings end"]
    assert sum(isinstance(line, Sample) for line in lines) >= 2
    assert [line.at for line in lines if isinstance(line, Mark)] == sorted(
        line.at for line in lines if isinstance(line, Mark)
    )


def test_generate_chooses_the_tokens_that_are_chosen_here(bundle, driver, tmp_path):
    from edgekit.run import Tokenizer

    tokenizer, prompt = Tokenizer.of(bundle), (5, 6, 7, 8)
    sampling = Sampling(temperature=0.8, seed=3, max_new_tokens=6)
    runner = load_runner(bundle, threads=1)
    here = [emitted.token for emitted in generate(runner, tokenizer, prompt, sampling)]
    runner.close()
    task = Task(
        "generate", str(bundle.path), threads=1, tokens=prompt, sampling=sampling, max_tokens=6,
        stop=tuple(tokenizer.eos_ids),
    )  # fmt: skip
    lines = lines_of(drive(driver, task, tmp_path))
    there = [line.id for line in lines if isinstance(line, Token)]
    assert there == here
    said = Transcript(tokenizer, sampling, 100)
    for token in there:
        said.add(token)
    assert said.finish in ("length", "eos")


def test_sustain_prints_rates(bundle, driver, tmp_path):
    task = Task("sustain", str(bundle.path), threads=1, depth=(8,), seconds=1.3)
    rates = [line for line in lines_of(drive(driver, task, tmp_path)) if isinstance(line, Rate)]
    assert rates
    assert all(rate.tokens > 0 and rate.seconds >= 1.0 for rate in rates)


def test_logits_are_those_of_the_runner(bundle, driver, tmp_path):
    done = drive(driver, Task("logits", str(bundle.path)), tmp_path, b"[1, 2, 3]\n[4, 5]\n")
    out = BytesIO(done.stdout)
    runner = load_runner(bundle, settings=default_settings(bundle.manifest))
    for ids in ([1, 2, 3], [4, 5]):
        while (head := out.readline())[:1] == b"{":
            read_line("device", head)
        shape = json.loads(head)
        assert shape == [len(ids), runner.vocab_size]
        got = np.frombuffer(out.read(4 * shape[0] * shape[1]), "<f4").reshape(shape)
        np.testing.assert_array_equal(got, runner.logits(ids))
    runner.close()
    assert isinstance(read_line("device", out.readlines()[-1]), Done)


def test_marks_of_load_stand_at_both_ends(bundle, driver, tmp_path):
    task = Task("generate", str(bundle.path), threads=1, tokens=(1, 2), max_tokens=1, marks=True)
    marks = [line.name for line in lines_of(drive(driver, task, tmp_path)) if isinstance(line, Mark)]
    bursts = [f"burst {n} {end}" for n in (1, 2, 3) for end in ("begin", "end")]
    rest = ["idle begin", "idle end"]
    assert marks == [*bursts, *rest, "load begin", "load end", *rest, *bursts]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bundle": "/nowhere"}, "not a bundle"),
        ({"meter": "RAPL"}, "no meter is called 'RAPL'"),
        ({"pp": (100_000,), "tg": ()}, "no workload fits"),
    ],
)
def test_what_is_wrong_is_the_last_line(bundle, driver, tmp_path, change, said):
    task = Task(**{"do": "bench", "bundle": str(bundle.path), "threads": 1, "pp": (4,), "repetitions": 1} | change)
    done = drive(driver, task, tmp_path)
    last = lines_of(done)[-1]
    assert isinstance(last, Failed)
    assert said in last.message
    assert last.hint
    assert done.returncode == 1
