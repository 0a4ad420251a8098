"""Run probes and report which matmuls produce the known sums; as a function, and as a program that needs onnxruntime.

``python probing.py FILE ... [KEY=VALUE ...]`` prints a line of JSON for each file: its name, and whether each of its
matmuls is right, or null if this runtime does not load it. A kernel that the processor does not support crashes the
process; the file after the last line caused it. It does not import edgekit, since it may run on another processor.
"""

import json
import os
import sys
from typing import Any


def run_probe(onnxruntime: Any, model: bytes, entries: tuple[tuple[str, str], ...]) -> dict[str, bool] | None:
    """Whether the result of each matmul of a probe is the known sum, by name; None if the probe does not load.

    Args:
        onnxruntime: the package.
        model: the probe's file.
        entries: session config entries.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in entries:
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        results = session.run(None, {})
    except Exception:
        return None
    limits = json.loads(session.get_modelmeta().custom_metadata_map["limits"])
    names = [output.name for output in session.get_outputs()]
    return {name: bool(abs(off).max() <= limits[name]) for name, off in zip(names, results, strict=True)}


def main(*words: str) -> None:
    """Run the probes in the given files."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in runtime.py
    import onnxruntime  # noqa: TID251

    entries = tuple((word.partition("=")[0], word.partition("=")[2]) for word in words if "=" in word)
    out = sys.stdout
    for word in words:
        if "=" not in word:
            with open(word, "rb") as file:  # noqa: PTH123 - one import less for an emulator to load
                found = run_probe(onnxruntime, file.read(), entries)
            out.write(json.dumps([word, found]) + "\n")
            out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
