"""JSON schemas of strangers: each is refused or done, soon, and nothing is fetched."""

from __future__ import annotations

import json
import socket
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import RouteError
from edgekit.routing.decision.schema import DEEPEST, MOST_LISTED, MOST_OBJECTS, check_schema, find_breach


def doubling(depth: int, keyword: str = "allOf") -> dict:
    """A tree of references with 2**depth leaves, in a few hundred characters."""
    steps = {f"a{i}": {keyword: [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(depth)}
    return {"$defs": {**steps, f"a{depth}": {"type": "integer"}}, "$ref": "#/$defs/a0"}


NESTED = {
    "$defs": {"n": {"properties": {"x": {"allOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}]}}}},
    "$ref": "#/$defs/n",
}


def deep(depth: int) -> str:
    return '{"x":' * depth + "1" + "}" * depth


REFUSED = {
    "doubled": (doubling(30), "more than"),
    "doubled by anyOf": (doubling(30, "anyOf"), "more than"),
    "doubled by oneOf": (doubling(30, "oneOf"), "more than"),
    "a loop": ({"$ref": "#"}, "refers to itself"),
    "a loop of two": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"},
        "itself",
    ),
    "a loop by if": ({"if": {"$ref": "#"}}, "itself"),
    "a loop by dependency": ({"dependentSchemas": {"a": {"$ref": "#"}}}, "itself"),
    "a loop by anchor": ({"$anchor": "a", "allOf": [{"$ref": "#a"}]}, "itself"),
    "remote": ({"$ref": "http://127.0.0.1:9/schema.json"}, "refers to http"),
    "a file": ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "refers to file"),
    "a draft's own": ({"$ref": "http://json-schema.org/draft-07/schema#"}, "refers to http"),
    "nowhere": ({"$ref": "#/$defs/none"}, "does not define"),
    "an index beyond": ({"allOf": [{"$ref": "#/allOf/7"}]}, "does not define"),
    "an anchor that is not there": ({"$ref": "#none"}, "does not define"),
    "another draft inside": (
        {"properties": {"a": {"$schema": "http://json-schema.org/draft-07/schema#"}}},
        "nested $schema",
    ),
    "another base inside": ({"properties": {"a": {"$id": "http://a/"}}}, "nested $id"),
    "lookahead": ({"pattern": "^(?=a)"}, "is not supported"),
    "a backreference": ({"patternProperties": {r"(a)\1": {}}}, "is not supported"),
    "a huge expression": ({"pattern": "((a{100}){100}){100}"}, "is not supported"),
    "no expression": ({"pattern": "("}, "is not supported"),
    "a long enum": ({"enum": list(range(MOST_LISTED + 1))}, "list of"),
    "many objects": ({"properties": {f"p{i}": {} for i in range(MOST_OBJECTS + 1)}}, "objects"),
    "deep": (json.loads('{"not":' * (DEEPEST + 1) + "{}" + "}" * (DEEPEST + 1)), "nested"),
    "both": ({"unevaluatedProperties": False, "patternProperties": {"a": {}}}, "both"),
    "a draft that is a list": ({"$schema": []}, "unknown draft"),
    "a draft that is none": ({"$schema": "http://127.0.0.1:9/"}, "unknown draft"),
    "nothing that divides": ({"multipleOf": 0}, "not valid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_schemas_that_are_refused(name, monkeypatch):
    def connect(*args):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", connect)
    schema, said = REFUSED[name]
    began = monotonic()
    with pytest.raises(RouteError, match="JSON schema") as refused:
        check_schema(json.dumps(schema))
    assert said in refused.value.message
    assert refused.value.hint
    assert len(refused.value.message) < 500
    assert monotonic() - began < 5


def many(count: int, value: object = None) -> str:
    return json.dumps([{"a": i} if value is None else value for i in range(count)])


COSTLY = {
    "nested quantifiers": ({"pattern": "^(a+)+$"}, json.dumps("a" * 50_000 + "!"), False),
    "alternatives": ({"pattern": "^(a|aa)+$"}, json.dumps("a" * 50_000 + "!"), False),
    "keys": ({"patternProperties": {"^(a+)+$": False}}, json.dumps({"a" * 20_000 + "!": 1}), True),
    "keys that are more": (
        {"additionalProperties": False, "patternProperties": {"^(\\w+\\s?)*$": {}}},
        json.dumps({"a" * 20_000 + "!": 1}),
        False,
    ),
    "names": ({"propertyNames": {"pattern": "^(a*)*$"}}, json.dumps({"a" * 20_000 + "!": 1}), False),
    "unlike items": ({"uniqueItems": True}, json.dumps([[i] if i % 2 else {"a": i} for i in range(10_000)]), True),
    "items that double": ({"uniqueItems": True}, many(10_000, {"a": [1]}), False),
    "an enum for each": ({"items": {"enum": [{"a": -i} for i in range(1, 900)]}}, many(10_000), False),
    "doubling on the way down": (NESTED, deep(40), False),
    "doubling a little": (doubling(6), "1", True),
    "steps": ({"items": {"allOf": [{"type": "object"}] * 400}}, many(10_000), False),
    "unevaluated": (
        {"unevaluatedProperties": False, "allOf": [{"properties": {f"p{i}": True}} for i in range(400)]},
        json.dumps({f"q{i}": 1 for i in range(5_000)}),
        False,
    ),
    "unevaluated that double": ({**doubling(6, "anyOf"), "unevaluatedProperties": False}, "{}", False),
    "contains": ({"contains": {"contains": {"const": 1}}}, json.dumps([[2] * 1000] * 1000), False),
    "tiny steps": ({"multipleOf": 5e-324}, "1e308", True),
    "huge numbers": ({"multipleOf": 10**4000 + 1}, "9" * 4000, False),
    "huge and small": ({"multipleOf": 0.1}, "9" * 4000, False),
    "not a number": ({}, "9" * 5000, False),
    "a deep answer": (
        {"$ref": "#/$defs/l", "$defs": {"l": {"items": {"$ref": "#/$defs/l"}}}},
        "[" * 900 + "]" * 900,
        False,
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_answers_that_cost_much_are_held_against_it_or_given_up(name):
    schema, answer, holds = COSTLY[name]
    check_schema(json.dumps(schema))
    began = monotonic()
    breach = find_breach(json.dumps(schema), answer)
    assert (not breach) == holds, breach
    assert monotonic() - began < 10


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"pattern": r"^\d{3}$"}, '"123"', '"1234"'),
        ({"patternProperties": {"^n": {"type": "integer"}}}, '{"n": 1, "x": "y"}', '{"n": "1"}'),
        (
            {"properties": {"a": {}}, "patternProperties": {"^n": {}}, "additionalProperties": False},
            '{"a": 1, "n1": 2}',
            '{"b": 1}',
        ),
        ({"additionalProperties": {"type": "integer"}}, '{"a": 1}', '{"a": "1"}'),
        ({"additionalProperties": True}, '{"a": 1}', "nothing"),
        ({"uniqueItems": True}, '[1, true, "1", [1], [true]]', "[1, 1.0]"),
        ({"uniqueItems": True}, '[{"a": 1}, {"a": 2}]', '[{"a": 1, "b": 2}, {"b": 2.0, "a": 1}]'),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True}, "2", "1"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}]}, '[1, "x"]', '["x"]'),
        ({"$id": "http://a/b", "$defs": {"p": {"type": "string"}}, "items": {"$ref": "#/$defs/p"}}, '["x"]', "[1]"),
        ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "null"}}}, "null", "1"),
        (
            {"$defs": {"t": {"properties": {"l": {"$ref": "#/$defs/t"}}, "required": ["v"]}}, "$ref": "#/$defs/t"},
            '{"v": 1, "l": {"v": 2}}',
            '{"v": 1, "l": {}}',
        ),
        (
            {"properties": {"pattern": {"type": "string"}, "$ref": {"type": "string"}}},
            '{"pattern": "("}',
            '{"pattern": 1}',
        ),
        ({"format": "date"}, '"no date"', "nothing"),
        ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]}, '{"a": 1}', '{"b": 1}'),
        ({"enum": [1, "x", None]}, "null", "2"),
    ],
)
def test_ordinary_schemas(schema, good, bad):
    check_schema(json.dumps(schema))
    assert find_breach(json.dumps(schema), good) == ""
    assert find_breach(json.dumps(schema), bad)


