"""Devices that compile by themselves: their static graphs, ONNX Runtime's word on these, and other runtimes' logits."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.bundle import mlpackage
from edgekit.config.recipe import load_target
from edgekit.errors import BundleError, ConfigError
from edgekit.record import from_json
from edgekit.run.runtime import onnxruntime
from edgekit.testing import tiny_checkpoint
from edgekit.types import Bundle, Target
from edgekit.types.npu import NpuBuild, UsabilityReport

PROVIDERS = {
    "coreml": "CoreMLExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "openvino-npu": "OpenVINOExecutionProvider",
}
COREMLTOOLS = pytest.mark.skipif(not importlib.util.find_spec("coremltools"), reason="needs the extra coreml")
OPENVINO = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="needs the extra openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("on_device")


@pytest.fixture(scope="module")
def checkpoint(folder) -> str:
    """Two layers, the first of them with a window."""
    return str(tiny_checkpoint(folder / "tiny", "mistral", sliding_window=24, max_position_embeddings=256))


def device(folder: Path, family: str) -> Target:
    """A made-up device of a family, by its file alone."""
    file = folder / f"some-{family}.toml"
    file.write_text(
        f'name = "some-{family}"\ntitle = "Some device"\nprovider = "{PROVIDERS[family]}"\nopset = 21\n'
        f'precisions = ["fp16", "int8", "int4"]\nverified = "none"\nfallback = "cpu"\n'
        f'[npu]\nname = "Some NPU"\nfamily = "{family}"\ncontext = 96\nefficiency = [0.5, 0.8]\n'
    )
    return load_target(file)


@pytest.fixture(scope="module")
def built(folder, checkpoint):
    """Bundles by family and precision, each built once."""
    bundles: dict[tuple[str, str], Bundle] = {}

    def build(family: str, precision: str) -> tuple[Bundle, NpuBuild]:
        key = family, precision
        if key not in bundles:
            target = device(folder, family)
            bundles[key] = build_bundle(checkpoint, target=target, precision=precision, out=folder / "-".join(key))
        return bundles[key], bundles[key].manifest.npus[0]

    return build


def graphs(bundle: Bundle, build: NpuBuild) -> dict[str, Path]:
    return {g.role: bundle.path / g.path for g in build.static}


def feeds(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
    return {i.name: (random.standard_normal(i.shape) / 2).astype(kinds[i.type]) for i in session.get_inputs()}


def on_cpu(graph: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Made-up inputs of a graph, and what ONNX Runtime's CPU makes of them."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    given = feeds(session)
    names = [o.name for o in session.get_outputs()]
    return given, dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("family", PROVIDERS)
def test_the_graphs_of_a_family_agree_with_fp32(built, family, precision):
    bundle, build = built(family, precision)
    assert [(g.role, g.tokens) for g in build.static] == [("prefill", 64), ("decode", 1)]
    assert (build.graphs, build.placement, build.emulations, build.package) == ((), "", (), "")
    assert build.session == build.target.npu.session
    files = {file.path for file in bundle.manifest.files}
    assert {build.host, build.usability, *(g.path for g in build.static)} <= files
    assert [(o.role, o.tokens) for o in build.on_cpu] == [("prefill", 64), ("decode", 8)]
    lowest = {"fp16": 0.99999, "int8": 0.999, "int4": 0.97}[precision]
    assert all(o.total.cosine > lowest for o in build.on_cpu)


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize(("family", "provider"), [("coreml", "CoreML MLProgram"), ("nnapi", "NNAPI")])
def test_the_usability_check_takes_every_node_in_one_partition(built, family, provider, precision):
    bundle, build = built(family, precision)
    report = from_json(UsabilityReport, (bundle.path / build.usability).read_text())
    assert onnxruntime.__version__ in report.tool
    assert report.unknown
    mine = [u for u in report.graphs if u.provider == provider]
    assert [u.graph for u in mine] == ["prefill.onnx", "decode.onnx"]
    for found in mine:
        assert (found.partitions, found.unsupported, found.dynamic, found.suitable) == (1, (), 0, "YES")
        assert found.supported == found.nodes > 50


def test_the_check_says_what_a_provider_lacks(built):
    bundle, build = built("openvino-npu", "int4")
    report = from_json(UsabilityReport, (bundle.path / build.usability).read_text())
    found = next(u for u in report.graphs if u.provider == "CoreML NeuralNetwork")
    assert found.unsupported == ("ai.onnx:DequantizeLinear", "ai.onnx:ReduceMean")
    assert found.supported < found.nodes
    assert any("constant" in condition for condition in found.conditions)


@pytest.mark.parametrize(("family", "inside"), [("coreml", True), ("nnapi", True), ("openvino-npu", False)])
def test_where_the_weights_of_a_graph_lie(built, family, inside):
    bundle, build = built(family, "int4")
    for path in graphs(bundle, build).values():
        model = onnx.load(path, load_external_data=False)
        external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
        assert external != inside
        assert path.with_name(f"{path.name}_data").is_file() != inside


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_core_ml_computes_in_half_precision_only(built, precision):
    bundle, build = built("coreml", precision)
    model = onnx.load(graphs(bundle, build)["decode"])
    floats = onnx.TensorProto.FLOAT
    assert not [t.name for t in model.graph.initializer if t.data_type == floats]
    casts = [n for n in model.graph.node if n.op_type == "Cast"]
    given = {v.name for v in model.graph.input if v.type.tensor_type.elem_type == floats}
    assert given == {n.input[0] for n in casts}, "float32 is what the host computes, and is rounded at once"


def test_products_of_nnapi_have_two_dimensions(built):
    bundle, build = built("nnapi", "fp16")
    model = onnx.shape_inference.infer_shapes(onnx.load(graphs(bundle, build)["prefill"]))
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in model.graph.value_info}
    made = {n.output[0]: n for n in model.graph.node}
    weights = {t.name for t in model.graph.initializer}
    stored = [n for n in model.graph.node if n.op_type == "MatMul" and made[n.input[1]].op_type == "Cast"]
    assert len(stored) == 14
    assert {made[n.input[1]].input[0] for n in stored} <= weights
    assert {ranks[n.input[0]] for n in stored} == {2}


def test_a_model_in_parts_hands_half_precision_on(folder, checkpoint):
    target = device(folder, "coreml")
    small = replace(target, npu=replace(target.npu, largest_graph_bytes=150_000))
    bundle = build_bundle(checkpoint, target=small, precision="fp16", out=folder / "parts")
    build = bundle.manifest.npus[0]
    assert [(g.role, g.part) for g in build.static] == [(r, i) for r in ("prefill", "decode") for i in range(2)]
    assert all(o.total.cosine > 0.99999 for o in build.on_cpu)


def test_a_device_that_takes_no_package(folder, checkpoint):
    with pytest.raises(ConfigError, match="Some device does not use Core ML packages"):
        build_bundle(checkpoint, target=device(folder, "nnapi"), out=folder / "no", npu=ForNpu(mlpackage=True))
    with pytest.raises(ConfigError, match="target 'cpu' has no NPU"):
        build_bundle(checkpoint, out=folder / "no", npu=ForNpu(mlpackage=True))
    assert not (folder / "no").exists()


@pytest.mark.parametrize(
    ("found", "message"), [(None, "coremltools, which is not installed"), ("8.3.0", "coremltools 8.3.0 is installed")]
)
def test_a_package_without_its_writer(folder, checkpoint, monkeypatch, found, message):
    def version(name: str) -> str:
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(mlpackage, "version", version)
    with pytest.raises(BundleError, match=message) as caught:
        build_bundle(checkpoint, target=device(folder, "coreml"), out=folder / "no", npu=ForNpu(mlpackage=True))
    assert "edgekit[coreml]" in caught.value.hint
    assert not (folder / "no").exists()


# --- coremltools ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["fp16", "int8", "int4"])
def packaged(request, folder, checkpoint) -> tuple[Bundle, NpuBuild]:
    bundle = build_bundle(
        checkpoint,
        target=device(folder, "coreml"),
        precision=request.param,
        out=folder / f"packaged-{request.param}",
        npu=ForNpu(emulate=False, mlpackage=True),
    )
    return bundle, bundle.manifest.npus[0]


def read_package(bundle: Bundle, build: NpuBuild, *arguments: object) -> dict[str, np.ndarray]:
    """What benchmarks/ml_program.py reads of a package, in a process that coremltools may talk in."""
    program = Path(__file__).parents[1] / "benchmarks" / "ml_program.py"
    out = bundle.path.with_suffix(".npz")
    command = [sys.executable, program, bundle.path / build.package, *arguments, out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as arrays:
        return dict(arrays)


@COREMLTOOLS
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_package_computes_what_the_graph_computes(packaged, role, tmp_path):
    """Read back by coremltools and run in NumPy, every result rounded to half precision. Core ML runs nowhere here."""
    bundle, build = packaged
    given, expected = on_cpu(graphs(bundle, build)[role])
    np.savez(tmp_path / "given.npz", **{name.replace(".", "_"): array for name, array in given.items()})
    found = read_package(bundle, build, "run", role, tmp_path / "given.npz")
    assert found.keys() == {name.replace(".", "_") for name in expected}
    for name, array in expected.items():
        ours = found[name.replace(".", "_")]
        assert ours.shape == array.shape
        assert np.allclose(ours, array.astype(np.float32), atol=0.01 * np.abs(array).max()), name


@COREMLTOOLS
def test_the_weights_of_a_package_are_the_bundles_own(packaged):
    bundle, build = packaged
    model = onnx.load(graphs(bundle, build)["decode"])
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    found = read_package(bundle, build, "weights", "decode")
    grids = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert bool(grids) == (bundle.manifest.recipe.precision != "fp16")
    assert len(found) == 15
    for node in grids:
        codes, scales = (tensors[name] for name in node.input)
        scales = np.repeat(scales, codes.shape[0] // len(scales), axis=0) if scales.ndim == 2 else scales
        expected = codes.astype(np.float32) * scales.astype(np.float32)
        ours = next(w for n, w in found.items() if n == node.input[0].replace(".", "_"))
        assert np.array_equal(ours, expected.T)


@COREMLTOOLS
def test_a_package_stores_the_weights_of_both_functions_once_and_on_their_grid(packaged):
    bundle, build = packaged
    files = {f.path.removeprefix(f"{build.package}/"): f.bytes for f in bundle.manifest.files}
    assert "Manifest.json" in files
    weights = sum(t.bytes for t in bundle.manifest.tensors if len(t.shape) == 2)
    assert files["Data/com.apple.CoreML/weights/weight.bin"] < 1.2 * weights
    assert ("coremltools", mlpackage.version("coremltools")) in build.tools


@COREMLTOOLS
def test_the_same_graphs_give_the_same_package(packaged, tmp_path):
    bundle, build = packaged
    again = mlpackage.make_mlpackage(list(graphs(bundle, build).items()), tmp_path / "again.mlpackage")
    assert len(again) == 3
    for path in again:
        first = bundle.path / build.package / path.relative_to(tmp_path / "again.mlpackage")
        assert path.read_bytes() == first.read_bytes()


@COREMLTOOLS
def test_an_operator_without_translation_is_named(tmp_path):
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Erf", ["x"], ["y"], name="the.erf")],
        "g",
        [value("x", onnx.TensorProto.FLOAT, [2])],
        [value("y", onnx.TensorProto.FLOAT, [2])],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "erf.onnx")
    with pytest.raises(BundleError, match=r"Erf 'the\.erf' has no translation"):
        mlpackage.make_mlpackage([("main", tmp_path / "erf.onnx")], tmp_path / "erf.mlpackage")


# --- OpenVINO ---------------------------------------------------------------------------------


@OPENVINO
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_openvino_reads_the_graphs_and_gives_the_same_logits(built, role, precision):
    import openvino

    graph = graphs(*built("openvino-npu", precision))[role]
    given, expected = on_cpu(graph)
    # Without these its CPU plugin rounds activations to 8 bits, and floats to bfloat16 where the processor has it.
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    found = openvino.Core().compile_model(str(graph), "CPU", exact)(given)
    for name, array in expected.items():
        assert np.allclose(found[name], array, rtol=1e-3, atol=1e-3), name
