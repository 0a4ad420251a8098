"""The user's documents: which files are read, which of them are private, and how they are split into passages."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from edgekit.errors import RouteError
from edgekit.strangers import read_plain
from edgekit.words import count, size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIXES = (".md", ".txt")
LARGEST = 5_000_000
"""Most bytes of one document."""
LARGEST_RULES = 100_000
"""Most bytes of one ``.private`` file: each rule is matched against every document."""
MOST_BYTES = 50_000_000
MOST_DOCUMENTS = 20_000
RULES = ".private"
"""Name of the file that lists private documents and folders, like .gitignore."""
FOLDER = "private"

LONGEST = 200
SHORTEST = 120
OVERLAP = 30
"""Words of a passage, and words that it shares with the previous one."""
_UNIT = LONGEST - SHORTEST
_WORD = 8
"""Characters that count as one word in scripts without spaces."""


@dataclass(frozen=True)
class Document:
    """One file. ``path`` is relative to the folder, with slashes. ``private`` is the reason for that, "" for none."""

    path: str
    text: str
    private: str


@dataclass(frozen=True)
class Skipped:
    """A file that was not read, or a rule that matches nothing, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Library:
    """The contents of a folder, sorted by path."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Rule:
    """One line of a .private file. ``under`` is that file's folder, "" or ending in a slash; ``line`` is its text."""

    under: str
    pattern: str
    anchored: bool
    folders_only: bool
    line: str

    def holds(self, path: str) -> bool:
        """Whether the rule matches the document or one of its folders, ignoring case."""
        if not path.startswith(self.under):
            return False
        parts = _plain(path[len(self.under) :]).split("/")
        last = len(parts) - self.folders_only
        names = ["/".join(parts[: i + 1]) if self.anchored else parts[i] for i in range(last)]
        return any(fnmatchcase(name, self.pattern) for name in names)


def read_documents(folder: Path) -> Library:
    """Read the .txt and .md files of a folder and its subfolders, except hidden files and links.

    A document is private if a line of a ``.private`` file matches it (``*`` and ``?`` as in a shell; a name without a
    slash matches at any depth), if it is in a folder called ``private`` (``folder`` itself counts), or if its front
    matter or its first line is ``private: true``.

    Raises:
        RouteError: the folder does not exist, or has nothing to read or too much; or a ``.private`` file is invalid, as
            ignoring a rule would be worse than having none.
    """
    root = folder.expanduser().resolve()
    if not root.is_dir():
        raise RouteError(f"{folder}: not a folder", "pass the folder of your documents")
    whole = f"it is in a folder called {FOLDER}" if _plain(root.name) == FOLDER else ""
    files, rules, skipped = _look_through(root)
    documents: list[Document] = []
    total = 0
    for path in sorted(files):
        text = _read(root / path)
        if isinstance(text, Skipped):
            skipped.append(Skipped(path, text.reason))
            continue
        total += len(text)
        if len(documents) >= MOST_DOCUMENTS or total > MOST_BYTES:
            most = f"{count(MOST_DOCUMENTS)} documents, {size(MOST_BYTES)}"
            raise RouteError(f"{folder}: too many documents (at most {most})", "pass a smaller folder")
        documents.append(Document(path, text, whole or _why_private(path, text, rules)))
    for rule in rules:
        if not any(rule.holds(d.path) for d in documents):
            skipped.append(Skipped(f"{rule.under}{RULES}", f"'{rule.line}' matches no document"))
    if not documents:
        notes = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:3])
        raise RouteError(f"{folder}: no .txt or .md file to read" + (f" ({notes})" if notes else ""), "add documents")
    return Library(tuple(documents), tuple(sorted(skipped, key=lambda s: s.path)))


def _look_through(root: Path) -> tuple[list[str], list[_Rule], list[Skipped]]:
    files: list[str] = []
    rules: list[_Rule] = []
    skipped: list[Skipped] = []
    waiting = [""]
    while waiting:
        under = waiting.pop()
        try:
            entries = sorted(os.scandir(root / under), key=lambda e: e.name)
        except OSError as error:
            skipped.append(Skipped(under.rstrip("/"), f"cannot be opened: {error.strerror}"))
            continue
        for entry in entries:
            path = under + entry.name
            if entry.name == RULES:
                rules += _read_rules(root / path, under)
            elif entry.name.startswith("."):
                continue
            elif entry.is_symlink():
                skipped.append(Skipped(path, "links are not followed"))
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(f"{path}/")
            elif not entry.is_file(follow_symlinks=False) or not entry.name.casefold().endswith(SUFFIXES):
                skipped.append(Skipped(path, "not a .txt or .md file"))
            else:
                files.append(path)
    return files, rules, skipped


def _read_rules(path: Path, under: str) -> list[_Rule]:
    data = read_plain(path, LARGEST_RULES, error=RouteError)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RouteError(f"{path}: not UTF-8: {error}", "write one pattern per line, in UTF-8") from None
    rules = []
    for number, line in enumerate(lines, 1):
        pattern = _plain(line.strip())
        if not pattern or pattern.startswith("#"):
            continue
        if pattern.startswith("!"):
            problem = f"{path}, line {number}: exceptions (!) are not supported"
            raise RouteError(problem, "list what is private, or move what is not to another folder")
        if "\\" in pattern:
            raise RouteError(f"{path}, line {number}: backslashes are not supported", "use ? for a special character")
        inner = pattern.removesuffix("/").removeprefix("**/")
        anchored = "/" in inner
        # "**/" matches at any depth: fnmatch's * crosses slashes, so this matches the same and a little more.
        inner = "*" * (anchored and pattern.startswith("**/")) + inner.removeprefix("/")
        if not inner:
            raise RouteError(f"{path}, line {number}: '{line.strip()}' matches nothing", "use * for everything")
        rules.append(_Rule(under, inner, anchored, pattern.endswith("/"), line.strip()))
    return rules


