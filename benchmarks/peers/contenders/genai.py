"""onnxruntime-genai: its model builder's INT4, its own generator."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from benchmarks.peers.contender import Command, Contender, Place, Timing, pip_install

if TYPE_CHECKING:
    from pathlib import Path


class GenaiModel:
    """By itself the runtime takes one thread on a machine of two cores: genai_config.json is told the number."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        self._path, self._threads, self._context = path, threads, context
        config = onnxruntime_genai.Config(str(path))
        session = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = onnxruntime_genai.Model(config)

    def generate(self, prompt: list[int], new: int) -> Timing:
        """See Model. The end of the text is held back by asking for so many tokens at least."""
        import numpy as np

        clock = time.perf_counter
        whole = len(prompt) + 1 + new
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=min(whole + 1, self._context), min_length=whole, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        fed = np.array([prompt], np.int32)
        started = clock()
        generator.append_tokens(fed)
        generator.generate_next_token()
        tokens = [int(generator.get_next_tokens()[0])]
        first = clock()
        for _ in range(new):
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        return Timing(first - started, clock() - first, tuple(tokens))

    def logits(self, tokens: list[int]) -> Any:
        """See Model. The shipped graph in ONNX Runtime, which is what the generator runs it in."""
        from benchmarks.graph_runner import GraphRunner

        settings = json.loads((self._path / "genai_config.json").read_text())
        head_dim = settings["model"]["decoder"]["head_size"]
        return GraphRunner(self._path / "model.onnx", head_dim, self._threads).logits(tokens)


def _install(place: Place) -> list[Command]:
    return [pip_install(place, "onnxruntime-genai", "onnx", "onnx-ir", "transformers", "torch==2.13.0")]


def _convert(place: Place, source: Path, out: Path) -> list[Command]:
    builder = [place.python, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out)]
    return [[*builder, "-p", "int4", "-e", "cpu", "-c", str(place.folder / "cache")]]


CONTENDERS = (
    Contender(
        name="genai",
        title="onnxruntime-genai int4",
        environment="genai",
        install=_install,
        convert=_convert,
        imports=("onnxruntime_genai",),
        open=GenaiModel,
        packages=("onnxruntime-genai", "onnxruntime"),
    ),
)
