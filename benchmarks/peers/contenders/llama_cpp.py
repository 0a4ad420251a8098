"""llama.cpp, Q4_0 --pure, built here from llama-cpp-python's source with this processor's instructions.

The library is called directly, as its own tools do: llama_decode with one sequence, logits of the last position alone,
the largest taken. llama-bench does the same without choosing a token.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.contender import Command, Contender, Place, Timing, feed_back, pip_install

RELEASE = "0.3.36"
Q4_0 = 2
"""LLAMA_FTYPE_MOSTLY_Q4_0 of llama.h."""
BATCH = 512
"""Tokens computed at once: llama.cpp's own default for the physical batch."""


class LlamaModel:
    """A GGUF file and one context."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        import llama_cpp
        import numpy as np

        self._llama, self._np = llama_cpp, np
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        file = str(path / "model.gguf").encode()
        self._model = llama_cpp.llama_model_load_from_file(file, llama_cpp.llama_model_default_params())
        if not self._model:
            sys.exit(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = context
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._one = (ctypes.c_int32 * 1)()

    def generate(self, prompt: list[int], new: int) -> Timing:
        """See Model."""
        self._forget()
        return feed_back(self._prefill, self._step, prompt, new)

    def logits(self, tokens: list[int]) -> Any:
        """See Model. One batch that asks for the logits of every token."""
        self._forget()
        batch = self._llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        self._decode(batch)
        rows = [self._row(i).copy() for i in range(len(tokens))]
        self._llama.llama_batch_free(batch)
        return self._np.stack(rows)

    def _prefill(self, tokens: list[int]) -> Any:
        for start in range(0, len(tokens), BATCH):
            piece = tokens[start : start + BATCH]
            ids = (ctypes.c_int32 * len(piece))(*piece)  # the batch points into it, and does not keep it alive
            self._decode(self._llama.llama_batch_get_one(ids, len(piece)))
        return self._row(-1)

    def _step(self, token: int) -> Any:
        self._one[0] = token
        self._decode(self._llama.llama_batch_get_one(self._one, 1))
        return self._row(-1)

    def _decode(self, batch: Any) -> None:
        code = self._llama.llama_decode(self._context, batch)
        if code:
            sys.exit(f"llama_decode gave {code}")

    def _row(self, i: int) -> Any:
        return self._np.ctypeslib.as_array(self._llama.llama_get_logits_ith(self._context, i), (self._vocab,))

    def _forget(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)


def _sources(place: Place) -> Path:
    return place.folder / f"llama_cpp_python-{RELEASE}"


def _install(place: Place) -> list[Command]:
    archive = ["download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(place.folder)]
    flags = f"-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF {_without_amx()}".strip()
    native = ["/usr/bin/env", f"CMAKE_ARGS={flags}"]
    return [
        [place.python, "-m", "pip", *archive, f"llama-cpp-python=={RELEASE}"],
        ["/bin/tar", "-xzf", f"{_sources(place)}.tar.gz", "-C", str(place.folder)],
        pip_install(place, "torch==2.13.0", "transformers", "gguf", "sentencepiece", "protobuf"),
        [*native, *pip_install(place, str(_sources(place)))],
    ]


def _without_amx() -> str:
    """On processors with AMX, release RELEASE ends in a segmentation fault on this model: rows of 576 weights."""
    if platform.machine() != "x86_64":
        return ""
    off = " ".join(f"-mno-amx-{part}" for part in ("tile", "int8", "bf16"))
    return f"'-DCMAKE_C_FLAGS={off}' '-DCMAKE_CXX_FLAGS={off}'"


def _convert(place: Place, source: Path, out: Path) -> list[Command]:
    script = _sources(place) / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
    full = out / "full.gguf"
    return [
        ["/bin/mkdir", "-p", str(out)],
        [place.python, str(script), str(source), "--outtype", "f32", "--outfile", str(full)],
        [place.python, "-m", __name__, str(full), str(out / "model.gguf")],
        ["/bin/rm", str(full)],
    ]


def quantize(source: Path, out: Path) -> None:
    """What `llama-quantize --pure SOURCE OUT Q4_0` does."""
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.pure = Q4_0, True
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings))
    if code:
        sys.exit(f"llama_model_quantize gave {code}")


CONTENDERS = (
    Contender(
        name="llama.cpp",
        title="llama.cpp Q4_0 pure",
        environment="llama",
        install=_install,
        convert=_convert,
        imports=("llama_cpp",),
        open=LlamaModel,
        packages=("llama-cpp-python",),
    ),
)

if __name__ == "__main__":
    quantize(Path(sys.argv[1]), Path(sys.argv[2]))
