"""Typed, range-checked access to a checkpoint's JSON objects; every value of a checkpoint is read through it.

A wrong or missing value is an error that names file, key and value. ``RANGES`` has the allowed numbers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.ranges import CONTEXT, HEAD_SIZE, HEADS, HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY, WINDOW, Within

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_NAME = 256
"""Most characters of a tensor name, as for a file name."""

RANGES: Mapping[str, Within] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD_SIZE,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "original_max_position_embeddings": CONTEXT,
    "sliding_window": WINDOW,
    "max_window_layers": Within(0, 2**20),
    "no_rope_layer_interval": Within(1, 2**20),
}
"""Range of each whole number in a config: those of a bundle (see ranges), and two that only configs have."""

_LEAST, _MOST = 1e-12, 1e12


class Fields:
    """The entries of a JSON object. An absent or null entry has the family's default."""

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values = values
        self.where = where
        self._defaults = defaults or {}

    def get(self, key: str) -> Any:
        """The entry as is; the default if it is absent or null; None if there is neither."""
        value = self.values.get(key)
        return self._defaults.get(key) if value is None else value

    def explicit(self, key: str) -> Any:
        """The entry as is, null included; the default only if it is absent."""
        return self.values[key] if key in self.values else self._defaults.get(key)

    def integer(self, key: str, least: int | None = None, most: int | None = None) -> int:
        """A whole number in the range of its key in RANGES, or from ``least`` to ``most``."""
        value = self.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        known = RANGES.get(key, VOCABULARY)
        low, high = known.least if least is None else least, known.most if most is None else most
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number well within the range of float32."""
        value = self.get(key)
        value = default if value is None else value
        if value is None or not _is_number(value) or not _LEAST <= value <= _MOST:
            raise self.error(key, value, f"a number from {_LEAST} to {_MOST}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def text(self, key: str, most: int) -> str | None:
        """A string of at most ``most`` characters; None if it is absent."""
        value = self.get(key)
        if value is not None and (not isinstance(value, str) or len(value) > most):
            raise self.error(key, value, f"text of at most {most} characters")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers, at most half the largest head size."""
        value = self.get(key)
        good = isinstance(value, list) and len(value) <= HEAD_SIZE.most // 2
        if not good or not all(_is_number(x) and _LEAST <= x <= _MOST for x in value):
            raise self.error(key, value, "a list of positive numbers")
        return tuple(float(x) for x in value)

    def tokens(self, key: str) -> tuple[int, ...]:
        """Token ids: one, or a list of at most 256; duplicates and negative ids (no token) are dropped."""
        value = self.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if len(items) > 256 or not all(type(item) is int and item <= VOCABULARY.most for item in items):
            raise self.error(key, value, "a token id or a list of token ids")
        return tuple(dict.fromkeys(item for item in items if item >= 0))

    def error(self, key: str, value: object, wanted: str) -> SourceError:
        """The error for a wrong or missing entry."""
        said = "is missing; it must be" if value is None else f"is {shown(value, json.dumps)}, not"
        return SourceError(f"{self.where}: '{key}' {said} {wanted}", f"correct '{key}' in {self.where}")


def shown(value: object, quote: Callable[[str], str] = repr) -> str:
    """An untrusted value for a message: one line of at most 80 characters; ``quote`` quotes a string."""
    if isinstance(value, (dict, list)) and len(value) > 20:
        return f"{type(value).__name__} of {len(value)} entries"
    try:
        text = quote(value) if isinstance(value, str) else json.dumps(value, default=str)
    except (ValueError, RecursionError):
        return type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
