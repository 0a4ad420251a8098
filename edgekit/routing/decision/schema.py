"""Check a request's JSON schema before it is used, and check an answer against it.

A schema is untrusted input. Its cost is bounded twice: by its form, before it is used (size, depth, number of
subschemas that apply to one value, references), and by steps while an answer is checked. Its patterns run on RE2.
"""

from __future__ import annotations

import json
from functools import cache
from threading import local
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from edgekit.errors import RouteError
from edgekit.routing.decision.patterns import NO_FORM, compile_schema_pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONGEST = 100_000
"""Most characters of a schema."""

DEEPEST = 60
"""Deepest nesting of a schema that jsonschema can follow on Python's stack."""

MOST_OBJECTS = 2_000
"""Most objects in a schema; OpenAI's limit is 5,000 properties, most of them without an object of their own."""

MOST_LISTED = 1_000
"""Most entries of one list, such as an enum: OpenAI's own limit."""

MOST_AT_ONCE = 500
"""Most subschemas that apply to one value, references followed: a doubling tree of references has millions."""

STEPS = 50_000
"""Most keywords that one answer is checked against, a long list or text counting more: a second at most."""

_SIMPLIFY = "simplify the schema"
_IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "dependentSchemas", "dependencies")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_held = local()


def check_schema(schema: str) -> None:
    """Refuse a request's JSON schema if answers cannot be checked against it.

    Raises:
        RouteError: the schema is not JSON, not valid, too large or too deep; it refers to something outside, or to
            itself without end; or a pattern is not supported by RE2.
    """
    if len(schema) > LONGEST:
        raise RouteError(f"the JSON schema has {len(schema):,} characters, more than {LONGEST:,}", _SIMPLIFY)
    try:
        document = json.loads(schema)
        if not isinstance(document, dict | bool):
            raise RouteError("the JSON schema is not an object", 'give one such as {"type": "object"}')
        _check_size(document)
        _check_words(document)
        if isinstance(document, dict):
            _Unfolding(document).check()
        _check_form(document)
    except ValueError as error:
        raise RouteError(f"the JSON schema is not JSON: {error}", "see https://json-schema.org") from None
    except RecursionError:
        raise RouteError("the JSON schema is nested too deeply", _SIMPLIFY) from None


def find_breach(schema: str, text: str) -> str:
    """Describe why a text does not satisfy a schema; "" if it does. Never raises.

    Args:
        schema: a schema that has passed check_schema.
        text: the answer, which must be strict JSON.
    """
    from jsonschema.exceptions import ValidationError
    from referencing import Registry

    try:
        answer = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return f"the answer is not JSON: {error}"
    try:
        document = json.loads(schema)
        kind = _bounded(_draft_of(document))
        if isinstance(document, dict):
            document.pop("$schema", None)  # else jsonschema would switch to its own validator
        _held.steps = STEPS
        # An empty registry: nothing is ever fetched.
        kind(document, registry=Registry()).validate(answer)
    except ValidationError as error:
        where = "".join(f"[{part!r}]" for part in error.absolute_path)
        what = error.message if len(error.message) <= 200 else f"{error.message[:200]}…"
        return f"the answer does not satisfy the schema{where and ' at '}{where}: {what}"
    except _Exhausted:
        return f"the answer could not be checked against the schema in {STEPS:,} steps"
    except Exception as error:  # for a schema that check_schema did not see, several libraries may raise anything
        return f"the answer could not be checked against the schema: {type(error).__name__}"
    return ""


# --- form ---------------------------------------------------------------------------------------


def _check_size(document: Any) -> None:
    objects, level, depth = 0, [document], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise RouteError(f"the JSON schema is nested more than {DEEPEST} levels deep", _SIMPLIFY)
        objects += sum(isinstance(value, dict) for value in level)
        if objects > MOST_OBJECTS:
            raise RouteError(f"the JSON schema holds more than {MOST_OBJECTS:,} objects", _SIMPLIFY)
        longest = max((len(value) for value in level if isinstance(value, list)), default=0)
        if longest > MOST_LISTED:
            raise RouteError(f"the JSON schema has a list of {longest:,} entries, more than {MOST_LISTED:,}", _SIMPLIFY)
        level = [child for value in level for child in _children(value)]


