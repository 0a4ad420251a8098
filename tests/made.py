"""Made-up bundles with every number filled in, or none: for tests of what is shown, where nothing is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit.types import (
    Bundle,
    Ceilings,
    Energy,
    Environment,
    FileEntry,
    Grid,
    Interval,
    Manifest,
    Measurement,
    ModelSpec,
    Precision,
    Provenance,
    Quality,
    Recipe,
    Rope,
    Series,
    Target,
    TensorEntry,
)
from edgekit.types.layout import Layout

ROLES = (
    ("self_attn.q_proj", 576, 576),
    ("self_attn.k_proj", 192, 576),
    ("self_attn.v_proj", 192, 576),
    ("self_attn.o_proj", 576, 576),
    ("mlp.gate_proj", 1536, 576),
    ("mlp.up_proj", 1536, 576),
    ("mlp.down_proj", 576, 1536),
)

TARGET = Target("cpu", "Any computer's CPU", "CPUExecutionProvider", 21, ("fp32", "int8", "int4"), "executed")


def spec(layers: int = 30) -> ModelSpec:
    return ModelSpec(
        architecture="llama",
        hidden_size=576,
        intermediate_size=1536,
        layers=layers,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        context_length=8192,
        norm_eps=1e-5,
        rope=Rope(1e5, 64),
        tied=True,
        windows=(None,) * layers,
        rotary=(True,) * layers,
    )


def nbytes(shape: tuple[int, int], grid: Grid) -> int:
    return Layout.of(shape, grid).nbytes(grid)


def tensors(bits: int, layers: int = 30) -> tuple[TensorEntry, ...]:
    random = np.random.default_rng(bits)
    grid8 = Grid(8, 32, symmetric=True)
    rows = [TensorEntry("model.embed_tokens.weight", (49152, 576), grid8, "U8", nbytes((49152, 576), grid8), 0.005)]
    for i in range(layers):
        rows.append(TensorEntry(f"model.layers.{i}.input_layernorm.weight", (576,), None, "F32", 4 * 576))
        for role, n, k in ROLES:
            eight = bits == 8 or (role in ("self_attn.v_proj", "mlp.down_proj") and i % 7 == 0)
            grid = Grid(8 if eight else 4, 32, symmetric=False)
            error = float((0.006 if eight else 0.09) * np.exp(0.15 * random.standard_normal()))
            rows.append(TensorEntry(f"model.layers.{i}.{role}.weight", (n, k), grid, "U8", nbytes((n, k), grid), error))
    rows.append(TensorEntry("model.norm.weight", (576,), None, "F32", 4 * 576))
    rows.append(
        TensorEntry("lm_head.weight", (49152, 576), grid8, "U8", 0, 0.005, shared_with="model.embed_tokens.weight")
    )
    return tuple(rows)


def quality(kld: float, top1: float) -> Quality:
    return Quality(
        kld_mean=Interval(kld, kld * 0.93, kld * 1.08),
        kld_p99=Interval(kld * 9, kld * 8, kld * 11),
        kld_p999=Interval(kld * 21, kld * 17, kld * 30),
        top1=Interval(top1, top1 - 0.012, top1 + 0.011),
        ppl_ratio=Interval(1 + kld, 1 + 0.9 * kld, 1 + 1.1 * kld),
        ppl=19.37 * (1 + kld),
        reference_ppl=19.37,
        reference="off-grid: uniform noise over each weight's own bin, seed 0",
        text="pydoc_data.topics",
        text_sha256="ab" * 32,
        window=512,
        tokens=4088,
        top_k=64,
        runtime="onnxruntime 1.32.0",
        accuracy_level=0,
    )


def measurement(speed: float, precision: Precision, energy: Energy | None = None) -> Measurement:
    random = np.random.default_rng(7)

    def around(mean: float, n: int, sd: float = 0.03) -> tuple[float, ...]:
        return tuple((mean * np.exp(sd * random.standard_normal(n))).tolist())

    tpot = around(1 / speed, 640, 0.08)
    return Measurement(
        schema=1,
        bundle_sha256="cd" * 32,
        model="smollm2-135m",
        precision=precision,
        device="cpu",
        time="2026-01-02T03:04:05+00:00",
        environment=Environment(
            host="host",
            system="Linux-6.1-x86_64",
            cpu="A Processor @ 2.5GHz",
            cores=2,
            threads=2,
            memory_bytes=25_000_000_000,
            governor="",
            frequency_mhz=None,
            temperature_c=None,
            battery_percent=None,
            on_battery=None,
            load_before=0.4,
            runtime=(("onnxruntime", "1.32.0"),),
            provider="CPUExecutionProvider",
            provider_options=(),
        ),
        workload="pp512, tg128@0, tg128@512, tg128@2048",
        warmup=1,
        series=(
            Series("load", "s", around(0.31, 3)),
            Series("pp512", "tok/s", around(speed * 7, 5)),
            Series("ttft512", "s", around(512 / speed / 7, 5)),
            Series("tg128@0", "tok/s", around(speed, 5)),
            Series("tpot@0", "s", tpot),
            Series("tg128@512", "tok/s", around(speed * 0.86, 5)),
            Series("tpot@512", "s", tpot),
            Series("tg128@2048", "tok/s", around(speed * 0.6, 5)),
            Series("tpot@2048", "s", tpot),
        ),
        ceilings=Ceilings(
            Series("read of 91 MB on 2 threads", "B/s", around(21e9, 5)),
            Series("fp32 GEMM 2048 of openblas on 2 threads", "FLOP/s", around(180e9, 5)),
        ),
        peak_rss_bytes=412_000_000,
        weight_bytes=91_000_000,
        kv_bytes_per_position=46_080,
        flop_per_token=2.7e8,
        nodes_on_cpu=None,
        energy=energy
        or Energy("none", reason="this machine has no meter that edgekit knows (battery, hwmon, nvml, rapl)"),
        roofline=(("pp512", 0.41), ("tg128@0", 0.38), ("tg128@512", 0.36), ("tg128@2048", 0.31)),
        gemm_factor=1.0,
    )


def bundle(
    precision: Precision = "int4", *, measured: bool = True, name: str = "smollm2-135m", path: str = ""
) -> Bundle:
    bits = 4 if precision == "int4" else 8
    entries = tensors(bits)
    weights = sum(t.bytes for t in entries)
    graph = f"onnx/model_{'q4' if bits == 4 else 'quantized'}.onnx"
    grid = Grid(bits, 32, symmetric=False)
    manifest = Manifest(
        schema=1,
        edgekit="0.1.0",
        provenance=Provenance(name, "packaged", "ef" * 32),
        spec=spec(),
        recipe=Recipe(precision, precision, linear=grid, embedding=Grid(8, 32, symmetric=True)),
        target=TARGET,
        graph=graph,
        exporter="native",
        tools=(("onnx", "1.23.2"), ("onnx-ir", "1.1.0")),
        tensors=entries,
        files=(
            FileEntry("config.json", 900, "01" * 32),
            FileEntry(graph, 310_000, "02" * 32),
            FileEntry(graph + "_data", weights + 4096, "03" * 32),
            FileEntry("tokenizer.json", 2_104_556, "04" * 32),
            FileEntry("tokenizer_config.json", 3_700, "05" * 32),
        ),
    )
    if measured:
        manifest = replace(
            manifest,
            quality=quality(0.211, 0.802) if bits == 4 else quality(0.0021, 0.975),
            latency=measurement(52.0 if bits == 4 else 41.0, precision),
        )
    return Bundle(Path(path or f"demo/{name}-{precision}"), manifest)