def _plain(name: str) -> str:
    """Normalize a name: some systems store accents as separate characters."""
    return unicodedata.normalize("NFC", name).casefold()


def _read(path: Path) -> str | Skipped:
    """Return the text of a file, or why it is skipped."""
    try:
        # The file may have been replaced by a link or a pipe since the scan.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return Skipped("", f"cannot be opened: {error.strerror}")
    with os.fdopen(handle, "rb") as file:
        data = file.read(LARGEST + 1) or b""
    if len(data) > LARGEST:
        return Skipped("", f"larger than {size(LARGEST)}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skipped("", f"not UTF-8 (byte {error.start}): save it as UTF-8")
    if "\0" in text:
        return Skipped("", "not text: it contains zero bytes")
    return text if text.strip() else Skipped("", "empty")


# --- private ------------------------------------------------------------------------------------

_MARK = re.compile(r"^\W*private\W*:\s*(.*?)\W*$", re.IGNORECASE)


def _why_private(path: str, text: str, rules: list[_Rule]) -> str:
    if FOLDER in _plain(path).split("/")[:-1]:
        return f"it is in a folder called {FOLDER}"
    for rule in rules:
        if rule.holds(path):
            return f"'{rule.line}' in {rule.under}{RULES}"
    return "it says private: true" if any(map(_says_private, _head(text))) else ""


def _head(text: str) -> list[str]:
    """Return the lines of the front matter, or the first non-empty line."""
    lines = text.lstrip().splitlines()
    if lines[0].strip() not in ("---", "+++"):
        return lines[:1]
    ends = [i for i, line in enumerate(lines) if i and line.strip() == lines[0].strip()]
    return lines[1 : ends[0] if ends else 100]


def _says_private(line: str) -> bool:
    """Whether a line marks the document as private; a misspelt value counts as true."""
    match = _MARK.match(line[:500].replace("=", ":", 1))
    return match is not None and match[1].casefold() not in ("false", "no", "off", "0")


# --- passages -----------------------------------------------------------------------------------


def split(text: str) -> tuple[str, ...]:
    """Split a text into passages of 120 to 200 words, at headings and paragraphs if possible.

    A passage that continues a section begins with the section's heading and the last words of the previous passage.
    Only the last passage of a text may be shorter.
    """
    passages: list[str] = []
    held: list[str] = []
    words = 0
    heading = ""
    fresh = True  # nothing but a heading and an overlap is held

    def close(goes_on: bool) -> None:
        nonlocal held, words, fresh
        if held and not fresh:
            passages.append("\n\n".join(held))
            tail = " ".join(held[-1].split()[-OVERLAP:])[-OVERLAP * _WORD :]
            held = [h for h in (heading, tail) if h] if goes_on else []
            words = sum(map(_length, held))
            fresh = True

    for unit in _units(text):
        is_heading = _HEADING.match(unit) is not None
        if is_heading and words >= SHORTEST:
            close(goes_on=False)
        elif not is_heading and words + _length(unit) > LONGEST:
            close(goes_on=True)
        if is_heading:
            heading = unit
        held.append(unit)
        words += _length(unit)
        fresh = False
    close(goes_on=False)
    return tuple(passages)


_HEADING = re.compile(r"#{1,6} \S")


def _length(text: str) -> int:
    """Count words; at least one per 16 characters, for scripts without spaces."""
    return max(len(text.split()), len(text) // (2 * _WORD))


def _units(text: str) -> Iterator[str]:
    """Yield headings, paragraphs, and the sentences of long paragraphs, or pieces of these."""
    for paragraph in re.split(r"\n\s*\n|\n(?=#{1,6} )", _without_front_matter(text)):
        lines = paragraph.strip("\n").rstrip()
        if not lines.strip():
            continue
        if _HEADING.match(lines) and "\n" in lines:
            first, _, rest = lines.partition("\n")
            yield first
            lines = rest.strip("\n")
        if _length(lines) <= _UNIT:
            yield lines
            continue
        yield from _pack(re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n", lines))


def _pack(sentences: list[str]) -> Iterator[str]:
    held = ""
    for sentence in sentences:
        for piece in _pieces(sentence):
            if held and _length(held) + _length(piece) > _UNIT:
                yield held
                held = ""
            held = f"{held} {piece}" if held else piece
    if held:
        yield held


def _pieces(sentence: str) -> Iterator[str]:
    """Yield a sentence, or its words if it is too long, or pieces of these if they are too long."""
    if _length(sentence) <= _UNIT:
        yield sentence
        return
    for word in sentence.split():
        for start in range(0, len(word), _UNIT * _WORD):
            yield word[start : start + _UNIT * _WORD]


def _without_front_matter(text: str) -> str:
    match = re.match(r"\s*(---|\+\+\+)[ \t]*\n.*?\n\1[ \t]*(\n|\Z)", text, flags=re.DOTALL)
    return text[match.end() :] if match else text
