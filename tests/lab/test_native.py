"""The native runner, compiled here for this machine and for ARM: tokens, lines, records, graphs of NPUs, faults."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from edgekit.build.npu_plan import plugin_of
from edgekit.build.pipeline import build_bundle
from edgekit.config.recipe import load_target
from edgekit.errors import LabError, RunError
from edgekit.lab.native import There, build_runner, building, find_runtime, measurement_of, task_words
from edgekit.record import from_json, to_json
from edgekit.run import find_arm64, load_runner
from edgekit.run.npu import StaticRunner, emulating, open_on_cpu
from edgekit.run.subprocess_predictor import DrivenGraph
from edgekit.types import Measurement, Runner, Sampling
from edgekit.types.lab import (
    DeviceFacts,
    Done,
    Failed,
    Hello,
    Mark,
    Power,
    Rate,
    Sample,
    Series,
    Task,
    Token,
    read_line,
)
from tests.npus import build_tiny, greedy, signed_checkpoint
from tests.real_npu import compile_tiny, needs_compiler

FACTS = DeviceFacts(
    address="local", identity="1", model="", system="Linux", machine="x86_64", libc="", python="", processor="a CPU",
    processor_class="AVX2", cores=2, memory_bytes=10**9, free_memory_bytes=None, free_disk_bytes=None, boot_id="",
)  # fmt: skip
PROMPT = tuple(range(10, 290))
"""Longer than a run of a prompt, and than the 256 positions that a cache has at first."""


def built(machine: str) -> Path:
    try:
        return build_runner(machine)
    except LabError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture(scope="module")
def runner() -> Path:
    return built(platform.machine())


@pytest.fixture(scope="module")
def there() -> There:
    return There(str(find_runtime(platform.machine())))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def checkpoint(folder) -> str:
    return str(signed_checkpoint(folder / "checkpoint", max_position_embeddings=512))


@pytest.fixture(scope="module")
def bundle(folder, checkpoint):
    return build_bundle(checkpoint, precision="int4", out=folder / "cpu")


def said(command: list[object], status: int = 0, **options) -> list:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
    return [read_line(line) for line in done.stdout.splitlines()]


def tokens_of(lines: list) -> list[int]:
    return [line.id for line in lines if isinstance(line, Token)]


def asked(bundle, do: str = "generate", **what) -> Task:
    return Task(do, str(bundle.path), **{"threads": 1, "tokens": PROMPT, "max_tokens": 24} | what)


def only(lines: list, kind: type) -> list:
    return [line for line in lines if isinstance(line, kind)]


@pytest.mark.parametrize("small_memory", [False, True])
@pytest.mark.parametrize(("target", "precision"), [("cpu", "int4"), ("cpu", "fp32"), ("portable", "int4")])
def test_tokens_are_those_of_the_own_runner(runner, there, folder, checkpoint, target, precision, small_memory):
    """With a cache that is written in place, and with one that is appended to (portable)."""
    out = folder / f"{target}-{precision}-{small_memory}"
    bundle = build_bundle(checkpoint, target=target, precision=precision, out=out)
    lines = said([runner, *task_words(asked(bundle, small_memory=small_memory), bundle, there)])
    own = load_runner(bundle, threads=1, small_memory=small_memory)
    expected = greedy(own, PROMPT, 24)
    own.close()
    assert tokens_of(lines) == expected
    assert len(set(expected)) > 5
    assert isinstance(lines[0], Hello)
    assert lines[0].versions[1] == ("onnxruntime", own.info.runtime[0][1])
    assert isinstance(lines[-1], Done)
    assert [m.name for m in only(lines, Mark)] == ["load begin", "load end"]


def test_generation_ends_at_a_stop_token_and_at_the_context(runner, there, bundle):
    free = tokens_of(said([runner, *task_words(asked(bundle), bundle, there)]))
    stop = next(token for token in free if free.index(token) > 2)
    ended = tokens_of(said([runner, *task_words(asked(bundle, stop=(stop,)), bundle, there)]))
    assert ended == free[: free.index(stop) + 1]
    endless = tokens_of(said([runner, *task_words(asked(bundle, tokens=PROMPT[:9], max_tokens=0), bundle, there)]))
    assert len(endless) == 512 - 9 + 1


def test_a_bench_makes_the_record(runner, there, bundle):
    task = asked(bundle, "bench", pp=(16, 300), tg=(4, 9000), depth=(0, 8), repetitions=3, warmup=1)
    lines = said([runner, *task_words(task, bundle, there)])
    made = measurement_of(lines, task, bundle, FACTS)
    assert from_json(Measurement, to_json(made)) == made
    counts = {series.name: (series.unit, series.n) for series in made.series}
    assert counts == {
        "load": ("s", 3), "pp16": ("tok/s", 3), "ttft16": ("s", 3), "pp300": ("tok/s", 3), "ttft300": ("s", 3),
        "tg4@0": ("tok/s", 3), "tpot@0": ("s", 12), "tg4@8": ("tok/s", 3), "tpot@8": ("s", 12),
    }  # fmt: skip
    assert min(sample for series in made.series for sample in series.samples) > 0
    assert made.workload.startswith("pp16, pp300, tg4@0, tg4@8; left out: tg9000@0")
    assert made.peak_rss_bytes > 10_000_000
    assert made.environment.runtime[1:] == (("edgekit-runner", "1"), ("onnxruntime", find_version(there)))
    assert (made.settings.prompt_graph, made.settings.threads, made.ceilings) == ("decoder", 1, None)
    names = [mark.name for mark in only(lines, Mark)]
    assert names[:2] == ["load begin", "load end"]
    assert names[2:] == 3 * [f"{w} {x}" for w in ("pp16", "pp300", "tg4@0", "tg4@8") for x in ("begin", "end")]
    times = [line.at for line in lines if not isinstance(line, Series | Sample)]
    assert times == sorted(times)
    assert len(only(lines, Sample)) >= 2


def find_version(there: There) -> str:
    return Path(there.runtime).name.removeprefix("libonnxruntime.so.")


def test_a_decode_with_its_time_is_the_sum_of_its_tokens(runner, there, bundle):
    task = asked(bundle, "bench", tg=(6,), depth=(0,))
    made = measurement_of(said([runner, *task_words(task, bundle, there)]), task, bundle, FACTS)
    assert made.get("tg6@0").samples[0] == pytest.approx(6 / sum(made.get("tpot@0").samples))


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_sustained_decoding_goes_on_at_the_same_depth(runner, there, folder, checkpoint, target):
    """Beyond 128 tokens it starts again at the depth, in both kinds of cache, and does not reach the context."""
    bundle = build_bundle(checkpoint, target=target, precision="int4", out=folder / f"sustained-{target}")
    task = asked(bundle, "sustain", seconds=2.5, depth=(370, 3))
    lines = said([runner, *task_words(task, bundle, there)])
    rates = only(lines, Rate)
    assert [m.name for m in only(lines, Mark)][2:] == ["sustain@370 begin", "sustain@370 end"]
    assert len(rates) == 2
    assert all(1 <= rate.seconds < 2 for rate in rates)
    assert sum(rate.tokens for rate in rates) > 142
    assert len(only(lines, Sample)) >= 4
    lines = said([runner, *task_words(replace(task, depth=(512,)), bundle, there)], status=1)
    assert "a depth of 512 tokens leaves no room" in lines[-1].message


def test_bursts_mark_the_clock_of_a_meter(runner, there, bundle):
    lines = said([runner, *task_words(asked(bundle, marks=True, max_tokens=1), bundle, there)])
    bursts = [mark for mark in only(lines, Mark) if mark.name.startswith("burst")]
    names = [f"burst {n} {x}" for n in (1, 2, 3) for x in ("begin", "end")]
    assert [mark.name for mark in bursts] == names + names
    assert all(end.at - begin.at >= 1.5 for begin, end in zip(bursts[::2], bursts[1::2], strict=True))
    rest = [begin.at - end.at for end, begin in zip(bursts[1:5:2], bursts[2:6:2], strict=True)]
    assert rest[0] >= 0.7
    assert rest[1] >= 1.1


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


BATTERY = {
    "sys/class/power_supply/battery/type": "Battery", "sys/class/power_supply/battery/capacity": "83",
    "sys/class/power_supply/battery/status": "Charging",
    "sys/class/power_supply/battery/current_now": "-500000", "sys/class/power_supply/battery/voltage_now": "4000000",
}  # fmt: skip


def test_the_state_of_the_device(runner, there, bundle, tmp_path):
    write_tree(tmp_path, BATTERY | {
        "sys/class/thermal/thermal_zone10/temp": "51500", "sys/class/thermal/thermal_zone10/type": 'gpu "\\é',
        "sys/class/thermal/thermal_zone2/temp": "47000", "sys/class/thermal/thermal_zone2/type": "cpu-big",
        "sys/class/thermal/thermal_zone3/type": "silent", "sys/class/thermal/thermal_zone4/temp": "-273000",
        "sys/class/thermal/cooling_device0/type": "fan",
        "sys/class/hwmon/hwmon0/name": "soc", "sys/class/hwmon/hwmon0/temp1_input": "40000",
        "sys/class/hwmon/hwmon0/temp2_input": "41000", "sys/class/hwmon/hwmon0/temp2_label": "edge",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance",
        "sys/class/power_supply/usb/type": "USB_PD", "sys/class/power_supply/usb/online": "1",
        "proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:    2000 kB",
    })  # fmt: skip
    battery = "/sys/class/power_supply/battery"
    metered = replace(there, power=f"-1e-12:{battery}/current_now*{battery}/voltage_now")
    lines = said([runner, *task_words(asked(bundle), bundle, metered), f"root={tmp_path}", "power_seconds=0.01"])
    sample = only(lines, Sample)[0]
    assert sample.zones == (("cpu-big", 47.0), ('gpu "\\\ufffd\ufffd', 51.5), ("soc temp1", 40.0), ("soc edge", 41.0))
    assert sample.clocks_mhz == (1800.0, 0.0)
    assert (sample.governor, sample.battery_percent, sample.plugged) == ("performance, schedutil", 83.0, "usb")
    assert (sample.free_memory_bytes, sample.background) == (2_048_000, None)
    assert {power.value for power in only(lines, Power)} == {2.0}
    assert len(only(lines, Power)) > 2


@pytest.mark.parametrize(("status", "plugged"), [("Charging", "ac"), ("Discharging", ""), ("Unknown", None)])
def test_a_battery_alone_says_whether_it_is_plugged(runner, there, bundle, tmp_path, status, plugged):
    write_tree(tmp_path, BATTERY | {"sys/class/power_supply/battery/status": status})
    write_tree(tmp_path, {"sys/class/power_supply/pen/type": "Battery", "sys/class/power_supply/pen/scope": "Device"})
    sample = only(said([runner, *task_words(asked(bundle), bundle, there), f"root={tmp_path}"]), Sample)[0]
    assert (sample.battery_percent, sample.plugged) == (83.0, plugged)


def test_android_is_asked_for_what_its_files_do_not_show(runner, there, bundle, tmp_path):
    program = tmp_path / "system/bin/dumpsys"
    write_tree(tmp_path, {
        "system/bin/dumpsys": "#!/bin/sh\necho Current $1 service state:; echo '  AC powered: false'\n"
        "echo '  USB powered: true'; echo '  level: 41'; echo '  scale: 50'",
    })  # fmt: skip
    program.chmod(0o700)
    sample = only(said([runner, *task_words(asked(bundle), bundle, there), f"root={tmp_path}"]), Sample)[-1]
    assert (sample.battery_percent, sample.plugged) == (82.0, "usb")


def test_what_the_kernel_here_says(runner, there, bundle):
    last = only(said([runner, *task_words(asked(bundle), bundle, there)]), Sample)[-1]
    assert last.free_memory_bytes > 0
    assert last.background >= 0


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"runtime": "/nowhere/libonnxruntime.so"}, "cannot open shared object"),
        ({"runtime": "libm.so.6"}, "libm.so.6 is no ONNX Runtime"),
        ({"graph": "/nowhere/model.onnx"}, "/nowhere/model.onnx cannot be read"),
        ({"graph": __file__}, "protobuf parsing failed"),
        ({"graph": ""}, "no model was named"),
        ({"colour": "green"}, "does not know 'colour'"),
        ({"threads": "many"}, "threads=many is no number"),
        ({"do": "dance"}, "cannot do 'dance'"),
        ({"tokens": ""}, "no tokens"),
        ({"tokens": "3,384"}, "token 384 is outside the vocabulary of 384"),
        ({"tokens": "3,-1"}, "token -1 is outside"),
        ({"context": "9"}, "280 tokens leave no room in the context of 9"),
        ({"power": "1:"}, "names no file"),
    ],
)
def test_a_fault_is_the_last_line(runner, there, bundle, changed, message):
    words = dict(word.split("=", 1) for word in task_words(asked(bundle), bundle, there) if word[:5] != "entry")
    entries = [word for word in task_words(asked(bundle), bundle, there) if word[:5] == "entry"]
    words |= changed
    lines = said([runner, *(f"{k}={v}" for k, v in words.items()), *entries], status=1)
    assert isinstance(lines[-1], Failed)
    assert message in lines[-1].message
    assert lines[-1].hint
    assert not only(lines, Done)


def test_a_run_that_failed_or_broke_off_is_no_record(runner, there, bundle):
    task = asked(bundle, "bench", pp=(8,))
    lines = said([runner, *task_words(task, bundle, there)])
    with pytest.raises(LabError, match="local: the native runner stopped"):
        measurement_of(lines[:-3], task, bundle, FACTS)
    with pytest.raises(LabError, match="local: too hot") as caught:
        measurement_of([*lines[:-1], Failed(1.0, "too hot", "wait")], task, bundle, FACTS)
    assert caught.value.hint == "wait"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do": "logits"}, "has no logits"),
        ({"sampling": Sampling(temperature=0.7)}, "has no sampling"),
        ({"meter": "rapl"}, "has no meters by name"),
        ({"threads": None}, "does not choose how many threads"),
    ],
)
def test_what_it_cannot_do_is_said_before(there, bundle, changes, message):
    with pytest.raises(LabError, match=message):
        task_words(replace(asked(bundle), **changes), bundle, there)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"mark": 3}', '{"mark": {"at": 1.0}}', '{"shout": {}}', "Killed"])
def test_a_line_that_is_none(text):
    with pytest.raises(ValueError, match=r"^\$"):
        read_line(text)


# --- graphs of NPUs ---------------------------------------------------------------------------


def on_device(folder: Path, family: str, provider: str, largest: int = 10**9):
    file = folder / f"some-{family}.toml"
    file.write_text(
        f'name = "some-{family}"\ntitle = "Some device"\nprovider = "{provider}"\nopset = 21\n'
        f'precisions = ["fp16", "int8", "int4"]\nverified = "none"\nfallback = "cpu"\n'
        f'[npu]\nname = "Some NPU"\nfamily = "{family}"\ncontext = 96\nefficiency = [0.5, 0.8]\n'
    )
    target = load_target(file)
    return replace(target, npu=replace(target.npu, largest_graph_bytes=largest))


def static_runner(bundle, build) -> Runner:
    chains = [
        [open_on_cpu(bundle.path / g.path, 1) for g in build.static if g.role == role] for role in ("prefill", "decode")
    ]
    return StaticRunner(open_on_cpu(bundle.path / build.host, 1), *chains)


def without(words: tuple[str, ...], *keys: str) -> list[str]:
    return [word for word in words if word.split("=")[0] not in keys]


@pytest.mark.parametrize(
    ("family", "provider", "precision", "largest", "parts"),
    [
        ("openvino-npu", "OpenVINOExecutionProvider", "int4", 10**9, 1),
        ("coreml", "CoreMLExecutionProvider", "fp16", 150_000, 2),
    ],
)
def test_static_graphs_on_the_cpu(runner, there, folder, checkpoint, family, provider, precision, largest, parts):
    """Without the vendor's provider; in one part with a cache in float32, in two with one in float16."""
    target = on_device(folder, family, provider, largest)
    bundle = build_bundle(checkpoint, target=target, precision=precision, out=folder / family)
    (build,) = bundle.manifest.npus
    words = task_words(asked(bundle, tokens=PROMPT[:70], max_tokens=20), bundle, there, build)
    assert [w.split("=")[0] for w in words].count("prefill") == parts
    lines = said([runner, *without(words, "provider", "option", "device_entry")])
    own = static_runner(bundle, build)
    expected = greedy(own, PROMPT[:70], 20)
    assert tokens_of(lines) == expected
    assert len(set(expected)) > 5

    lines = said([runner, *words], status=1)
    assert provider.removesuffix("ExecutionProvider") in lines[-1].message