def test_a_large_schema_is_looked_at_soon():
    large = json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(MOST_OBJECTS - 10)}})
    began = monotonic()
    check_schema(large)
    assert monotonic() - began < 10


_WORDS = st.sampled_from(
    (
        *(
            "$ref",
            "$defs",
            "$id",
            "$schema",
            "$anchor",
            "$dynamicRef",
            "$dynamicAnchor",
            "$recursiveRef",
            "definitions",
        ),
        *("type", "properties", "items", "pattern", "patternProperties", "additionalProperties", "propertyNames"),
        *("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies", "contains"),
        *("enum", "const", "required", "minimum", "multipleOf", "uniqueItems", "minItems", "prefixItems", "format"),
        *("unevaluatedProperties", "unevaluatedItems", "id", "extends", "disallow", "a", "b"),
    )
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=4),
    st.sampled_from(
        [
            "#",
            "#/$defs/a",
            "#/properties/b",
            "#a",
            "string",
            "object",
            "(a+)+$",
            "http://json-schema.org/draft-04/schema#",
            "http://json-schema.org/draft-03/schema#",
            "https://json-schema.org/draft/2019-09/schema",
        ]
    ),
)
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner, max_size=4), max_leaves=20
)


@settings(max_examples=200, deadline=5000)
@given(schema=_JSON, answer=_JSON)
def test_any_json_is_a_schema_or_is_refused(schema, answer):
    try:
        check_schema(json.dumps(schema))
    except RouteError as error:
        assert error.hint
    else:
        assert isinstance(find_breach(json.dumps(schema), json.dumps(answer)), str)
