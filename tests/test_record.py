"""The strict JSON of the manifest and the measurement record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edgekit import ranges
from edgekit.record import added_later, from_json, to_json
from edgekit.types import (
    Energy,
    FileEntry,
    Grid,
    Manifest,
    ModelSpec,
    Override,
    Provenance,
    Recipe,
    Rope,
    Target,
    TensorEntry,
)


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    at: Path


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    share: float
    flag: bool
    inner: Inner | None
    many: tuple[Inner, ...]
    pair: tuple[str, int]
    names: frozenset[str]
    either: int | str


OUTER = Outer("é\n", 3, 0.1, True, None, (Inner("a", Path("x/y")),), ("k", 7), frozenset("zab"), "text")
PLAIN = json.loads(to_json(OUTER))


def manifest() -> Manifest:
    grid = Grid(4, 32, symmetric=False)
    spec = ModelSpec(
        architecture="llama",
        hidden_size=64,
        intermediate_size=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        vocab_size=384,
        context_length=512,
        norm_eps=1e-5,
        rope=Rope(1e4, 16, long_factor=(1.0, 2.5)),
        tied=True,
        windows=(None, 128),
        rotary=(True, False),
        eos_token_ids=(2,),
    )
    return Manifest(
        schema=1,
        edgekit="0.1.0",
        provenance=Provenance("m", "folder", "ab" * 32),
        spec=spec,
        recipe=Recipe(
            "int4", "int4", linear=grid, overrides=(Override("*.v_proj.*", None), Override("lm_head*", grid))
        ),
        target=Target("cpu", "t", "P", 21, ("int4",), "executed", (("k", "v"),), lacks=frozenset({"b", "a"})),
        graph="onnx/model.onnx",
        exporter="native",
        tools=(("onnx", "1.0"),),
        tensors=(TensorEntry("w", (2, 3), grid, "", 5, 0.25), TensorEntry("n", (2,), None, "F32", 8)),
        files=(FileEntry("config.json", 2, "00" * 32),),
    )


def test_round_trip_of_everything_a_field_may_be():
    assert from_json(Outer, to_json(OUTER)) == OUTER
    assert from_json(Outer, to_json(OUTER, indent=2)) == OUTER
    assert "\n" not in to_json(OUTER)


def test_round_trip_of_the_manifest_with_types_kept():
    read = from_json(Manifest, to_json(manifest()))
    assert read == manifest()
    assert isinstance(read.spec.windows, tuple)
    assert isinstance(read.target.lacks, frozenset)
    assert type(read.recipe.overrides[1].grid) is Grid


def test_the_same_value_gives_the_same_bytes_whatever_a_sets_order():
    shuffled = [frozenset(order) for order in ("zab", "abz", "bza")]
    texts = {to_json(Outer("n", 1, 1.0, False, None, (), ("k", 1), names, 1)) for names in shuffled}
    assert len(texts) == 1
    assert '["a","b","z"]' in texts.pop()


def test_an_integer_is_read_as_a_float_where_a_float_stands():
    value = from_json(Outer, json.dumps(PLAIN | {"share": 2})).share
    assert value == 2.0
    assert type(value) is float


@pytest.mark.parametrize(
    ("change", "path", "word"),
    [
        ({"extra": 1}, "$.extra", "unknown"),
        ({"count": "3"}, "$.count", "expected int"),
        ({"count": 3.0}, "$.count", "expected int"),
        ({"count": True}, "$.count", "expected int"),
        ({"flag": 1}, "$.flag", "expected bool"),
        ({"share": None}, "$.share", "expected float"),
        ({"share": 10**400}, "$.share", "larger"),
        ({"inner": {"kind": "c", "at": "x"}}, "$.inner.kind", "'a', 'b'"),
        ({"inner": {"kind": "a"}}, "$.inner.at", "missing"),
        ({"inner": []}, "$.inner", "Inner"),
        ({"many": [{"kind": "a", "at": "x"}, {"kind": "a", "at": 1}]}, "$.many[1].at", "a path"),
        ({"many": {}}, "$.many", "a list"),
        ({"pair": ["k"]}, "$.pair", "2 values"),
        ({"names": ["a", "a"]}, "$.names", "no duplicates"),
        ({"either": 1.5}, "$.either", "int or text"),
    ],
)
def test_a_wrong_record_is_refused_with_the_path_of_the_culprit(change, path, word):
    with pytest.raises(ValueError) as caught:
        from_json(Outer, json.dumps(PLAIN | change))
    assert str(caught.value).startswith(path + ":")
    assert word in str(caught.value)


def test_a_missing_key_is_an_error_even_where_the_field_has_a_default():
    data = json.loads(to_json(Energy("none", reason="no meter")))
    del data["reason"]
    with pytest.raises(ValueError, match=r"^\$\.reason: missing"):
        from_json(Energy, json.dumps(data))


def test_only_a_field_that_was_added_later_may_be_missing():
    @dataclass(frozen=True)
    class Grown:
        old: int
        new: float | None = added_later(None)

    assert from_json(Grown, '{"old": 1}') == Grown(1)
    assert from_json(Grown, to_json(Grown(1, 0.5))) == Grown(1, 0.5)
    with pytest.raises(ValueError, match=r"^\$\.old: missing"):
        from_json(Grown, '{"new": 0.5}')


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1, "a": 2}', '{"share": NaN}', '{"share": 1e999}', "[" * 100_000, "null"]
)
def test_text_that_is_no_record(text):
    with pytest.raises(ValueError, match=r"^\$"):
        from_json(Outer, text)


@dataclass(frozen=True)
class Odd:
    measured: ranges.Measured
    maybe: ranges.Measured | None
    share: ranges.Share
    plain: float


def test_a_measured_number_may_be_infinite_and_no_other() -> None:
    for number in (float("inf"), float("-inf"), float("nan")):
        text = to_json(Odd(number, None, 0.5, 1.0))
        assert json.loads(text)["measured"] == str(number)
        assert repr(from_json(Odd, text).measured) == repr(number)
        for field in ("share", "plain"):
            with pytest.raises(ValueError, match=f"\\$.{field}"):
                to_json(Odd(0.0, None, **{"share": 0.5, "plain": 1.0} | {field: number}))
            with pytest.raises(ValueError, match=f"\\$.{field}"):
                from_json(Odd, text.replace("0.5" if field == "share" else "1.0", f'"{number}"'))
    for word in ('"Infinity"', '"1"', '""', "Infinity", "1e999"):
        with pytest.raises(ValueError, match=r"\$"):
            from_json(Odd, to_json(Odd(7.5, None, 0.5, 1.0)).replace("7.5", word))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32(1), [1.0], {"a": 1}, object()])
def test_a_value_without_a_place_in_json_is_refused_with_its_path(value):
    with pytest.raises(ValueError, match=r"^\$\.gross_joules"):
        to_json(Energy("measured", gross_joules=value))