def _children(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _check_words(document: Any) -> None:
    """Refuse references to the outside, and patterns that RE2 does not support."""
    for key, value in _members(document, top=True):
        if key in _REFERENCES and isinstance(value, str) and not value.startswith("#"):
            raise RouteError(f"the JSON schema refers to {value[:100]}", "define it in the schema's own $defs")
        if key == "pattern" and isinstance(value, str):
            _check_pattern(value)
        if key == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_pattern(pattern)
        if key in ("$schema", "$id") and isinstance(value, str):
            raise RouteError(f"the JSON schema has a nested {key}", f"remove {key}, or move it to the top level")
    keys = {key for key, _ in _members(document)}
    if {"unevaluatedProperties", "patternProperties"} <= keys:
        raise RouteError(
            "the JSON schema has both unevaluatedProperties and patternProperties",
            "use additionalProperties instead of unevaluatedProperties",
        )


def _check_pattern(pattern: str) -> None:
    try:
        compile_schema_pattern(pattern)
    except ValueError as error:
        raise RouteError(
            f"the JSON schema's pattern {pattern[:100]!r} is not supported: {error}", f"write it in {NO_FORM}"
        ) from None


def _members(value: Any, *, top: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of all objects in a JSON document; ``top``: except the top level's $schema and $id."""
    if isinstance(value, dict):
        yield from ((key, item) for key, item in value.items() if not (top and key in ("$schema", "$id")))
    for child in _children(value):
        yield from _members(child)


def _draft_of(document: Any) -> Any:
    """Return jsonschema's validator of the draft that a schema names, by default the latest."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    if not isinstance(document, dict) or "$schema" not in document:
        return Draft202012Validator
    named = document["$schema"]
    draft = validator_for({"$schema": named}, default=None) if isinstance(named, str) else None
    if draft is None:
        raise RouteError(f"the JSON schema names an unknown draft: {str(named)[:100]!r}", "remove $schema")
    return draft


def _check_form(document: Any) -> None:
    from jsonschema import FormatChecker
    from jsonschema.exceptions import SchemaError

    try:
        _draft_of(document).check_schema(document, format_checker=FormatChecker(formats=()))
    except SchemaError as error:
        message = error.message if len(error.message) <= 200 else f"{error.message[:200]}…"
        raise RouteError(f"the JSON schema is not valid: {message}", "see https://json-schema.org") from None


class _Unfolding:
    """Counts the subschemas that apply to any one value, with every reference followed."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()
        self._anchors = {
            item: value
            for value in _objects(document)
            for key, item in value.items()
            if key in ("$anchor", "$dynamicAnchor") and isinstance(item, str)
        }

    def check(self) -> None:
        """Raise RouteError if there are too many, or references are endless or missing."""
        for value in _objects(self._document):
            if self._size(value) > MOST_AT_ONCE:
                raise RouteError(
                    f"the JSON schema applies more than {MOST_AT_ONCE} subschemas to one value, references followed",
                    _SIMPLIFY,
                )

    def _size(self, schema: Any) -> int:
        if not isinstance(schema, dict):
            return 0
        key = id(schema)
        if key in self._open:
            raise RouteError("the JSON schema refers to itself without descending into a value", _SIMPLIFY)
        if key not in self._sizes:
            self._open.add(key)
            self._sizes[key] = 1 + sum(map(self._size, self._applied(schema)))
            self._open.discard(key)
        return self._sizes[key]

    def _applied(self, schema: dict[str, Any]) -> Iterator[Any]:
        """Yield the subschemas that apply to the same value."""
        for name in _IN_PLACE:
            found = schema.get(name)
            if name.startswith("depend") or isinstance(found, list):
                yield from _children(found)
            else:
                yield found
        for name in _REFERENCES:
            if isinstance(schema.get(name), str):
                yield self._find(schema[name])

    def _find(self, reference: str) -> Any:
        pointer = unquote(reference[1:])
        value: Any = self._document
        if pointer and not pointer.startswith("/"):
            value = self._anchors.get(pointer)
        for step in pointer.split("/")[1:] if pointer.startswith("/") else ():
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            else:
                value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, dict | bool):
            raise RouteError(
                f"the JSON schema refers to {reference[:100]}, which it does not define", "define it in $defs"
            )
        return value


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in _children(value):
        yield from _objects(child)


# --- an answer ----------------------------------------------------------------------------------


class _Exhausted(Exception):
    """The step limit is reached."""


@cache
def _bounded(kind: Any) -> Any:
    """Return jsonschema's validator of one draft, extended to count steps and use RE2."""
    from jsonschema.validators import extend

    own = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    known = {name: own.get(name, check) for name, check in kind.VALIDATORS.items()}
    return extend(kind, {name: _counted(check) for name, check in known.items()})


def _counted(check: Callable[..., Any]) -> Callable[..., Any]:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        _held.steps -= 1 + sum(len(v) // 10 for v in (value, instance) if isinstance(v, dict | list | str))
        if _held.steps < 0:
            raise _Exhausted
        yield from check(validator, value, instance, schema) or ()

    return counted


def _pattern(_validator: Any, value: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if isinstance(instance, str) and not _finds(value, instance):
        yield ValidationError(f"{instance!r} does not match {value!r}")


def _pattern_properties(validator: Any, value: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    for pattern, schema in value.items() if isinstance(instance, dict) else ():
        for name, item in instance.items():
            if _finds(pattern, name):
                yield from validator.descend(item, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if not isinstance(instance, dict):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extra = [name for name in instance if name not in known and not any(_finds(p, name) for p in patterns)]
    if value is False and extra:
        yield ValidationError(f"Additional properties are not allowed ({', '.join(map(repr, extra))} unexpected)")
    elif isinstance(value, dict):
        for name in extra:
            yield from validator.descend(instance[name], value, path=name)


def _unique_items(_validator: Any, value: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if value and isinstance(instance, list):
        distinct = {json.dumps(_one(i), sort_keys=True) for i in instance}
        if len(distinct) < len(instance):
            yield ValidationError("the array has non-unique elements")


def _one(value: Any) -> Any:
    """Normalize a value so that equal ones serialize alike: 1.0 is 1 in JSON Schema."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_one(item) for item in value]
    return {name: _one(item) for name, item in value.items()} if isinstance(value, dict) else value


def _finds(pattern: str, text: str) -> bool:
    return compile_schema_pattern(pattern).search(text.encode("utf-8", "replace"))


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
