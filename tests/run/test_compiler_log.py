"""What the provider says while it compiles, read from lines of it: onnxruntime-qnn 2.7.0, two nodes and the bytes."""

from edgekit.run.npu.compiler_log import CompilerLog
from edgekit.types.npu import Placed, Traffic

AT = "2026-03-04 05:06:07.226474015 [V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport]"
BYTES = "2026-03-04 05:06:07.512087031 [V:onnxruntime:Default, qnn_backend_manager.cc:519 QnnLogging]"
REFUSED = (
    "Operators of type `SkipSimplifiedLayerNormalization` are not supported by QNN EP.SkipSimplifiedLayerNormalization "
    "node `model.norm` will not be assigned to QNN EP."
)
LOG = f"""\
{AT} Validation PASSED for 1 nodes in OrtNodeUnit (MatMulNBits) :
\tOperator type: MatMulNBits Node name: model.layers.0.self_attn.v_proj Node index: 9

2026-03-04 05:06:07.226558391 [V:onnxruntime:, base_op_builder.cc:113 ProcessInput] Tensor already added, skip it: x
 node_inputs:
 name=model.layers.0 id=0 version=1 type=QNN_TENSOR_TYPE_NATIVE rank=3 dimensions=(1 8 64 )
\tOperator type: Nothing Node name: not of a verdict Node index: 1
{AT} Validation FAILED for 1 nodes in OrtNodeUnit (SkipSimplifiedLayerNormalization) :
\tOperator type: SkipSimplifiedLayerNormalization Node name: model.norm Node index: 58
\tREASON : {REFUSED}

2026-03-04 05:06:07.512067382 [V:onnxruntime:Default, qnn_backend_manager.cc:519 QnnLogging]\x20
====== DDR bandwidth summary ======

{BYTES} spill_bytes=128

{BYTES} fill_bytes=64

{BYTES} write_total_bytes=12288

{BYTES} read_total_bytes=51200
"""


def read(text: str):
    log = CompilerLog("NpuProvider", "CpuProvider")
    for line in text.splitlines():
        log.read(line)
    return log


def test_every_node_with_who_runs_it_and_why_not() -> None:
    taken, refused = read(LOG).placed
    assert taken == Placed("model.layers.0.self_attn.v_proj", "MatMulNBits", "NpuProvider")
    assert refused == Placed("model.norm", "SkipSimplifiedLayerNormalization", "CpuProvider", REFUSED)


def test_the_bytes_of_a_run() -> None:
    traffic = read(LOG).traffic
    assert traffic == Traffic(read=51200, written=12288, spilled=128, filled=64)
    assert traffic.total == 51200 + 12288 + 128 + 64


def test_a_compiler_that_says_no_bytes() -> None:
    assert read(LOG[: LOG.index("======")]).traffic is None
    assert read("").placed == ()


def test_the_last_word_counts() -> None:
    """The provider is asked twice: a node it refuses alone it may take together with others, and the reverse."""
    again = LOG.replace("PASSED", "FAILED") + LOG
    assert [p.provider for p in read(again).placed] == ["NpuProvider", "CpuProvider"]
    taken = LOG.replace("FAILED", "PASSED").replace(f"\tREASON : {REFUSED}\n", "")
    assert [(p.provider, p.reason) for p in read(LOG + taken).placed] == [("NpuProvider", "")] * 2


def test_nodes_of_one_unit_share_its_reason() -> None:
    unit = LOG.replace("\tREASON", "\tOperator type: Mul Node name: its scale Node index: 59\n\tREASON", 1).replace(
        "for 1 nodes in OrtNodeUnit (Skip", "for 2 nodes in OrtNodeUnit (Skip"
    )
    assert [(p.node, p.reason) for p in read(unit).placed][1:] == [("model.norm", REFUSED), ("its scale", REFUSED)]