def test_a_provider_that_a_function_adds(runner, there, folder, checkpoint):
    """As Android's NNAPI; the CPU's function stands in for it, which takes an integer too."""
    target = on_device(folder, "nnapi", "NnapiExecutionProvider")
    bundle = build_bundle(checkpoint, target=target, precision="int8", out=folder / "nnapi")
    (build,) = bundle.manifest.npus
    words = task_words(asked(bundle, tokens=PROMPT[:20]), bundle, replace(there, flags=1), build)
    function = "OrtSessionOptionsAppendExecutionProvider_Nnapi"
    assert {f"function={function}", "flags=1", "device_entry=session.disable_quant_qdq=1"} <= set(words)
    stand_in = [word.replace("_Nnapi", "_CPU") for word in words]
    expected = greedy(static_runner(bundle, build), PROMPT[:20], 24)
    assert tokens_of(said([runner, *stand_in])) == expected
    assert said([runner, *words], status=1)[-1].message == f"this ONNX Runtime has no {function}"


def test_compiled_graphs_leave_nothing_to_the_cpu(there, folder):
    bundle = build_tiny(folder / "doubled")
    (build,) = bundle.manifest.npus
    on_phone = replace(there, plugin="/data/lib.so", options=(("backend_path", "/data/libQnnHtp.so"),))
    words = task_words(asked(bundle), bundle, on_phone, build)
    assert "device_entry=session.disable_cpu_ep_fallback=1" in words
    assert f"decode={bundle.path}/{build.chain('decode')[0].context}" in words
    assert {"plugin=/data/lib.so", "option=backend_path=/data/libQnnHtp.so"} <= set(words)
    assert "option=backend_path=libQnnHtp.so" not in words
    task = asked(bundle, "bench", pp=(8,))
    lines = [
        Hello(1.0, "edgekit-runner 1", "", (("onnxruntime", "1.32.0"),), 1, ""),
        Sample(1.0, (), (), "", None, None, None, None),
        Series("pp8", "tok/s", (9.0,)),
        Series("peak_rss", "B", (1e6,)),
    ]
    made = measurement_of(lines, task, bundle, FACTS, build)
    assert (made.nodes_on_cpu, made.device, made.environment.provider) == (0, "galaxy-s24", build.target.provider)
    assert measurement_of(lines, task, bundle, FACTS).nodes_on_cpu is None


