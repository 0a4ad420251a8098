"""Check device files beyond their syntax: numbers without a source, names that refer to nothing.

Syntax is checked when a file is read; here, an unreadable file is reported like any other problem.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.config.providers import find_provider
from edgekit.config.recipe import list_targets, load_recipe, load_target
from edgekit.errors import ConfigError, did_you_mean
from edgekit.lower import fixes
from edgekit.strangers.toml_table import is_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from edgekit.types.device import Evidence, Npu, NpuScheme, Target


HALF_FLOATS = "floats:float32"
"""The quirk whose rewrite converts a graph's floats to half precision."""

LARGEST_HALF = 65504.0
"""The largest number of float16."""

ROUNDED = 0.01
"""Relative tolerance between a number and the arithmetic of its source: makers round."""


@dataclass(frozen=True)
class Problem:
    """What is wrong in the file of a target or family, and how to fix it ("" if that is obvious)."""

    file: str
    problem: str
    hint: str = ""


@dataclass(frozen=True)
class Lint:
    """The files checked and every problem found. ``numbers`` counts the numbers that need a source."""

    targets: tuple[str, ...]
    families: tuple[str, ...]
    numbers: int
    problems: tuple[Problem, ...]


def lint_targets(names: Sequence[str] = ()) -> Lint:
    """Check the files of targets and of their NPU families.

    Args:
        names: target names or TOML files; by default all that ship.

    Raises:
        ConfigError: unknown target or missing file.
    """
    asked = tuple(dict.fromkeys(names or list_targets()))
    targets: list[Target] = []
    problems: list[Problem] = []
    for name in asked:
        try:
            targets.append(load_target(name))
        except ConfigError as error:
            if not (Path(name).is_file() if is_path(name) else name in list_targets()):
                raise
            problems.append(Problem(name, error.message, error.hint))
    families = {(npu.family, npu.schemes, npu.sources): (npu, t.provider) for t in targets if (npu := t.npu)}
    problems += [problem for target in targets for problem in _lint_target(target)]
    problems += [problem for npu, provider in families.values() for problem in _lint_family(npu, provider)]
    numbers = sum(len(t.numbers()) for t in targets) + sum(len(npu.numbers()) for npu, _ in families.values())
    return Lint(asked, tuple(npu.family for npu, _ in families.values()), numbers, tuple(problems))


def _lint_target(target: Target) -> Iterator[Problem]:
    file = f"{target.name}.toml"
    yield from _lint_sources(file, target.numbers(), target.sources)
    yield from _lint_lacks(file, target.lacks | target.quirks)
    if target.npu is None:
        if target.fallback:
            yield Problem(file, "'fallback' is set, but there is no [npu]", "remove 'fallback', or add [npu]")
        return
    if not target.fallback:
        yield Problem(file, "'fallback' is missing for a target with [npu]", 'name a CPU target: fallback = "arm64"')
    else:
        yield from _lint_fallback(file, target.fallback)
    taken = {precision for scheme in target.npu.schemes for precision in scheme.precisions}
    for precision in (p for p in target.precisions if p not in taken):
        problem = f"'precisions' lists {precision}, which no scheme of family '{target.npu.family}' supports"
        yield Problem(file, problem, f"supported: {', '.join(sorted(taken)) or 'none'}")


def _lint_fallback(file: str, name: str) -> Iterator[Problem]:
    try:
        fallback = load_target(name)
    except ConfigError as error:
        yield Problem(file, f"fallback: {error.message}", error.hint)
        return
    if fallback.npu:
        yield Problem(file, f"fallback '{name}' has an NPU itself", "name a CPU target")


def _lint_family(npu: Npu, provider: str) -> Iterator[Problem]:
    file = f"families/{npu.family}.toml"
    yield from _lint_sources(file, npu.numbers(), npu.sources, optional=("options",))
    if not npu.schemes:
        yield Problem(file, "no [[scheme]]", "add one")
    for scheme in npu.schemes:
        yield from _lint_lacks(file, scheme.lacks | scheme.quirks)
        yield from _lint_recipes(file, scheme)
        yield from _lint_activations(file, scheme, (*npu.options, *scheme.options), provider)


def _lint_activations(
    file: str, scheme: NpuScheme, options: Sequence[tuple[str, str]], provider: str
) -> Iterator[Problem]:
    """Check a scheme's ``activations`` against its quirks and the provider's options."""
    known = find_provider(provider)
    switched = known is not None and (known.half_precision, "1") in options
    half = switched or HALF_FLOATS in scheme.quirks
    if scheme.activations == "float16" and not half:
        yield Problem(
            file,
            'a scheme has activations = "float16", but its graphs compute in float32: neither the quirk '
            f"'{HALF_FLOATS}' nor an option for half precision is set",
            'write activations = "float32", or set one of the two',
        )
    if scheme.activations != "float16" and half:
        why = f"option '{known.half_precision}'" if known and switched else f"quirk '{HALF_FLOATS}'"
        yield Problem(file, f'a scheme has activations = "{scheme.activations}", but its {why} makes them float16')
    if half and -scheme.masked > LARGEST_HALF:
        yield Problem(
            file, f"'masked' is {-scheme.masked:g}, but float16 ends at {LARGEST_HALF:g}", "use a smaller number"
        )


def _lint_recipes(file: str, scheme: NpuScheme) -> Iterator[Problem]:
    for precision, name in scheme.recipes:
        try:
            recipe = load_recipe(name)
        except ConfigError as error:
            yield Problem(file, f"recipe of {precision}: {error.message}", error.hint)
            continue
        if recipe.precision != precision:
            yield Problem(file, f"recipe '{name}' has precision {recipe.precision}, not {precision}")


def _lint_sources(
    file: str, numbers: Mapping[str, object], sources: Sequence[Evidence], optional: Collection[str] = ()
) -> Iterator[Problem]:
    known = {source.key for source in sources}
    for key in (key for key in numbers if key not in known):
        written = f'"{key}"' if "." in key else key
        hint = f'add it under [sources]: {written} = {{ certainty = "reported", text = "who says so, and when" }}'
        yield Problem(file, f"'{key}' has no source", hint)
    for source in sources:
        given, value = _product(source.text), numbers.get(source.key)
        if given and isinstance(value, int | float) and abs(given - value) > ROUNDED * value:
            yield Problem(file, f"'{source.key}' is {value:g}, but the arithmetic of its source gives {given:g}")
        if source.key not in numbers and source.key not in optional:
            yield Problem(file, f"[sources] has '{source.key}', which is not set", "remove it, or set the number")
        if not source.text.strip():
            yield Problem(file, f"the source of '{source.key}' is empty", "say who gives the number, and where")


def _product(text: str) -> float | None:
    """The value of a product in a source's text, such as ``4267e6 * 4``; None if there is none."""
    found = re.search(r"\b\d+(?:\.\d+)?e\d+(?: \* \d+)+", text)
    return prod(float(factor) for factor in found[0].split(" * ")) if found else None


def _lint_lacks(file: str, names: Collection[str]) -> Iterator[Problem]:
    known = fixes()
    for name in sorted(name for name in names if name not in known):
        hint = f"{did_you_mean(name, tuple(known))}known: {', '.join(sorted(known))}"
        yield Problem(file, f"edgekit/lower has no rewrite for '{name}'", hint)
