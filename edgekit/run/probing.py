"""A program and a function: opens probes and says which known sums came out, wherever there is onnxruntime.

``python probing.py FILE ... [KEY=VALUE ...]`` prints a line of JSON for each file: its name, and what each matmul of
it is worth, or null where this runtime does not load it. A kernel that the processor lacks ends the process: the file
after the last line is the one. It imports nothing of edgekit: the Python that runs it may belong to another processor.
"""

import json
import os
import sys
from typing import Any


def run_probe(onnxruntime: Any, model: bytes, entries: tuple[tuple[str, str], ...]) -> dict[str, bool] | None:
    """The matmuls of a probe by name, True where the result is the known sum; None where it does not load.

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
    """Open the files named, one after another."""
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