@pytest.mark.qnn
@needs_compiler
def test_compiled_graphs_on_the_emulator_through_the_plugin(runner, there, folder):
    qnn = import_module("onnxruntime_qnn")
    bundle = compile_tiny(folder / "compiled")
    (build,) = bundle.manifest.npus
    here = replace(there, plugin=qnn.get_library_path(), options=(("backend_path", qnn.get_qnn_htp_path()),))
    words = task_words(asked(bundle, tokens=PROMPT[:11], max_tokens=4), bundle, here, build)
    # The performance mode is a phone's.
    lines = said([runner, *(word for word in words if "htp_performance_mode" not in word)])
    made = tokens_of(lines)
    paths = {role: tuple(bundle.path / g.context for g in build.chain(role)) for role in ("prefill", "decode")}
    task = emulating.Task(
        plugin_of(build.target), build.target.provider, build.options, bundle.path / build.host, paths["prefill"],
        paths["decode"], PROMPT[:11], tuple(made[:3]), 0, 1, build.tools,
    )  # fmt: skip
    given = emulating.emulate(task)
    assert made == np.argmax([given.prefill[-1], *given.decode], axis=1).tolist()


# --- ARM --------------------------------------------------------------------------------------


@pytest.mark.arm64
def test_emulated_arm_gives_the_tokens_of_its_kernels(folder, bundle, tmp_path):
    program = built("aarch64")
    try:
        arm = find_arm64()
        there = There(str(find_runtime("aarch64")))
    except RunError as error:
        pytest.skip(f"{error.message}: {error.hint}")
    words = task_words(asked(bundle, tokens=PROMPT[:12], max_tokens=8), bundle, there)
    emulator = () if platform.machine() == "aarch64" else arm.command[:-1]
    lines = said([*emulator, program, *words], env=arm.environment)
    entries = [tuple(w.split("=")[1:]) for w in words if w.startswith("entry=session.qdq")]
    driven = DrivenGraph(arm, bundle.graph, bundle.graph.parent, 384, entries)
    try:
        expected: list[int] = []
        while len(expected) < 8:
            expected.append(int(np.argmax(driven.logits([*PROMPT[:12], *expected])[-1])))
    finally:
        driven.close()
    assert tokens_of(lines) == expected
    assert isinstance(lines[0], Hello)
    assert isinstance(lines[-1], Done)


