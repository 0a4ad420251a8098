"""Records read, with an error that names the file, and the words for numbers that all tables share."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.peers.records import Run, Spread, read_runs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MB, GB = 1e6, 1e9


class RecordError(Exception):
    """A record that a document needs is missing, or has another form than the document's program expects."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while the records of ``path`` are used is an error that names it."""
    place = "/".join(path.parts[-4:])
    try:
        yield
    except FileNotFoundError as error:
        raise RecordError(f"{place} is missing: run its benchmark, or take its numbers out of the page") from error
    except RecordError as error:
        raise RecordError(f"{place}: {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise RecordError(f"{place} has another form than benchmarks/page expects ({why})") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pick(lines: list[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    """The last line that has these values: the newest run of what it says."""
    for line in reversed(lines):
        if all(line.get(key) == value for key, value in wanted.items()):
            return line
    raise RecordError(f"no line has {', '.join(f'{key} = {value!r}' for key, value in wanted.items())}")


def last_run(path: Path) -> Run:
    """The newest run of the peers' benchmark."""
    return read_runs(path)[-1]


def need(value: Any) -> Any:
    """A value that must be there."""
    if value is None:
        raise RecordError("a contender has no number where the page shows one")
    return value


def spread(s: Spread, digits: int, unit: str = "") -> str:
    """``3.74x [3.53, 3.88]``."""
    return f"{s.middle:.{digits}f}{unit} [{s.low:.{digits}f}, {s.high:.{digits}f}]"


def interval(i: dict[str, float], digits: int, sign: str = "") -> str:
    """``0.0884 [0.0840, 0.0927]``, with a real minus."""
    text = f"{i['value']:{sign}.{digits}f} [{i['low']:{sign}.{digits}f}, {i['high']:{sign}.{digits}f}]"
    return text.replace("-", "−")


def percents(i: dict[str, float], sign: str = "") -> str:
    """A share and its interval in percent, without the unit after the first number."""
    return interval({key: 100 * i[key] for key in ("value", "low", "high")}, 1, sign)


def ends(values: list[float], digits: int) -> tuple[str, str]:
    """The least and the most of some values."""
    return f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
