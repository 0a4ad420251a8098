"""A JSON object read with types: every wrong or missing value is an error that names file, key and value."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises SourceError when it is missing, not JSON or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing", "download the checkpoint again, with all of its files") from None
    except (ValueError, OSError) as error:
        raise SourceError(f"{path} is not valid JSON: {error}", "download the file again") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} does not hold a JSON object", "download the file again")
    return value


class Fields:
    """The entries of a JSON object. An entry that is absent or null takes the family's default."""

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values = values
        self.where = where
        self._defaults = defaults or {}

    def get(self, key: str) -> Any:
        """The entry as it is; the default where it is absent or null; None where there is neither."""
        value = self.values.get(key)
        return self._defaults.get(key) if value is None else value

    def explicit(self, key: str) -> Any:
        """The entry as it is, and the default only where it is absent: null says something here."""
        return self.values[key] if key in self.values else self._defaults.get(key)

    def integer(self, key: str, least: int = 1) -> int:
        """An integer that is at least ``least``."""
        value = self.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(key, value, f"an integer of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite positive number."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.error(key, value, "a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false when absent."""
        value = self.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers."""
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(x, (int, float)) and x > 0 for x in value):
            raise self.error(key, value, "a list of positive numbers")
        return tuple(float(x) for x in value)

    def error(self, key: str, value: object, wanted: str) -> SourceError:
        """The error for an entry that is not what it must be."""
        said = "is missing" if value is None else f"is {json.dumps(value, default=str)[:80]}"
        return SourceError(f"{self.where}: '{key}' {said}, not {wanted}", f"correct '{key}' in {self.where}")
