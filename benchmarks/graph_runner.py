"""The logits of another tool's ONNX graph. Needs only numpy and onnxruntime, as it also runs in peers' environments."""

from pathlib import Path

import numpy as np


class GraphRunner:
    """A decoder's graph with any of the usual inputs; runs one prompt at a time, from an empty cache."""

    def __init__(self, path: Path, head_dim: int, threads: int = 0) -> None:
        # Telemetry is off: by session.py in peers' environments, which lack edgekit, and by edgekit.run elsewhere.
        import onnxruntime  # noqa: TID251

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._head_dim = head_dim
        self.vocab_size = self._session.get_outputs()[0].shape[-1]

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Logits [S,V] of every position."""
        length = len(tokens)
        feeds = {}
        for value in self._session.get_inputs():
            if value.name == "input_ids":
                feeds[value.name] = np.asarray([tokens], np.int64)
            elif value.name == "attention_mask":
                feeds[value.name] = np.ones((1, length), np.int64)
            elif value.name == "position_ids":
                feeds[value.name] = np.arange(length)[None]
            else:
                _, heads, _, _ = value.shape
                feeds[value.name] = np.zeros((1, heads, 0, self._head_dim), np.float32)
        return self._session.run(["logits"], feeds)[0][0]

    def close(self) -> None:
        """Do nothing; there is nothing to release."""
