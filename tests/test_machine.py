"""The class of a processor, by the flags that the kernel shows."""

from __future__ import annotations

import pytest

from edgekit.host.processor import CLASSES, DOT_PRODUCTS, cpu_flags, identify_processor, processor_class, processor_name


def machine(root, text):
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(text)
    return root


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("sse4_1 sse4_2", "SSE4"),
        ("sse4_1 avx", "AVX"),
        ("sse4_1 avx avx2 fma", "AVX2"),
        ("avx2 avx_vnni", "AVX-VNNI"),
        ("avx2 avx512f avx512bw", "AVX512"),
        ("avx2 avx512f avx512_vnni", "AVX512-VNNI"),
        ("avx2 avx_vnni avx512f avx512_vnni amx_tile amx_int8", "AMX"),
        ("fpu sse2", ""),
    ],
)
def test_x86(flags, kind, tmp_path):
    text = f"processor\t: 0\nmodel name\t: X\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: amx_int8\n"
    root = machine(tmp_path, text)
    assert processor_class(root) == kind
    assert identify_processor(root) == ("X", frozenset(flags.split()))


@pytest.mark.parametrize(
    ("features", "kind"),
    [("fp asimd", "NEON"), ("fp asimd asimddp", "dotprod"), ("fp asimd asimddp i8mm sve", "i8mm"), ("fp", "")],
)
def test_arm(features, kind, tmp_path):
    root = machine(tmp_path, f"processor\t: 0\nFeatures\t: {features}\n\nModel\t\t: A Board Rev 1.0\n")
    assert processor_class(root) == kind
    assert processor_name(root) == "A Board Rev 1.0"


def test_where_nothing_is_shown_nothing_is_claimed(tmp_path):
    assert processor_class(tmp_path) == ""
    assert processor_name(tmp_path) == ""
    assert cpu_flags(tmp_path) == frozenset()


def test_every_class_is_named_once():
    assert len(set(CLASSES.values())) == len(CLASSES)
    assert set(CLASSES.values()) > DOT_PRODUCTS
