"""npu/<target>/ in onnxruntime-genai, as it is written: its graphs on the CPU or, compiled, on the emulator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.run import Tokenizer
from edgekit.types import Bundle
from tests.npus import (
    SLOTS,
    WIDTH,
    build_tiny,
    greedy,
    needs_compiler,
    portable_runner,
    signed_checkpoint,
    static_runner,
    tiny_target,
)

HERE = Path(__file__).parent
TOKENS = 12
TEXT = "The quick brown fox, 3 times."
LENGTHS = (1, 2, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH, 3 * WIDTH + 3, SLOTS - 4)

pytestmark = pytest.mark.skipif(find_spec("onnxruntime_genai") is None, reason="needs onnxruntime-genai")


def prompts(bundle: Bundle) -> list[list[int]]:
    """One of each length; all contain the padding token, which must not be taken for padding."""
    random = np.random.default_rng(0)
    made = [random.integers(4, bundle.manifest.spec.vocab_size, n).tolist() for n in LENGTHS]
    for prompt in made:
        prompt[len(prompt) // 2] = bundle.manifest.spec.pad_token_id
    return made


def ask(folder: Path, given: Sequence[Sequence[int]], tokens: int, plugin: Sequence[str] = ()) -> dict[str, Any]:
    question = {"folder": str(folder), "prompts": given, "tokens": tokens, "text": TEXT, "plugin": plugin}
    command = [sys.executable, str(HERE / "drive_genai_pipeline.py"), json.dumps(question)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def device_folder(bundle: Bundle, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Exactly what goes to the device, with ``change`` made to each stage of its configuration."""
    build = bundle.manifest.npus[0]
    folder.mkdir()
    for path in (bundle.path / build.folder).iterdir():
        if path.name != "genai_config.json":
            (folder / path.name).symlink_to(path)
    config = json.loads((bundle.path / build.folder / "genai_config.json").read_text())
    for stage in config["model"]["decoder"]["pipeline"][0].values():
        change(stage)
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


def on_cpu(bundle: Bundle, folder: Path) -> Path:
    """The compiled graphs replaced by what they were compiled from."""
    build = bundle.manifest.npus[0]
    sources = {Path(g.context).name: g.source for g in build.graphs if not g.shared}

    def change(stage: dict[str, Any]) -> None:
        if stage["filename"] in sources:
            stage["filename"] = Path(sources[stage["filename"]]).name
            stage["session_options"]["provider_options"] = []
        assert stage["session_options"]["provider_options"] == []

    made = device_folder(bundle, folder, change)
    for path in (bundle.path / "onnx").iterdir():
        (made / path.name).symlink_to(path)
    return made


@pytest.mark.parametrize("largest", [10**9, 140_000], ids=["whole", "in parts"])
def test_the_tokens_are_those_of_our_own_runners(largest: int, tmp_path: Path) -> None:
    bundle = build_tiny(tmp_path, largest_graph_bytes=largest)
    assert len(bundle.manifest.npus[0].chain("decode")) == (1 if largest == 10**9 else 2)
    given = prompts(bundle)
    answer = ask(on_cpu(bundle, tmp_path / "device"), given, TOKENS)
    for runner in (static_runner(bundle), portable_runner(bundle)):
        ours = [greedy(runner, prompt, TOKENS) for prompt in given]
        runner.close()
        # The cache's last slot ends genai's answer before the token that ours still knows.
        assert answer["ids"] == [row[: SLOTS - len(prompt)] for row, prompt in zip(ours, given, strict=True)]
    assert all(len(set(row)) > 2 for row in answer["ids"])
    assert answer["text"] == Tokenizer.of(bundle).encode(TEXT)


def test_the_folder_holds_all_that_its_configuration_names(tmp_path: Path) -> None:
    bundle = build_tiny(tmp_path, largest_graph_bytes=140_000)
    build = bundle.manifest.npus[0]
    folder = bundle.path / build.folder
    config = json.loads((folder / "genai_config.json").read_text())
    (stages,) = config["model"]["decoder"]["pipeline"]
    assert list(stages) == ["chunk", "host", "prefill.0", "prefill.1", "decode.0", "decode.1", "cache"]
    runtime = {"qnn": {"backend_path": "libQnnHtp.so", "htp_performance_mode": "burst"}}
    for name, stage in stages.items():
        assert (folder / stage["filename"]).is_file()
        compiled = name.partition(".")[0] in ("prefill", "decode")
        assert stage["session_options"]["provider_options"] == ([runtime] if compiled else [])
        assert stage["run_on_prompt"] != name.startswith("decode")
        assert stage["run_on_token_gen"] != name.startswith("prefill")
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in folder.iterdir()}
    listed = {entry.path for entry in bundle.manifest.files}
    assert {
        f"{build.folder}/{n}" for n in ("genai_config.json", "chunk.onnx", "cache.onnx", "tokenizer.json")
    } <= listed


@needs_compiler
def test_the_emulator_gives_the_same_tokens(tmp_path: Path) -> None:
    import onnxruntime_qnn

    checkpoint, target = signed_checkpoint(tmp_path / "checkpoint"), tiny_target()
    bundle = build_bundle(
        str(checkpoint), target=target, precision="fp16", out=tmp_path / "b", npu=ForNpu(emulate=False)
    )
    paths = {"backend_path": onnxruntime_qnn.get_qnn_htp_path()}

    def change(stage: dict[str, Any]) -> None:
        for provider in stage["session_options"]["provider_options"]:
            provider["qnn"] |= paths

    given = prompts(bundle)[1:7:2]
    plugin = (target.provider, onnxruntime_qnn.get_library_path())
    answer = ask(device_folder(bundle, tmp_path / "device", change), given, 5, plugin)
    assert answer["ids"] == [greedy(static_runner(bundle), prompt, 5) for prompt in given]
