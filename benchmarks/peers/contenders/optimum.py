"""optimum-onnx: its export, dynamically quantized to int8 (AVX512-VNNI), run by its own ORTModelForCausalLM."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from benchmarks.peers.contender import Command, Contender, Place, Timing, pip_install

if TYPE_CHECKING:
    from pathlib import Path

FILE = "model_quantized.onnx"


class OptimumModel:
    """A model of transformers' kind whose forward pass is ONNX Runtime's."""

    def __init__(self, path: Path, threads: int, context: int) -> None:  # noqa: ARG002 - the cache grows by itself
        import onnxruntime  # noqa: TID251
        import torch  # noqa: TID251 - the peer's own environment
        from optimum.onnxruntime import ORTModelForCausalLM  # noqa: TID251

        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._torch = torch
        self._model = ORTModelForCausalLM.from_pretrained(path, file_name=FILE, session_options=options)

    def generate(self, prompt: list[int], new: int) -> Timing:
        """See Model. A stopping criterion that never stops tells when each token was there."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        torch, stamps = self._torch, []

        class Clock(StoppingCriteria):
            def __call__(self, ids: Any, *_: Any, **__: Any) -> Any:
                stamps.append(time.perf_counter())
                return torch.zeros(ids.shape[0], dtype=torch.bool)

        ids = torch.tensor([prompt])
        lengths = {"max_new_tokens": new + 1, "min_new_tokens": new + 1}
        with torch.inference_mode():
            started = time.perf_counter()
            out = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([Clock()]),
                **lengths,
            )
        return Timing(stamps[0] - started, stamps[-1] - stamps[0], tuple(out[0, len(prompt) :].tolist()))

    def logits(self, tokens: list[int]) -> Any:
        """See Model."""
        ids = self._torch.tensor([tokens])
        with self._torch.inference_mode():
            return self._model(input_ids=ids, attention_mask=self._torch.ones_like(ids)).logits[0].float().numpy()


def _install(place: Place) -> list[Command]:
    return [pip_install(place, "optimum-onnx[onnxruntime]", "torch==2.13.0")]


def _convert(place: Place, source: Path, out: Path) -> list[Command]:
    command = place.python.replace("bin/python", "bin/optimum-cli")
    full = out.with_name(f"{out.name}-full")
    return [
        ["/bin/rm", "-rf", str(full)],
        [command, "export", "onnx", "--model", str(source), "--task", "text-generation-with-past", str(full)],
        [command, "onnxruntime", "quantize", "--onnx_model", str(full), "--avx512_vnni", "-o", str(out)],
        ["/bin/rm", "-r", str(full)],
    ]


CONTENDERS = (
    Contender(
        name="optimum",
        title="optimum-onnx int8, dynamic",
        environment="optimum",
        install=_install,
        convert=_convert,
        imports=("torch", "optimum.onnxruntime"),
        open=OptimumModel,
        packages=("optimum-onnx", "optimum", "onnxruntime", "torch", "transformers"),
    ),
)
