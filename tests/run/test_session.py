"""What cannot be loaded is an error that names the culprit and the way out."""

import onnx
import pytest

from edgekit.config.providers import Option, Provider
from edgekit.errors import RunError
from edgekit.run import load_runner
from edgekit.run.runtime import onnxruntime


def test_a_missing_provider_lists_those_there_are(bundle_of):
    with pytest.raises(RunError, match=r"target 'npu' needs NoSuchProvider.*CPUExecutionProvider") as caught:
        load_runner(bundle_of("append", name="npu", provider="NoSuchProvider"))
    assert "`target=cpu`" in caught.value.hint


def test_provider_options_reach_the_provider(bundle_of, monkeypatch):
    allowing = Provider("CPUExecutionProvider", (Option("key", ("value",), None),), (), None)
    monkeypatch.setattr("edgekit.config.providers.find_provider", lambda name: allowing)
    runner = load_runner(bundle_of("append", provider_options=(("key", "value"),)), threads=1)
    assert runner.info.provider_options == (("key", "value"),)
    runner.close()


@pytest.mark.parametrize("key", ["qnn_saver_path", "profiling_file_path", "key"])
def test_an_option_that_a_bundle_may_not_set_reaches_no_provider(bundle_of, key):
    with pytest.raises(RunError, match=key) as caught:
        load_runner(bundle_of("append", provider_options=((key, "value"),)), threads=1)
    assert "targets/providers" in caught.value.hint


def test_a_provider_that_is_installed_and_unknown_here_is_not_taken(bundle_of):
    assert "AzureExecutionProvider" in onnxruntime.get_available_providers()
    with pytest.raises(RunError, match="AzureExecutionProvider is not a provider that this edgekit knows"):
        load_runner(bundle_of("append", provider="AzureExecutionProvider"), threads=1)


def test_a_damaged_graph_is_named(copied):
    copied.graph.write_bytes(b"\x08\x0a not a model")
    with pytest.raises(RunError, match=r"cannot load .*append\.onnx") as caught:
        load_runner(copied)
    assert "edgekit verify" in caught.value.hint


def test_a_graph_younger_than_the_runtime(copied):
    model = onnx.load(copied.graph)
    model.ir_version = 99
    copied.graph.write_bytes(model.SerializeToString())
    with pytest.raises(RunError, match=r"too old for .*append\.onnx") as caught:
        load_runner(copied)
    assert "--upgrade" in caught.value.hint


def test_an_operator_the_runtime_does_not_know(copied):
    model = onnx.load(copied.graph)
    model.graph.node[0].op_type = "OperatorOfTheFuture"
    copied.graph.write_bytes(model.SerializeToString())
    with pytest.raises(RunError, match="too old"):
        load_runner(copied)


def test_a_graph_without_fixed_heads_is_refused(copied):
    model = onnx.load(copied.graph)
    model.graph.input[-1].type.tensor_type.shape.dim[1].dim_param = "heads"
    copied.graph.write_bytes(model.SerializeToString())
    with pytest.raises(RunError, match=r"past_key_values\.0\.value"):
        load_runner(copied)


def test_threads_must_be_a_number_of_threads(bundle_of):
    with pytest.raises(RunError, match="threads must be 1 or more"):
        load_runner(bundle_of("append"), threads=0)


def test_a_run_that_fails_is_an_error_of_ours(copied):
    model = onnx.load(copied.graph)
    (embed,) = (i for i in model.graph.initializer if i.name == "embed")
    embed.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(embed)[:10], "embed"))
    copied.graph.write_bytes(model.SerializeToString())
    runner = load_runner(copied, threads=1)
    with pytest.raises(RunError, match="stopped at position 3"):
        runner.prefill([1, 2, 30])
    assert runner.length == 0
    runner.close()
