"""A bundle is data: what it says never chooses what this machine loads, imports, or writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.strangers.bundle_values import count, full_bundle
from edgekit.bundle import open_bundle
from edgekit.config.providers import SESSION_ENTRIES, find_provider, targets_folder
from edgekit.errors import BundleError
from edgekit.types import Bundle

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with a part for an NPU and a choice of kernels."""
    return full_bundle(tmp_path_factory.mktemp("full"))


@pytest.fixture
def manifest(full: Bundle) -> Any:
    """Its manifest, to be changed; it is put back."""
    path = full.path / "edgekit.json"
    good = path.read_bytes()
    yield json.loads(good)
    path.write_bytes(good)


def refusal(bundle: Bundle, manifest: dict[str, Any]) -> BundleError:
    (bundle.path / "edgekit.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle.path, check=False)
    assert caught.value.hint
    return caught.value


def test_a_bundle_as_it_was_built_is_admitted(full: Bundle) -> None:
    assert open_bundle(full.path, check=False).manifest == full.manifest


CASES: list[tuple[str, Change, str]] = [
    (
        "a session's entry that writes a file",
        lambda m: m["arm"]["chosen"]["entries"].append(["session.collect_node_memory_stats_to_file", ".bashrc"]),
        "arm.chosen.entries: 'session.collect_node_memory_stats_to_file' may not be set",
    ),
    (
        "an entry set to what it cannot be",
        lambda m: m["arm"]["chosen"].update(entries=[["mlas.disable_kleidiai", "/x"]]),
        "arm.chosen.entries: 'mlas.disable_kleidiai' must be one of 0, 1, not '/x'",
    ),
    (
        "an option twice",
        lambda m: m["npus"][0].update(options=[["soc_model", "57"], ["soc_model", "60"]]),
        "npus[0].options: 'soc_model' is set twice",
    ),
    (
        "a library of the bundle's",
        lambda m: m["npus"][0]["options"].append(["backend_path", "./evil.so"]),
        "npus[0].options: 'backend_path' may not be set",
    ),
    (
        "a number that is none",
        lambda m: m["npus"][0].update(options=[["soc_model", "57;x"]]),
        "npus[0].options: 'soc_model' must be a number from 0 to 9999, not '57;x'",
    ),
    (
        "options of the target",
        lambda m: m["target"].update(provider_options=[["profiling_file_path", "x"]]),
        "target.provider_options: 'profiling_file_path' may not be set",
    ),
    (
        "options of a scheme",
        lambda m: m["npus"][0]["target"]["npu"]["schemes"][0]["options"].append(["qnn_saver_path", "x"]),
        "npus[0].target.npu.schemes[0].options: 'qnn_saver_path' may not be set",
    ),
    (
        "what genai is told on the device",
        lambda m: m["target"]["npu"]["runtime"].update(options=[["backend_path", "/sdcard/evil.so"]]),
        "target.npu.runtime.options: 'backend_path' must be one of libQnnHtp.so",
    ),
    (
        "a package to import",
        lambda m: m["npus"][0]["target"]["npu"]["plugin"].update(module="evil"),
        "npus[0].target.npu.plugin.module: 'evil' differs from this edgekit's",
    ),
    (
        "a function of the package",
        lambda m: m["target"]["npu"]["plugin"].update(paths=[["backend_path", "install"]]),
        "target.npu.plugin.paths",
    ),
    (
        "a plugin for a provider that has none",
        lambda m: m["npus"][0]["target"].update(provider="CPUExecutionProvider"),
        "npus[0].target",
    ),
    ("a file elsewhere", lambda m: m["npus"][0].update(placement="/etc/passwd"), "npus[0].placement: '/etc/passwd'"),
    ("a graph elsewhere", lambda m: m["npus"][0].update(host="../x.onnx"), "npus[0].host: '../x.onnx'"),
    ("a folder elsewhere", lambda m: m["npus"][0].update(package="../.."), "npus[0].package: '../..'"),
    ("a device that is a path", lambda m: m["npus"][0]["target"].update(name="../../x"), "npus[0].target.name"),
    ("a program", lambda m: m["files"][0].update(path="numpy.py"), "files[0].path: 'numpy.py' is not a type of file"),
    ("a million threads", lambda m: m.update(tunings=[tuning(threads=1_000_000)]), "tunings[0].settings.threads"),
    (
        "runs of a billion tokens",
        lambda m: m.update(tunings=[tuning(prefill_chunk=10**9)]),
        "tunings[0].settings.prefill_chunk",
    ),
    ("heads without end", lambda m: m["spec"].update(heads=2**40), "spec.heads: expected a number from 1 to 1,024"),
    ("layers that are not there", lambda m: m["spec"].update(layers=3), "spec.layers: 3 layers with 2 windows"),
    ("a token outside", lambda m: m["spec"].update(eos_token_ids=[10**6]), "outside the vocabulary"),
    ("too many tensors", lambda m: m.update(tools=[["a", "b"]] * 70_000), "$.tools: expected at most 65,536 items"),
    ("a manifest without end", lambda m: m.update(files=m["files"] * 20_000), "more than 16,777,216 bytes"),
]


def tuning(**changes: Any) -> dict[str, Any]:
    settings = {
        "threads": 1,
        "spinning": True,
        "pinned": False,
        "prompt_graph": "decoder",
        "prefill_chunk": 128,
        "decode_graph_max_tokens": 4,
    }
    return {
        "machine": "m",
        "runtime": "r",
        "settings": settings | changes,
        "kept": True,
        "trials": [],
        "left_out": [],
        "waited": None,
        "time": "t",
    }


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_what_a_bundle_may_not_say_is_refused_by_its_key(
    full: Bundle, manifest: dict[str, Any], change: Change, message: str
) -> None:
    change(manifest)
    assert message in refusal(full, manifest).message


@pytest.mark.parametrize("field", ["note", "sdk", "requirement", "extra", "licence", "chip"])
def test_what_is_known_of_a_package_is_this_installations(full: Bundle, manifest: dict[str, Any], field: str) -> None:
    manifest["npus"][0]["target"]["npu"]["plugin"][field] = "(a+)+$"
    (full.path / "edgekit.json").write_text(json.dumps(manifest))
    (build,) = open_bundle(full.path, check=False).manifest.npus
    known = find_provider(build.target.provider)
    assert known is not None
    assert build.target.npu is not None
    assert build.target.npu.plugin == known.plugin


RUNTIME: list[tuple[str, Change, str]] = [
    (
        "a library",
        lambda c: c["model"]["decoder"]["session_options"].update(custom_ops_library="x.so"),
        "does not write",
    ),
    (
        "a provider",
        lambda c: c["model"]["decoder"]["session_options"].update(provider_options=[{"cuda": {}}]),
        "'cuda'",
    ),
    ("a file", lambda c: c["model"]["decoder"].update(filename="../../evil.onnx"), "'../../evil.onnx'"),
    ("an adapter", lambda c: c["model"].update(adapters="x"), "model.adapters: edgekit does not write this key"),
    ("no object", lambda c: c.update(model=[[{"session_options": {"config_entries": {}}}]]), "config_entries"),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in RUNTIME], ids=[c[0] for c in RUNTIME])
