"""What is wrong with device files beyond their form: a number without a source, a name that nothing goes by.

Form is checked where a file is read; a file that cannot be read is a problem like any other here.
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
"""The quirk whose cure makes a graph's floats half precision."""

LARGEST_HALF = 65504.0
"""The largest number of float16."""

ROUNDED = 0.01
"""How far a number may be from the arithmetic of its source: makers round."""


@dataclass(frozen=True)
class Problem:
    """What is wrong in the file of one target or family, and how to mend it ("" where the problem says it)."""

    file: str
    problem: str
    hint: str = ""


@dataclass(frozen=True)
class Lint:
    """What was looked at, and every problem. ``numbers`` counts those that need a source."""

    targets: tuple[str, ...]
    families: tuple[str, ...]
    numbers: int
    problems: tuple[Problem, ...]


def lint_targets(names: Sequence[str] = ()) -> Lint:
    """Look for problems in the files of targets and of the families of their NPUs.

    Args:
        names: names or TOML files; all that ship by default.

    Raises:
        ConfigError: no target of that name, no such file.
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
            yield Problem(file, "'fallback' has no part in a device without an NPU", "remove it, or add [npu]")
        return
    if not target.fallback:
        yield Problem(file, "it has an NPU and no graph for its CPU", 'name a target: fallback = "arm64"')
    else:
        yield from _lint_fallback(file, target.fallback)
    taken = {precision for scheme in target.npu.schemes for precision in scheme.precisions}
    for precision in (p for p in target.precisions if p not in taken):
        problem = f"'precisions' has {precision}, which no scheme of family '{target.npu.family}' takes"
        yield Problem(file, problem, f"schemes take: {', '.join(sorted(taken)) or 'nothing'}")


def _lint_fallback(file: str, name: str) -> Iterator[Problem]:
    try:
        fallback = load_target(name)
    except ConfigError as error:
        yield Problem(file, f"fallback: {error.message}", error.hint)
        return
    if fallback.npu:
        yield Problem(file, f"fallback '{name}' has an NPU itself", "name a target that is a CPU")


def _lint_family(npu: Npu, provider: str) -> Iterator[Problem]:
    file = f"families/{npu.family}.toml"
    yield from _lint_sources(file, npu.numbers(), npu.sources, optional=("options",))
    if not npu.schemes:
        yield Problem(file, "no scheme", "add one: [[scheme]]")
    for scheme in npu.schemes:
        yield from _lint_lacks(file, scheme.lacks | scheme.quirks)
        yield from _lint_recipes(file, scheme)
        yield from _lint_activations(file, scheme, (*npu.options, *scheme.options), provider)


def _lint_activations(
    file: str, scheme: NpuScheme, options: Sequence[tuple[str, str]], provider: str
) -> Iterator[Problem]:
    """What a scheme says it computes in, against what its graphs and the provider's options make of it."""
    known = find_provider(provider)
    switched = known is not None and (known.half_precision, "1") in options
    half = switched or HALF_FLOATS in scheme.quirks
    if scheme.activations == "float16" and not half:
        yield Problem(
            file,
            'a scheme says activations = "float16", and its graphs are computed in float32: neither the quirk '
            f"'{HALF_FLOATS}' nor an option for half precision is set",
            'write activations = "float32", or set what makes it float16',
        )
    if scheme.activations != "float16" and half:
        why = f"option '{known.half_precision}'" if known and switched else f"quirk '{HALF_FLOATS}'"
        yield Problem(file, f'a scheme says activations = "{scheme.activations}", and its {why} makes them float16')
    if half and -scheme.masked > LARGEST_HALF:
        yield Problem(
            file, f"'masked' is {-scheme.masked:g}, and float16 ends at {LARGEST_HALF:g}", "give a smaller one"
        )


def _lint_recipes(file: str, scheme: NpuScheme) -> Iterator[Problem]:
    for precision, name in scheme.recipes:
        try:
            recipe = load_recipe(name)
        except ConfigError as error:
            yield Problem(file, f"recipe of {precision}: {error.message}", error.hint)
            continue
        if recipe.precision != precision:
            yield Problem(file, f"recipe '{name}' makes {recipe.precision}, not {precision}")


def _lint_sources(
    file: str, numbers: Mapping[str, object], sources: Sequence[Evidence], optional: Collection[str] = ()
) -> Iterator[Problem]:
    known = {source.key for source in sources}
    for key in (key for key in numbers if key not in known):
        written = f'"{key}"' if "." in key else key
        hint = f'under [sources]: {written} = {{ certainty = "reported", text = "who says so, and when" }}'
        yield Problem(file, f"'{key}' has no source", hint)
    for source in sources:
        given, value = _product(source.text), numbers.get(source.key)
        if given and isinstance(value, int | float) and abs(given - value) > ROUNDED * value:
            yield Problem(file, f"'{source.key}' is {value:g}, and the arithmetic of its source gives {given:g}")
        if source.key not in numbers and source.key not in optional:
            yield Problem(file, f"the source of '{source.key}' belongs to no number", "remove it, or add the number")
        if not source.text.strip():
            yield Problem(file, f"the source of '{source.key}' says nothing", "say who gives the number, and where")


def _product(text: str) -> float | None:
    """The product that a source's text writes out, ``4267e6 * 4``; None where it writes none."""
    found = re.search(r"\b\d+(?:\.\d+)?e\d+(?: \* \d+)+", text)
    return prod(float(factor) for factor in found[0].split(" * ")) if found else None


def _lint_lacks(file: str, names: Collection[str]) -> Iterator[Problem]:
    known = fixes()
    for name in sorted(name for name in names if name not in known):
        hint = f"{did_you_mean(name, tuple(known))}cured are: {', '.join(sorted(known))}"
        yield Problem(file, f"nothing in edgekit/lower cures '{name}'", hint)
