"""Where the time of a prompt and of a token goes, and what the runtime's own kernels allow on this machine.

    python benchmarks/operators.py BUNDLE [--rounds 7]

Three tables: the graph's operators as ONNX Runtime's profiler sees them (its own overhead is in them: up to ten
microseconds a node); tokens without the profiler; and, in turn with them, the products alone, one graph with all
of them and nothing else, every weight its own memory, results bound, which no way of running them can beat. It says how
much of a token is products, and at how many bytes a second they run beside a plain read of as many bytes. Only one
session is open at a time: the threads of another wait in a loop for a while, on the same processors.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit import load_runner, open_bundle
from edgekit.measure import measure_ceilings
from edgekit.run import default_settings, session
from edgekit.run.runtime import onnxruntime
from edgekit.types import Bundle

DEPTHS, TOKENS, PROMPT = (32, 512), 64, 512
GROUPS = {"MatMulNBits": "products", "MatMulIntegerToFloat": "products", "GroupQueryAttention": "attention"}


def products_alone(bundle: Bundle) -> tuple[onnxruntime.InferenceSession, dict[str, np.ndarray], int]:
    """A session with the token graph's MatMulNBits and nothing else, its inputs, and the bytes it reads a run."""
    graph = onnx.load(bundle.graph, load_external_data=True).graph
    constants = {i.name: i for i in graph.initializer}
    casts = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast" and n.input[0] in constants}
    repeats = {n.output[0]: n for n in graph.node if n.op_type == "Expand"}
    nodes, kept, outputs, inputs, seen = [], {}, [], {}, 0
    for i, node in enumerate(n for n in graph.node if n.op_type == "MatMulNBits"):
        size = {a.name: a.i for a in node.attribute}
        x, y = f"x{size['K']}", f"y{i}"
        inputs[x] = np.random.default_rng(0).standard_normal((1, 1, size["K"])).astype(np.float32)
        names = []
        for name in node.input[1:]:
            repeat = repeats.get(name)
            stored = casts.get(repeat.input[0] if repeat else name, repeat.input[0] if repeat else name)
            array = onnx.numpy_helper.to_array(constants[stored])
            seen += array.nbytes
            if array.dtype == np.float16:
                array = array.astype(np.float32)
            if repeat:
                array = np.broadcast_to(array, onnx.numpy_helper.to_array(constants[repeat.input[1]]))
            kept[f"{y}.{name}"] = onnx.numpy_helper.from_array(np.ascontiguousarray(array), f"{y}.{name}")
            names.append(f"{y}.{name}")
        nodes.append(helper.make_node("MatMulNBits", [x, *names], [y], domain="com.microsoft", **size))
        outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, 1, size["N"]]))
    entries = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in inputs.items()]
    made = helper.make_graph(nodes, "products", entries, outputs, list(kept.values()))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = session._options(default_settings(bundle.manifest), bundle.manifest.accuracy_level)
    model = helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]), inputs, seen


def time_products(bundle: Bundle) -> tuple[float, int]:
    """Milliseconds of a run of the token graph's products alone, and the bytes it reads."""
    handle, inputs, nbytes = products_alone(bundle)
    binding = handle.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    results = [np.empty(output.shape, np.float32) for output in handle.get_outputs()]
    for output, result in zip(handle.get_outputs(), results, strict=True):
        binding.bind_output(output.name, "cpu", 0, np.float32, result.shape, result.ctypes.data)
    for _ in range(TOKENS // 4):
        handle.run_with_iobinding(binding)
    started = time.perf_counter()
    for _ in range(TOKENS):
        handle.run_with_iobinding(binding)
    return (time.perf_counter() - started) / TOKENS * 1e3, nbytes


def profile(bundle: Bundle, prompt: list[int]) -> dict[str, dict[str, float]]:
    """Milliseconds of each operator, by phase: a prompt of PROMPT tokens, a token after it."""
    plain = session._options
    with tempfile.TemporaryDirectory() as folder:

        def profiled(*arguments):
            options = plain(*arguments)
            options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
            return options

        session._options = profiled
        try:
            runner = load_runner(bundle, settings=default_settings(bundle.manifest))
        finally:
            session._options = plain
        for _ in range(2):
            runner.reset()
            runner.prefill(prompt)
            for token in prompt[:TOKENS]:
                runner.step(token)
        shared = runner._prompts is runner._tokens
        found = {}
        for phase, bound in (("prompt", runner._prompts), ("token", runner._tokens))[shared:]:
            events = json.loads(Path(bound._handle.end_profiling()).read_text())
            runs = [e for e in events if e["name"] == "model_run"]
            since = runs[len(runs) // 2]["ts"]
            spent = defaultdict(float)
            for e in events:
                if e.get("cat") == "Node" and e["name"].endswith("_kernel_time") and e["ts"] >= since:
                    kind = "head" if "lm_head" in e["name"] else GROUPS.get(e["args"]["op_name"], e["args"]["op_name"])
                    spent[kind] += e["dur"] / 1e3
            found[phase] = {kind: ms / (1 if phase == "prompt" else TOKENS) for kind, ms in spent.items()}
        runner.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    settings = default_settings(bundle.manifest)
    prompt = np.random.default_rng(0).integers(bundle.manifest.spec.vocab_size, size=PROMPT).tolist()
    for phase, spent in profile(bundle, prompt).items():
        total = sum(spent.values())
        print(f"\n{phase}: {total:.1f} ms in operators, the profiler's own time included")
        for kind, ms in sorted(spent.items(), key=lambda item: -item[1])[:10]:
            print(f"  {kind:<34} {ms:8.2f} ms  {ms / total:5.1%}")

    times: dict[str, list[float]] = defaultdict(list)
    for round_ in range(options.rounds + 1):
        with closing(load_runner(bundle, settings=settings)) as runner:
            for depth in DEPTHS:
                runner.reset()
                runner.prefill(prompt[:depth])
                started = time.perf_counter()
                for token in prompt[:TOKENS]:
                    runner.step(token)
                times[f"token at {depth}"] += [(time.perf_counter() - started) / TOKENS * 1e3] * (round_ > 0)
        milliseconds, nbytes = time_products(bundle)
        times["its products alone"] += [milliseconds] * (round_ > 0)
    print(f"\nwithout the profiler, {settings.threads} threads, median of {options.rounds} rounds with the range")
    bandwidth = max(measure_ceilings(settings.threads, nbytes).bandwidth_bytes_per_s.samples)
    for name, ms in times.items():
        shares = [a / b for a, b in zip(times["its products alone"], ms, strict=True)]
        print(
            f"  {name:<20} {median(ms):6.2f} ms [{min(ms):.2f}, {max(ms):.2f}]  products are {median(shares):.0%} of it"
        )
    rate = nbytes / median(times["its products alone"]) * 1e3
    print(f"  the products read {nbytes / 1e6:.1f} MB a token: {rate / 1e9:.1f} GB/s")
    print(f"  a plain read of as many bytes: {bandwidth / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
