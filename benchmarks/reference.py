"""Make an FP32 reference that lies on no quantization grid, from a quantized GGUF file.

    python benchmarks/reference.py OUT [--model smollm2-135m] [--seed 1234]

A quantized file stores the bin of each weight, without the rounding error. This adds seeded uniform noise over each
weight's bin, so that scoring a 4-bit bundle against it measures quantization, not whether it finds the file's grid
again. OUT becomes a Hugging Face folder with reference.json (seed, source, sha256).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants
from safetensors.numpy import save_file

from edgekit import open_model
from edgekit.source.provenance import fingerprint
from edgekit.source.tensors import Extent

# Bytes of a block, its code bytes, and the byte in which all codes are 1: one bin above 0.
CODES = {"Q4_0": (18, slice(2, 18), 0x11), "Q4_1": (20, slice(4, 20), 0x11), "Q8_0": (34, slice(2, 34), 0x01)}


def bin_widths(extent: Extent) -> np.ndarray:
    """The width of each weight's bin, [rows, columns], in the order of `read`."""
    if extent.stored not in CODES:
        sys.exit(f"{extent.file}: unknown bin width for {extent.stored}; known: {', '.join(CODES)}")
    size, codes, ones = CODES[extent.stored]
    raw = np.fromfile(extent.file, np.uint8, extent.nbytes, offset=extent.offset).reshape(-1, size)
    kind = GGMLQuantizationType[extent.stored]
    raw[:, codes] = 0
    zero = quants.dequantize(raw, kind)
    raw[:, codes] = ones
    widths = np.abs(quants.dequantize(raw, kind) - zero).reshape(extent.shape)
    if extent.interleaved:
        half = extent.interleaved // 2
        widths = widths.reshape(-1, half, 2, widths.shape[1]).swapaxes(1, 2).reshape(extent.shape)
    return widths


def make_reference(model: str, out: Path, seed: int) -> Path:
    """Write the reference, unless it exists with the same seed and source."""
    checkpoint = open_model(model)
    made = {"source": model, "sha256": fingerprint(checkpoint).sha256, "seed": seed, "noise": "uniform over the bin"}
    note = out / "reference.json"
    if note.is_file() and json.loads(note.read_text()) == made:
        return out
    random = np.random.default_rng(seed)
    tensors = {}
    for name in checkpoint.weights.names():
        weight = checkpoint.weights.read(name)
        extent = checkpoint.weights.extent(name)
        if extent.stored not in ("F32", "F16", "BF16"):
            weight += (random.random(weight.shape, dtype=np.float32) - np.float32(0.5)) * bin_widths(extent)
        tensors[name] = weight
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    for file in checkpoint.files:
        (out / file.name).write_bytes(file.data)
    note.write_text(json.dumps(made, indent=2))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args()
    print(make_reference(options.model, options.out, options.seed))


if __name__ == "__main__":
    main()
