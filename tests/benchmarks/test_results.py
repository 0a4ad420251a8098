"""Runs of every class of processor stand side by side; a hidden class says that it is one."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.hidden import NEWER, can_hide, hidden_environment, show
from benchmarks.results import FOLDER, append_lines, results_file, side_by_side
from edgekit.host.processor import processor_class, processor_name

ROOT = Path(__file__).parents[2]
CPUINFO = (
    "processor\t: 0\nmodel name\t: A Processor\n"
    "flags\t\t: sse4_1 sse4_2 avx f16c fma avx2 bmi1 avx512f avx512bw avx512_vnni avx_vnni amx_int8\n\n"
)


def test_a_line_says_where_it_was_measured(tmp_path):
    append_lines(tmp_path / "new" / "x.jsonl", [{"a": 1}, {"a": 2, "processor_class": "AVX9"}])
    first, second = map(json.loads, (tmp_path / "new" / "x.jsonl").read_text().splitlines())
    assert first == {
        "processor": processor_name() or platform.machine(),
        "processor_class": processor_class(),
        "a": 1,
    }
    assert second["processor_class"] == "AVX9"


def test_each_class_has_a_folder():
    assert results_file("peers.jsonl").parent.name == (processor_class() or platform.machine())
    kinds = {path.parent.name for path in FOLDER.glob("*/peers.jsonl")}
    assert {"AVX2", "AVX512-VNNI", "AMX"} <= kinds
    for path in FOLDER.glob("*/peers.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["environment"]["processor_class"] == path.parent.name


def test_no_class_overwrites_another():
    table = side_by_side()
    assert len([line for line in table.splitlines() if line.startswith("| edgekit fast ")]) >= 3
    assert "AVX2" in table
    assert "AMX" in table


@pytest.mark.parametrize("newest", NEWER)
def test_what_is_hidden_is_not_in_the_shown_cpuinfo(newest, tmp_path):
    wanted = {"avx512": "AVX512", "avx2": "AVX2", "avx": "AVX", "sse4": "SSE4"}[newest]
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(show(newest, CPUINFO))
    assert processor_class(tmp_path) == wanted
    assert processor_name(tmp_path) == f"A Processor, newer than {newest} hidden"


@pytest.mark.skipif(not (can_hide() and shutil.which("gcc")), reason="CPUID cannot be trapped here")
def test_children_see_the_older_class_and_a_real_fault_still_ends_them(tmp_path):
    code = "from edgekit.host.processor import processor_class; import numpy; print(processor_class())"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"]
    environment = {"PYTHONPATH": str(ROOT), **hidden_environment("avx2", tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "AVX2"
    fault = subprocess.run(
        [sys.executable, "-c", "import ctypes; ctypes.string_at(1)"], capture_output=True, check=False, env=environment
    )
    assert fault.returncode < 0


def test_without_a_command_the_usage_is_told():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hidden", "avx3"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stderr.startswith("usage: ")