# --- compiling --------------------------------------------------------------------------------


def test_it_is_compiled_once(runner, monkeypatch):
    monkeypatch.setattr(building, "_run", lambda *_, **__: pytest.fail("compiled again"))
    assert build_runner(platform.machine()) == runner


def test_what_is_missing_is_said_with_its_fix(monkeypatch, tmp_path):
    with pytest.raises(LabError, match="no compiler for 'riscv64'"):
        build_runner("riscv64")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for machine, fix in (("aarch64", "g++-aarch64-linux-gnu"), ("x86_64", "g++-x86-64-linux-gnu")):
        with pytest.raises(LabError, match="is not installed") as caught:
            build_runner(machine)
        assert caught.value.hint == f"apt-get install {fix}"
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "cmake" else f"/usr/bin/{name}")
    with pytest.raises(LabError, match="cmake") as caught:
        build_runner("x86_64")
    assert caught.value.hint == "apt-get install cmake"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(LabError, match="has no onnxruntime_c_api"):
        build_runner("x86_64", tmp_path)
    (tmp_path / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 21\n")
    with pytest.raises(LabError, match="version 21 of the C API, but 22 is needed"):
        build_runner("x86_64", tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "_SYSTEM", ())
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "apt-get" else f"/usr/bin/{name}")
    with pytest.raises(LabError, match="headers are not installed"):
        build_runner("x86_64")


