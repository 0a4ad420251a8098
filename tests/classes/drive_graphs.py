"""A program: runs graphs where there are numpy and onnxruntime, and nothing of edgekit.

``python drive_graphs.py JOBS.json OUT.npz``: JOBS has ``tokens`` and ``graphs``; each of these has ``name``, ``graph``,
``folder`` of its external data, ``weights`` (an .npz or "") and ``entries`` of the session.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime


def run(job, tokens):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", job["folder"])
    for key, value in job["entries"]:
        options.add_session_config_entry(key, value)
    arrays = dict(np.load(job["weights"])) if job["weights"] else {}
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    model = Path(job["graph"]).read_bytes()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    ids = np.array([tokens], np.int64)
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
    }
    inputs = {i.name: i for i in session.get_inputs()}
    feed = {name: value for name, value in feed.items() if name in inputs}
    for name, i in inputs.items():
        if name.startswith("past_key_values."):
            kind = np.float16 if "float16" in i.type else np.float32
            feed[name] = np.zeros((1, i.shape[1], 0, i.shape[3]), kind)
    return session.run(["logits"], feed)[0][0]


jobs = json.loads(Path(sys.argv[1]).read_text())
np.savez(sys.argv[2], **{job["name"]: run(job, jobs["tokens"]) for job in jobs["graphs"]})
