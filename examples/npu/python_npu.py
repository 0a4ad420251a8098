"""Run a compiled model with plain ONNX Runtime, without edgekit; npu.cpp and Npu.kt do the same.

On the device (Snapdragon with Linux or Windows):

    pip install onnxruntime onnxruntime-qnn tokenizers numpy
    python python_npu.py npu/galaxy-s24 "The capital of France is"

On a laptop, ``--emulate`` runs the same binaries on the emulator of onnxruntime-qnn (x86-64 Linux), and ``--cpu`` the
graphs that they were compiled from, which are in the bundle, so the folder must be inside one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

PROVIDER = "QNNExecutionProvider"


def npu_options(folder: Path, emulate: bool) -> ort.SessionOptions:
    """Session options for the NPU that do not let nodes fall back to the CPU."""
    import onnxruntime_qnn

    ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    wanted = ort.OrtHardwareDeviceType.CPU if emulate else ort.OrtHardwareDeviceType.NPU
    devices = [d for d in ort.get_ep_devices() if d.ep_name == PROVIDER and d.device.type == wanted]
    if not devices:
        raise SystemExit(f"{PROVIDER} finds no {wanted.name} on this machine")
    (stages,) = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]["pipeline"]
    options = next(
        dict(option)
        for stage in stages.values()
        for provider in stage["session_options"]["provider_options"]
        for option in provider.values()
    )
    made = ort.SessionOptions()
    made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    made.add_provider_for_devices(devices[:1], options | {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
    return made


def uncompiled(folder: Path) -> dict[str, Path]:
    """The source graph of each compiled graph in a bundle's folder."""
    bundle = folder.parent.parent
    builds = json.loads((bundle / "edgekit.json").read_text())["npus"]
    graphs = [g for build in builds for g in build["graphs"] if not g["shared"]]
    return {str(bundle / g["context"]): bundle / g["source"] for g in graphs}


class Model:
    """The host graph, the two chains of static graphs, and the cache."""

    def __init__(self, folder: Path, options: ort.SessionOptions | None) -> None:
        self.host = ort.InferenceSession(folder / "host.onnx", providers=["CPUExecutionProvider"])
        self.prefill, self.decode = ([_open(p, options) for p in chain(folder, r)] for r in ("prefill", "decode"))
        inputs = [i for session in self.prefill for i in session.get_inputs()]
        kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(uint16)": np.uint16}
        self.cache = {i.name: np.zeros(i.shape, kinds[i.type]) for i in inputs if i.name.startswith("past_")}
        self.width = next(i.shape[1] for i in inputs if i.name == "inputs_embeds")
        self.slots = next(iter(self.cache.values())).shape[2]
        self.length = 0

    def feed(self, ids: list[int]) -> int:
        """Feed a prompt or a token, and return the most likely next token."""
        width = 1 if len(ids) == 1 else self.width
        for start in range(0, len(ids), width):
            logits = self.run(ids[start : start + width], width)
        return int(np.argmax(logits))

    def run(self, ids: list[int], width: int) -> np.ndarray:
        """Logits [V] of the last of up to ``width`` tokens."""
        if self.length + len(ids) > self.slots:
            raise SystemExit(f"the cache has {self.slots} slots")
        filled = np.zeros((1, width), np.int64)
        filled[0, : len(ids)] = ids
        positions = self.length + np.arange(width)[None]
        values = dict(self.cache)
        values |= run(self.host, {"input_ids": filled, "position_ids": positions})
        for session in self.decode if width == 1 else self.prefill:
            values |= run(session, {i.name: values[i.name] for i in session.get_inputs()})
        # The graphs return only the new keys and values; copy the rows of real tokens to their slots.
        for name, past in self.cache.items():
            new = values[name.replace("past_key_values.", "new.")]
            past[:, :, self.length : self.length + len(ids)] = new[:, :, : len(ids)]
        self.length += len(ids)
        return values["logits"][0, len(ids) - 1]


def _open(path: Path, options: ort.SessionOptions | None) -> ort.InferenceSession:
    if options is None:
        return ort.InferenceSession(uncompiled(path.parent)[str(path)], providers=["CPUExecutionProvider"])
    return ort.InferenceSession(path, options)


def run(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def chain(folder: Path, role: str) -> list[Path]:
    """``prefill.onnx``, or ``prefill.0.onnx``, ``prefill.1.onnx``, ... if the model was split."""
    parts = sorted(folder.glob(f"{role}.*.onnx"), key=lambda path: int(path.name.split(".")[1]))
    return parts or [folder / f"{role}.onnx"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Continue a prompt on an NPU.")
    parser.add_argument("folder", type=Path, help="npu/<target> of a bundle")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--ids", action="store_true", help="print token ids")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--emulate", action="store_true", help="run on the emulator of onnxruntime-qnn")
    where.add_argument("--cpu", action="store_true", help="run the source graphs on the CPU")
    given = parser.parse_args()
    folder = given.folder.resolve()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Model(folder, None if given.cpu else npu_options(folder, given.emulate))
    made = [model.feed(tokenizer.encode(given.prompt).ids)]
    while len(made) < given.tokens and model.length < model.slots:
        made.append(model.feed(made[-1:]))
    print(made if given.ids else tokenizer.decode(made))


if __name__ == "__main__":
    main()
