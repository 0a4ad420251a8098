"""Bundles that edgekit built, the tokens its own runner gives, and the other runtimes in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.build.pipeline import build_bundle
from edgekit.bundle import open_bundle
from edgekit.host.cache import cache_folder
from edgekit.run import Tokenizer, generate, load_runner
from edgekit.testing import tiny_checkpoint, tiny_config, tiny_weights
from edgekit.types import Bundle, Precision, Sampling

HERE = Path(__file__).parent
TOKENS = 32
TEXT = "The quick brown fox, 3 times."
NAMES = ("int4", "int8", "fp16", "fp32", "portable")


@dataclass(frozen=True)
class Case:
    """A bundle, a prompt, and what edgekit itself makes of them."""

    bundle: Bundle
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    text: tuple[int, ...]

    @classmethod
    def of(cls, bundle: Bundle, prompt: Sequence[int]) -> Case:
        tokenizer = Tokenizer.of(bundle)
        runner = load_runner(bundle)
        ids = tuple(e.token for e in generate(runner, tokenizer, prompt, Sampling(max_new_tokens=TOKENS)))
        runner.close()
        # A greedy loop that ends early or repeats one token would agree too easily.
        assert len(ids) == TOKENS
        assert len(set(ids)) >= TOKENS // 4
        return cls(bundle, tuple(prompt), ids, tuple(tokenizer.encode(TEXT)))

    def question(self) -> dict[str, Any]:
        """What a driver needs to know."""
        return {
            "bundle": str(self.bundle.path),
            "graph": self.bundle.manifest.graph,
            "prompt": self.prompt,
            "tokens": TOKENS,
            "text": TEXT,
        }

    def check(self, answer: dict[str, list[int]]) -> None:
        """Same tokens from the graph, same ids from the tokenizer, and the bundle is still what was built."""
        name = self.bundle.path.name
        assert (name, answer["ids"]) == (name, list(self.ids))
        assert (name, answer["text"]) == (name, list(self.text))
        open_bundle(self.bundle.path)


Ask = Callable[[Sequence[Case]], list[dict[str, list[int]]]]


@pytest.fixture(scope="session")
def tiny_cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """A tied model at every precision, and at four bits in the portable dialect."""
    folder = tmp_path_factory.mktemp("interop")
    checkpoint = tiny_checkpoint(folder / "checkpoint")
    weights = tiny_weights(tiny_config())
    # Random signs part the output from the input: a tied model of random weights repeats its last token otherwise.
    weights["model.norm.weight"] *= np.random.default_rng(7).choice((-1.0, 1.0), 64).astype(np.float32)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})

    def case(name: str) -> Case:
        precision: Precision = "int4" if name == "portable" else name  # type: ignore[assignment]
        target = "portable" if name == "portable" else "cpu"
        bundle = build_bundle(str(checkpoint), target=target, precision=precision, out=folder / name)
        return Case.of(bundle, (5, 9, 77, 200, 31))

    return {name: case(name) for name in NAMES}


@pytest.fixture(scope="session")
def real_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """SmolLM2-135M-Instruct at four bits."""
    out = tmp_path_factory.mktemp("interop") / "smollm2"
    bundle = build_bundle("smollm2-135m", precision="int4", out=out)
    return Case.of(bundle, Tokenizer.of(bundle).encode("Once upon a time, in a village by the sea, there lived"))


def asker(command: Sequence[str | Path]) -> Ask:
    """A function that gives all cases to one process and reads its answers."""

    def ask(cases: Sequence[Case]) -> list[dict[str, list[int]]]:
        questions = json.dumps([c.question() for c in cases])
        done = subprocess.run(
            [*map(str, command), questions],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        answers: list[dict[str, list[int]]] = json.loads(done.stdout.splitlines()[-1])
        return answers

    return ask


@pytest.fixture(scope="session")
def genai() -> Ask:
    if find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not installed: pip install onnxruntime-genai")
    return asker([sys.executable, HERE / "drive_genai.py"])


@pytest.fixture(scope="session")
def optimum() -> Ask:
    default = cache_folder() / "optimum" / "bin" / "python"
    python = Path(os.environ.get("EDGEKIT_OPTIMUM_PYTHON") or default)
    if not python.is_file():
        pytest.skip(f"no optimum environment at {python}: edgekit doctor --install optimum")
    return asker([python, HERE / "drive_optimum.py"])


@pytest.fixture(scope="session")
def javascript() -> Ask:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    home = cache_folder() / "node"
    if not home.is_dir():
        install_transformers_js(npm, home)
    return asker([node, HERE / "drive_javascript.mjs", home])


def install_transformers_js(npm: str, home: Path) -> None:
    """Install transformers.js once. Its onnxruntime-node would fetch from elsewhere in a script: scripts stay off."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".node-") as temporary:
        fresh = Path(temporary) / "node"
        fresh.mkdir()
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(fresh)]
        subprocess.run([*command, "@huggingface/transformers@4"], check=True, capture_output=True, timeout=240)
        fresh.rename(home)
