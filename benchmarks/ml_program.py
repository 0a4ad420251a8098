"""Run an .mlpackage in NumPy, as read back by coremltools; every operation rounds its result to its own type.

Core ML itself runs on Apple's systems only. Sums are in float32 here, which may differ on the Neural Engine.

``python ml_program.py PACKAGE run FUNCTION INPUTS.npz OUT.npz`` or ``PACKAGE weights FUNCTION OUT.npz``, with a Python
that has coremltools.
"""

import sys
from pathlib import Path

import numpy as np

WIDE = np.float32


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def unpacked(data, scale, offset=None):
    """Dequantize codes with their blocks' scales."""
    times = [d // s for d, s in zip(data.shape, scale.shape, strict=True)]
    for axis, n in enumerate(times):
        scale = np.repeat(scale, n, axis=axis)
    assert offset is None
    return scale * data.astype(WIDE)


OPERATIONS = {
    "constexpr_blockwise_shift_scale": unpacked,
    "linear": lambda x, weight, bias: x @ weight.T + bias,
    "matmul": lambda x, y, transpose_x, transpose_y: (
        (np.swapaxes(x, -1, -2) if transpose_x else x) @ (np.swapaxes(y, -1, -2) if transpose_y else y)
    ),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "maximum": lambda x, y: np.where(x > y, x, y),
    "pow": lambda x, y: x**y,
    "sqrt": lambda x: x ** WIDE(0.5),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softmax": softmax,
    "reduce_max": lambda x, axes, keep_dims: x.max(axis=tuple(axes), keepdims=bool(keep_dims)),
    "reduce_mean": lambda x, axes, keep_dims: x.mean(axis=tuple(axes), keepdims=bool(keep_dims)),
    "transpose": lambda x, perm: x.transpose(perm),
    "reshape": lambda x, shape: x.reshape(shape),
    "cast": lambda x, **_: x,  # the result is rounded to its type anyway
    "split": lambda x, split_sizes, axis: np.split(x, np.cumsum(split_sizes)[:-1], axis=axis),
    "concat": lambda values, axis, **_: np.concatenate(values, axis=axis),
}


def read(package):
    """The package's program."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = ct.utils.load_spec(str(package))
    return load(spec, spec.specificationVersion, str(Path(package) / "Data/com.apple.CoreML/weights"))


def run(function, inputs):
    """The outputs of a function, by name."""
    from coremltools.converters.mil.mil.types.type_mapping import nptype_from_builtin

    values = {}

    def value(variable):
        if isinstance(variable, list | tuple):
            return [value(v) for v in variable]
        if variable.name in inputs:
            return inputs[variable.name].astype(WIDE)
        if variable.name in values:
            return values[variable.name]
        known = variable.val
        if isinstance(known, np.ndarray | np.generic) and np.issubdtype(known.dtype, np.floating):
            return np.asarray(known, WIDE)
        return known

    for op in function.operations:
        if op.op_type == "const":
            continue
        names = {n: v for n, v in op.inputs.items() if v is not None}
        made = OPERATIONS[op.op_type](**{n: value(v) for n, v in names.items()})
        for variable, result in zip(op.outputs, made if len(op.outputs) > 1 else [made], strict=True):
            dtype = nptype_from_builtin(variable.dtype)
            with np.errstate(over="ignore"):
                values[variable.name] = np.asarray(result, dtype).astype(WIDE)
    return {v.name: values[v.name] for v in function.outputs}


def weights(function):
    """The dequantized weight matrices of linear operations, by name."""
    found = {}
    for op in function.operations:
        if op.op_type == "linear":
            held = op.weight.op
            if held.op_type == "const":
                found[op.weight.name] = np.asarray(op.weight.val, WIDE)
            else:
                found[op.weight.name] = unpacked(held.data.val, np.asarray(held.scale.val, WIDE))
    return found


if __name__ == "__main__":
    package, what, name, *given, out = sys.argv[1:]
    function = read(package).functions[name]
    if what == "run":
        with np.load(given[0]) as arrays:
            np.savez(out, **run(function, dict(arrays)))
    else:
        np.savez(out, **weights(function))
