"""Documents in files and in memory, read one section at a time: a file is never held as a whole.

A text file is one document. Each line of a .jsonl file is one: {"text": "..."}, or {"messages": [...]} for a
conversation. Sections are cut at the first paragraph, line or word that begins after an even share of the bytes.
"""

from __future__ import annotations

import codecs
import os
from array import array
from io import BufferedReader
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.errors import ConfigError, EdgekitError
from edgekit.strangers import open_plain, parse_json, reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgekit.types import Progress

Messages = tuple["Mapping[str, Any]", ...]
"""A conversation, as its chat template takes it."""

LONGEST_LINE = 64 << 20
"""Bytes of a line of a .jsonl file."""

SKIP_HINT = "fix it, or leave such lines out with `skip_bad`"
_CHUNK = 1 << 20
_MARK = b"\xef\xbb\xbf"
"""UTF-8's byte order mark, which some editors write."""


class Documents(Protocol):
    """Documents that are read on demand."""

    @property
    def sizes(self) -> Sequence[int]:
        """UTF-8 bytes of each, 0 for a conversation, which is never cut."""

    @property
    def bad_lines(self) -> int:
        """Lines left out because they hold no document."""

    def place(self, document: int) -> str:
        """Where a document is, for messages."""

    def part(self, document: int, section: int, sections: int) -> str | Messages:
        """A section of a document that is cut into ``sections``."""


class Texts:
    """Documents in memory."""

    bad_lines = 0

    def __init__(self, name: str, texts: Sequence[str]) -> None:
        self._name = name
        self._texts = [text.encode() for text in texts]
        self.sizes = [len(text) for text in self._texts]

    def place(self, document: int) -> str:
        """The source's name."""
        return f"{self._name}, document {document + 1}"

    def part(self, document: int, section: int, sections: int) -> str | Messages:
        """A section of a document."""
        return cut_text(self._texts[document], section, sections)


class TextFile:
    """A UTF-8 file, one document.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """

    bad_lines = 0

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self.sizes = [_check_utf8(path, progress)]

    def place(self, document: int) -> str:
        """The path."""
        del document
        return str(self._path)

    def part(self, document: int, section: int, sections: int) -> str | Messages:
        """A section of the file."""
        with open_plain(self._path, error=ConfigError) as file, reading(self._path, error=ConfigError):
            buffered = BufferedReader(file)

            def read(start: int, stop: int) -> bytes:
                buffered.seek(start)
                return buffered.read(stop - start)

            return _cut(read, self.sizes[document], section, sections)


class JsonLines:
    """The lines of a .jsonl file.

    Raises:
        ConfigError: it cannot be read, or a line holds no document and bad lines are not skipped.
    """

    def __init__(self, path: Path, progress: Progress, *, skip_bad: bool) -> None:
        self._path = path
        self.sizes, self._starts, self._numbers = array("q"), array("q"), array("q")
        self.bad_lines = 0
        self._last: tuple[int, bytes | Messages] = (-1, b"")
        for number, (start, line) in enumerate(self._lines(progress), 1):
            if not line.strip():
                continue
            try:
                found = parse_document(line, f"{path}, line {number}")
            except ConfigError:
                if not skip_bad:
                    raise
                self.bad_lines += 1
                continue
            self.sizes.append(len(found) if isinstance(found, bytes) else 0)
            self._starts.append(start)
            self._numbers.append(number)

    def place(self, document: int) -> str:
        """Path and line."""
        return f"{self._path}, line {self._numbers[document]}"

    def part(self, document: int, section: int, sections: int) -> str | Messages:
        """A section of a line's text, or its conversation. The last line is kept, as its sections are read in turn."""
        if self._last[0] != document:
            with open_plain(self._path, error=ConfigError) as file, reading(self._path, error=ConfigError):
                buffered = BufferedReader(file, _CHUNK)
                buffered.seek(self._starts[document])
                line = buffered.readline(LONGEST_LINE)
            self._last = document, parse_document(line, self.place(document))
        found = self._last[1]
        return cut_text(found, section, sections) if isinstance(found, bytes) else found

    def _lines(self, progress: Progress) -> Iterator[tuple[int, bytes]]:
        """Every line with the offset of its first byte."""
        path, start = self._path, 0
        with open_plain(path, error=ConfigError) as file, reading(path, error=ConfigError):
            total, buffered, told = os.fstat(file.fileno()).st_size, BufferedReader(file, _CHUNK), 0
            while line := buffered.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise ConfigError(f"{path}: a line at byte {start} exceeds {LONGEST_LINE:,} bytes", "split it")
                mark = len(_MARK) if start == 0 and line.startswith(_MARK) else 0
                yield start + mark, line[mark:]
                start += len(line)
                if start - told >= _CHUNK:
                    told = start
                    progress(f"read {path.name}", start, total)


def parse_document(line: bytes, place: str) -> bytes | Messages:
    """The text of a line, as UTF-8, or its conversation. Raises ConfigError if it holds neither."""
    try:
        found = parse_json(line, place, error=ConfigError)
    except EdgekitError as error:
        raise ConfigError(error.message, SKIP_HINT) from error
    return take_document(found, place)


def take_document(found: Mapping[str, Any], place: str) -> bytes | Messages:
    """The document of a row. Raises ConfigError if it has none."""
    text, messages = found.get("text"), found.get("messages")
    if isinstance(text, str):
        return text.encode()
    if isinstance(messages, list) and messages:
        for number, message in enumerate(messages, 1):
            fields = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None,)
            if not all(isinstance(field, str) for field in fields):
                raise ConfigError(f"{place}: message {number} has no text as 'role' and 'content'", SKIP_HINT)
        return tuple(messages)
    keys = ", ".join(f"'{key[:40]}'" for key in list(found)[:8]) or "nothing"
    raise ConfigError(f"{place}: no 'text' and no list of 'messages', but {keys}", SKIP_HINT)


def cut_text(data: bytes, section: int, sections: int) -> str:
    """A section of UTF-8 text."""
    return _cut(lambda start, stop: data[start:stop], len(data), section, sections)


def _cut(read: Callable[[int, int], bytes], size: int, section: int, sections: int) -> str:
    start, stop, slack = section * size // sections, (section + 1) * size // sections, size // sections // 4
    data = read(start, min(stop + slack, size))
    begin = _edge(data, slack) if section else 0
    end = stop - start + _edge(data[stop - start :], slack) if section + 1 < sections else len(data)
    # "replace": the file may have changed since it was checked.
    return data[begin:end].decode("utf-8", "replace").removeprefix("\ufeff")


def _edge(data: bytes, slack: int) -> int:
    """The first place within ``slack`` bytes where a paragraph, a line, a word or at least a character begins."""
    for gap in (b"\n\n", b"\n", b" "):
        at = data.find(gap, 0, slack)
        if at >= 0:
            return at + len(gap)
    return next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)


def _check_utf8(path: Path, progress: Progress) -> int:
    """Bytes of a file. Raises ConfigError if it is not UTF-8."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with open_plain(path, error=ConfigError) as file, reading(path, error=ConfigError):
        total = os.fstat(file.fileno()).st_size
        while True:
            part, before = file.read(_CHUNK), len(decoder.getstate()[0])
            try:
                decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                at = done - before + error.start
                raise ConfigError(f"{path}: not UTF-8 at byte {at}", "convert it: iconv -t UTF-8") from error
            if not part:
                return done
            done += len(part)
            progress(f"read {path.name}", done, total)