def test_what_is_meant_for_genai_is_what_edgekit_writes(
    full: Bundle, manifest: dict[str, Any], change: Change, message: str
) -> None:
    file = full.path / "genai_config.json"
    good = file.read_bytes()
    config = json.loads(good)
    change(config)
    try:
        file.write_text(json.dumps(config))
        next(f for f in manifest["files"] if f["path"] == file.name)["bytes"] = file.stat().st_size
        error = refusal(full, manifest)
        assert message in error.message
    finally:
        file.write_bytes(good)


def test_no_value_of_a_manifest_runs_code_or_writes_a_file() -> None:
    effects, tried, found = count(limit=150)
    assert tried > 200
    assert effects == 0, found


@pytest.mark.parametrize("name", ["numpy", "onnxruntime", "onnxruntime_qnn", "typer", "json"])
def test_the_current_folder_is_not_where_modules_come_from(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    command = [sys.executable, "-m", "edgekit", "verify", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "not a bundle" in done.stdout + done.stderr
    assert not mark.exists()


def test_nothing_that_may_be_set_names_a_file_or_a_library() -> None:
    folder = targets_folder() / "providers"
    for name in (f.name.removesuffix(".toml") for f in folder.iterdir()):
        provider = find_provider(name)
        assert provider is not None
        for option in (*provider.options, *provider.runtime):
            words = [w for w in option.words if "/" in w or "\\" in w or ".." in w]
            assert not words, option
            assert option.words or option.limits, option
    assert all("file" not in key and "library" not in key for key in SESSION_ENTRIES)
