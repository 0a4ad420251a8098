"""A program that computes logits for windows of token ids; it needs only numpy and onnxruntime.

``python predictor_worker.py GRAPH FOLDER WEIGHTS THREADS [KEY=VALUE ...]``: the ONNX file, the folder of its external
data, an .npz of additional weights or "", and session config entries. It prints a line of JSON about itself; then, for
each line of stdin (a JSON list of S token ids), a line with the JSON list [S, V] and the logits of every position of a
fresh sequence, S * V little-endian float32. It does not import edgekit, since it may run on another processor's Python.
"""

import json
import os
import platform
import sys

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in runtime.py

import onnxruntime  # noqa: TID251


def main(graph: str, folder: str, weights: str, threads: str, *entries: str) -> None:
    """Load the graph and answer until stdin ends."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    for entry in entries:
        options.add_session_config_entry(*entry.split("=", 1))
    arrays = dict(np.load(weights)) if weights else {}
    options.add_external_initializers(
        list(arrays), [onnxruntime.OrtValue.ortvalue_from_numpy(a) for a in arrays.values()]
    )
    with open(graph, "rb") as file:  # noqa: PTH123 - one import less for an emulator to load
        session = onnxruntime.InferenceSession(file.read(), options, providers=["CPUExecutionProvider"])
    inputs = {i.name: i for i in session.get_inputs()}
    # Outputs may overwrite the past's array; an empty cache has nothing to overwrite.
    empty = {
        name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float16 if "float16" in i.type else np.float32)
        for name, i in inputs.items()
        if name.startswith("past_key_values.")
    }
    out = sys.stdout.buffer
    out.write(json.dumps({"machine": platform.machine(), "runtime": onnxruntime.__version__}).encode() + b"\n")
    out.flush()
    for line in sys.stdin:
        ids = np.array([json.loads(line)], np.int64)
        positions = np.arange(ids.shape[1], dtype=np.int64)[None]
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
        feed = {name: value for name, value in feed.items() if name in inputs}
        logits = session.run(["logits"], feed | empty)[0][0]
        out.write(json.dumps(logits.shape).encode() + b"\n" + np.ascontiguousarray(logits, "<f4").tobytes())
        out.flush()


main(*sys.argv[1:])
