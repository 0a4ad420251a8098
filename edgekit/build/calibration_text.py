"""The text that calibrated weights are fitted to: the user's files, what ships with Python, or the model's own."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import measure
from edgekit.errors import ConfigError, did_you_mean
from edgekit.source import source_tokenizer
from edgekit.strangers import parse_json, read_plain
from edgekit.types.quantization import CalibratedOn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from edgekit.types import Checkpoint

PACKAGED = "packaged"
"""The name of the text that is made of what ships with Python."""

SELF = "self"
"""The name of the text that the model writes."""

TOKENS = 8192
WINDOW = 512
"""How many tokens weights are fitted to, in windows of how many. Twice as many gain little (docs/benchmarks.md)."""

LARGEST = 200_000_000
"""Bytes of a file of the user's."""

MODULES = (
    *("argparse", "contextlib", "csv", "datetime", "difflib", "doctest", "fractions", "heapq", "imaplib", "inspect"),
    *("ipaddress", "locale", "logging", "mailbox", "optparse", "os", "pathlib", "pickletools", "platform", "random"),
    *("shutil", "smtplib", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading"),
    *("traceback", "turtle", "typing", "uuid", "webbrowser", "zipfile"),
)
"""Modules of Python's library whose docstrings are prose."""

SHORTEST = 120
"""Characters of a docstring that counts."""


@dataclass(frozen=True)
class _Source:
    """Documents from one place; ``name`` is what messages call it."""

    name: str
    documents: tuple[str, ...]


def read_calibration(
    named: Sequence[str], checkpoint: Checkpoint, *, sample: Callable[[int, int], Sequence[str]]
) -> tuple[NDArray[np.int64], CalibratedOn]:
    """The windows of tokens that a build's weights are fitted to.

    Every source has the same share of the windows, spread over its length; documents are joined by blank lines.

    Args:
        named: PACKAGED, SELF, text files, .jsonl files whose lines have "text", or patterns of such (``*.txt``).
        checkpoint: whose tokenizer cuts the text.
        sample: documents of the model's own, at least so many tokens, by seed; called for SELF.

    Returns:
        Windows [n, WINDOW], and what the manifest says of them.

    Raises:
        ConfigError: no such file, a line that is no document, or less text than one window.
    """
    encode = source_tokenizer(checkpoint)
    sources = [source for name in named for source in _open(name, sample)]
    share = -(-TOKENS // WINDOW // len(sources))
    windows = [_windows(source, encode, share) for source in sources]
    text = "\n\n".join(document for source in sources for document in source.documents)
    together = np.concatenate(windows)
    about = CalibratedOn(", ".join(s.name for s in sources), sha256(text.encode()).hexdigest(), int(together.size))
    return together, about


def _windows(source: _Source, encode: Callable[[str], list[int]], count: int) -> NDArray[np.int64]:
    ids = encode("\n\n".join(source.documents))
    if len(ids) < WINDOW:
        raise ConfigError(f"{source.name}: {len(ids)} tokens are too few to calibrate on", f"give at least {WINDOW}")
    count = min(count, len(ids) // WINDOW)
    starts = [i * (len(ids) - WINDOW) // max(count - 1, 1) for i in range(count)]
    return np.array([ids[start : start + WINDOW] for start in starts], np.int64)


def _open(name: str, sample: Callable[[int, int], Sequence[str]]) -> Iterator[_Source]:
    if name == PACKAGED:
        yield from _packaged()
        return
    if name == SELF:
        yield _Source("text sampled from the model", tuple(sample(TOKENS, 0)))
        return
    pattern = Path(name)
    paths = sorted(pattern.parent.glob(pattern.name)) if set("*?[") & set(pattern.name) else [pattern]
    if not paths:
        raise ConfigError(f"no file matches '{name}'", f"give text files, .jsonl files, or '{PACKAGED}'")
    for path in paths:
        if not path.is_file():
            hint = did_you_mean(name, [PACKAGED, SELF]) + f"give a text file, a .jsonl file, '{PACKAGED}' or '{SELF}'"
            raise ConfigError(f"{path}: no such file", hint)
        read = _read_lines if path.suffix == ".jsonl" else _read_text
        yield _Source(path.name, tuple(read(path)))


def _packaged() -> Iterator[_Source]:
    """The second half of the help topics, as ``verify`` scores on their beginning; and the library's docstrings."""
    text = measure.embedded_text()
    yield _Source(f"the second half of {text.name}", (text.content[len(text.content) // 2 :],))
    yield _Source("docstrings of Python's library", tuple(_docstrings()))


def _docstrings() -> Iterator[str]:
    import ast
    from importlib.util import find_spec

    for module in MODULES:
        spec = find_spec(module)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words = ast.get_docstring(node) or ""
                if len(words) >= SHORTEST:
                    yield cleandoc(words)


def _read_text(path: Path) -> Iterator[str]:
    try:
        yield read_plain(path, LARGEST, error=ConfigError).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}", "convert it: iconv -t UTF-8") from error


def _read_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(read_plain(path, LARGEST, error=ConfigError).splitlines(), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        found = parse_json(line, place, error=ConfigError)
        document = found.get("text")
        if type(document) is not str:
            raise ConfigError(f"{place}: no 'text'", 'a line looks like {"text": "It was a bright cold day."}')
        yield document