def test_a_compiler_that_fails_leaves_nothing(runner, monkeypatch, tmp_path):
    """The headers are cut off."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers/onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 23\n")
    (tmp_path / "headers/onnxruntime_cxx_api.h").write_text("")
    with pytest.raises(LabError, match=r"cmake failed: .*error"):
        build_runner(platform.machine(), tmp_path / "headers")
    assert not list((tmp_path / "cache/native").iterdir())


def test_old_headers_of_the_system_are_passed_over(monkeypatch, tmp_path):
    for name, version in (("old", 21), ("new", 23)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "onnxruntime_c_api.h").write_text(f"#define ORT_API_VERSION {version}\n")
    monkeypatch.setattr(building, "_SYSTEM", (tmp_path / "old", tmp_path / "new"))
    assert building._find_headers() == tmp_path / "new"


def test_it_compiles_with_what_android_has(runner):
    """clang and libc++, as in the NDK; not its C library."""
    command = ["clang++", "-std=c++17", "-stdlib=libc++", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-isystem"]
    probe = "#include <string>\n"
    if (
        not shutil.which("clang++")
        or subprocess.run(
            [*command[:4], "-x", "c++", "-"], input=probe, text=True, capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("needs clang++ and libc++: apt-get install clang libc++-dev")
    source = Path(building.__file__).with_name("runner.cpp")
    done = subprocess.run([*command, building._find_headers(), source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_machine_without_a_runtime_here():
    with pytest.raises(LabError, match="no ONNX Runtime for s390x here"):
        find_runtime("s390x")
