"""Open and parse untrusted files: regular files only, within limits.

``open_plain`` returns only a regular file. A pipe, a device, a socket or a folder is an immediate error, never a wait;
so is a link that leads out of the allowed folders. ``read_plain`` reads at most ``limit`` bytes, whatever size the file
has. ``parse_json`` returns an object with a bounded number of values, nested at most MAX_DEPTH levels, without
duplicate keys, NaN or Infinity, and every string encodable as UTF-8; the caller checks types and ranges. All failures
are raised as the error class that the caller passes, with a hint. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from edgekit.errors import EdgekitError

MAX_DEPTH = 64
"""Most levels of nesting in a JSON file, so that recursive code does not overflow the stack."""

MAX_VALUES = 4_000_000
"""Most values in a JSON file, about 100 bytes of memory each. The largest published tokenizer.json has 1.5 million."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_AGAIN = "download or copy the file again, and do not use it unless you trust its origin"


def open_plain(path: Path, *, error: type[EdgekitError], within: Sequence[Path] = ()) -> FileIO:
    """Open a regular file to read, unbuffered. Never blocks, whatever is at ``path``.

    Args:
        path: the file; links are followed.
        error: class of the error to raise.
        within: folders that the resolved file must be in; anywhere if empty.

    Raises:
        error: it does not exist, is not readable, not a regular file, or is elsewhere.
    """
    try:
        real = path.resolve(strict=True)
        if within and not any(real.is_relative_to(root.resolve()) for root in within):
            raise error(
                f"{path} is a link that leads out of {within[0]}, to {real}",
                "if you trust it, replace the link with a copy of the file",
            )
        # Checked before opening, since opening a device may have effects, and after, since it may have changed.
        _require_plain(path, os.stat(real).st_mode, error)  # noqa: PTH116
        handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            _require_plain(path, os.fstat(handle).st_mode, error)
        except BaseException:
            os.close(handle)
            raise
        return os.fdopen(handle, "rb", buffering=0)
    except FileNotFoundError as reason:
        raise error(f"{path} not found", "check the path, or download the missing file") from reason
    except (OSError, RuntimeError) as reason:  # RuntimeError: circular links, before Python 3.13
        said = getattr(reason, "strerror", None) or reason
        raise error(f"{path} cannot be read: {said}", "check the file, its name and its permissions") from reason
    except ValueError as reason:
        raise error(f"{str(path)!r} is not a valid path: {reason}", "pass the path of a file or a folder") from reason


@contextmanager
def reading(path: Path, *, error: type[EdgekitError]) -> Iterator[None]:
    """Turn an OSError in the block into an ``error`` that names ``path``."""
    try:
        yield
    except OSError as reason:
        said = reason.strerror or reason
        raise error(f"{path} cannot be read: {said}", "check the file and its permissions") from reason


def read_plain(path: Path, limit: int, *, error: type[EdgekitError], within: Sequence[Path] = ()) -> bytes:
    """Read a regular file of at most ``limit`` bytes. ``path``, ``error`` and ``within`` as in open_plain.

    Raises:
        error: as open_plain, or the file is larger or cannot be read.
    """
    with open_plain(path, error=error, within=within) as file, reading(path, error=error):
        size = os.fstat(file.fileno()).st_size
        data = bytearray()
        while size <= limit and len(data) <= limit:
            part = file.read(min(1 << 20, limit + 1 - len(data)))
            if not part:
                return bytes(data)
            data += part
    raise error(f"{path} has more than {limit:,} bytes, too many for such a file", _AGAIN)


def parse_text(data: bytes, where: str, *, error: type[EdgekitError]) -> str:
    """Decode the bytes of a file as UTF-8. Raises ``error`` if they are not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as reason:
        raise error(f"{where} is not UTF-8: {reason.reason} at byte {reason.start}", _AGAIN) from reason


def parse_json(data: bytes, where: str, *, error: type[EdgekitError]) -> dict[str, Any]:
    """Parse a JSON object within the limits in the module's docstring.

    Args:
        data: content of a file.
        where: name of the file in messages.
        error: class of the error to raise.

    Raises:
        error: it is not JSON, not an object, or exceeds a limit.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_VALUES:
        raise error(f"{where} holds more than {MAX_VALUES:,} values", _AGAIN)
    try:
        value = json.loads(
            parse_text(data, where, error=error),
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
        too_deep = _is_deep(value)
        if not too_deep and _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # fails for a lone surrogate
    except RecursionError:
        value, too_deep = None, True
    except ValueError as reason:
        raise error(f"{where} is not valid JSON: {str(reason)[:200]}", _AGAIN) from reason
    if too_deep:
        raise error(f"{where} is nested deeper than {MAX_DEPTH} levels", _AGAIN)
    if not isinstance(value, dict):
        raise error(f"{where} does not hold a JSON object", _AGAIN)
    return value


def _require_plain(path: Path, mode: int, error: type[EdgekitError]) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
    kind = next((name for is_kind, name in kinds if is_kind(mode)), "device")
    raise error(f"{path} is a {kind}, not a file", "pass a regular file")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice[:60]!r}")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"the number {text[:60]} is too large")
    return value


def _is_deep(value: object) -> bool:
    """Whether lists and objects are nested deeper than MAX_DEPTH, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner += [v for v in item.values() if isinstance(v, (dict, list))]
            elif isinstance(item, list):
                inner += [v for v in item if isinstance(v, (dict, list))]
        if not inner:
            return False
        level = inner
    return True
