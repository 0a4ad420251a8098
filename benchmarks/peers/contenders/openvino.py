"""OpenVINO: optimum-intel's INT4 export, run by OpenVINO GenAI's pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.contender import Command, Contender, Place, Timing, pip_install

if TYPE_CHECKING:
    from pathlib import Path


class OpenvinoModel:
    """The pipeline keeps the keys and values of prompts it has seen: measure with a new prompt every time."""

    def __init__(self, path: Path, threads: int, context: int) -> None:  # noqa: ARG002 - the cache grows by itself
        import openvino_genai

        self._genai = openvino_genai
        self._path, self._threads = path, threads
        self._pipeline = openvino_genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads)
        self._compiled: Any = None

    def generate(self, prompt: list[int], new: int) -> Timing:
        """See Model. The pipeline's own clock: time to the first token, time of each one after it."""
        import numpy as np
        import openvino

        ids = openvino.Tensor(np.array([prompt], np.int64))
        mask = openvino.Tensor(np.ones((1, len(prompt)), np.int64))
        config = self._genai.GenerationConfig()
        config.max_new_tokens = new + 1
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        result = self._pipeline.generate(self._genai.TokenizedInputs(ids, mask), config)
        clock = result.perf_metrics
        decode = clock.get_tpot().mean * new / 1e3 if new else 0.0
        return Timing(clock.get_ttft().mean / 1e3, decode, tuple(result.tokens[0]))

    def logits(self, tokens: list[int]) -> Any:
        """See Model. The pipeline gives none: the same graph, compiled by the same plugin with the same settings."""
        import numpy as np
        import openvino

        if self._compiled is None:
            self._compiled = openvino.Core().compile_model(
                str(self._path / "openvino_model.xml"), "CPU", {"INFERENCE_NUM_THREADS": self._threads}
            )
        count = len(tokens)
        feeds = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, count), np.int64),
            "position_ids": np.arange(count, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        taken = {value.get_any_name() for value in self._compiled.inputs}
        request = self._compiled.create_infer_request()
        return request.infer({name: value for name, value in feeds.items() if name in taken})["logits"][0]


def _install(place: Place) -> list[Command]:
    return [
        pip_install(place, "optimum-intel[openvino]", "openvino-genai", "torch==2.13.0"),
        # It comes along, is not needed, and does not fit this torch: with it the export does not start.
        [place.python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"],
    ]


def _convert(place: Place, source: Path, out: Path) -> list[Command]:
    command = place.python.replace("bin/python", "bin/optimum-cli")
    weights = ["--weight-format", "int4", "--group-size", "32", "--ratio", "1.0"]
    export = [command, "export", "openvino", "--model", str(source), "--task", "text-generation-with-past"]
    return [[*export, *weights, str(out)]]


CONTENDERS = (
    Contender(
        name="openvino",
        title="OpenVINO GenAI int4",
        environment="openvino",
        install=_install,
        convert=_convert,
        imports=("openvino_genai",),
        open=OpenvinoModel,
        packages=("openvino-genai", "openvino", "optimum-intel", "nncf"),
    ),
)
