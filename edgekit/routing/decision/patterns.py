r"""Regular expressions of policies and schemas, run by RE2: linear time in the text, whatever the expression.

RE2 does not support what makes Python's ``re`` slow: lookaround and backreferences. Its ``\w``, ``\d``, ``\s`` and
``\b`` are ASCII only, so those of a privacy rule are spelled out for all alphabets; JSON Schema's are ASCII by
standard.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edgekit.errors import ConfigError
from edgekit.types.reading import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_MEMORY = 2**20
"""Bytes of one compiled expression: a larger one would be linear and still slow."""

NO_FORM = "RE2's syntax, without lookaround and backreferences: https://github.com/google/re2/wiki/Syntax"


class Pattern:
    """A compiled expression. ``search`` is thread-safe."""

    def __init__(self, source: str, *, case: bool) -> None:
        """Compile.

        Raises:
            ValueError: RE2 rejects the expression, or it is too large; the message is RE2's.
            ConfigError: google-re2 is not installed.
        """
        try:
            import re2
        except ImportError as error:
            raise ConfigError("regular expressions need google-re2", "pip install 'edgekit[serve]'") from error
        options = re2.Options()
        options.case_sensitive = case
        options.log_errors = False
        options.never_capture = True
        options.max_mem = MOST_MEMORY
        try:
            self._compiled = re2.compile(source.encode(), options)
        except re2.error as error:
            reason = error.args[0] if error.args else ""
            raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from None
        except UnicodeEncodeError:
            raise ValueError("it holds an unpaired surrogate") from None

    def search(self, text: bytes) -> bool:
        """Whether the expression matches anywhere in a UTF-8 text."""
        return self._compiled.search(text) is not None


def matches(pattern: str, texts: Iterable[str]) -> bool:
    """Whether a rule's pattern matches any of the texts. An invalid pattern matches everything."""
    compiled = _compile(pattern)
    if compiled is None:
        return True
    written = [text.encode("utf-8", "replace") for text in texts]
    return any(one.search(text) for one in compiled for text in written)


def find_fault(pattern: str) -> str:
    """Describe what is wrong with a rule's pattern; "" if it is valid."""
    try:
        compiled = Pattern(spell_out(pattern), case=False)
    except ValueError as error:
        return f"is not a regular expression: {error}"
    return "matches every text" if compiled.search(b"") else ""


@lru_cache(maxsize=512)
def compile_schema_pattern(pattern: str) -> Pattern:
    """Compile an expression of a JSON schema: ECMA-262's syntax as far as RE2 supports it.

    Raises:
        ValueError: see Pattern.
    """
    return Pattern(_ESCAPE.sub(_ecma, pattern), case=True)


@lru_cache(maxsize=256)
def _compile(pattern: str) -> tuple[Pattern, ...] | None:
    """Compile a rule's pattern, and its transliteration to Latin letters, as in texts; None if it is invalid."""
    try:
        found = [Pattern(spell_out(pattern), case=False)]
    except ValueError:
        return None
    latin = pattern if pattern.isascii() or "[" in pattern else plain(pattern)
    if latin != pattern:
        with suppress(ValueError):
            found.append(Pattern(spell_out(latin), case=False))
    return tuple(found)


# --- syntax -------------------------------------------------------------------------------------

_WORD = r"\p{L}\p{M}\p{N}_"
_SPACE = r"\s\p{Z}\x0b\x85"
_CLASSES = {
    "w": (rf"[{_WORD}]", _WORD), "W": (rf"[^{_WORD}]", r"\W"), "d": (r"\p{Nd}", r"\p{Nd}"),
    "D": (r"\P{Nd}", r"\P{Nd}"), "s": (rf"[{_SPACE}]", _SPACE), "S": (rf"[^{_SPACE}]", r"\S"), "Z": (r"\z", r"\z"),
}  # fmt: skip
_ESCAPE = re.compile(r"\\(u\{[0-9a-fA-F]+\}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)|\{,(?=\d+\})", re.DOTALL)
_WIDE = re.compile(r"[^\x00-\x7f]|\\[wWpPDS]|\[\^|(?<!\\)\.")
_EDGE = rf"(?:\b|^|$|[^{_WORD}])"


def spell_out(pattern: str) -> str:
    r"""Translate a rule's pattern from Python's ``re`` syntax to RE2's, for all alphabets.

    RE2's ``\b`` is ASCII only. At the ends of a pattern it becomes a non-word character or an end of the text; inside a
    pattern that may match other letters it is dropped, which matches a little more, never less.
    """
    wide, depth, inside = bool(_WIDE.search(pattern)), 0, False
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        found = _ESCAPE.match(pattern, at)
        if found:
            at = found.end()
            edge = depth == 0 and (pattern[: found.start()][-1:] in ("", "|") or pattern[at : at + 1] in ("", "|"))
            parts.append(_spell(found, inside=inside, wide=wide, edge=edge))
            continue
        letter = pattern[at]
        if letter == "(" and not inside and pattern.startswith("(?#", at):
            at = pattern.find(")", at) + 1 or len(pattern)
            continue
        if not inside:
            depth += (letter == "(") - (letter == ")")
            if letter == "[":
                inside = True
                # A leading bracket is a member of the class.
                opening = re.compile(r"\[\^?\]?").match(pattern, at)
                parts.append(opening[0].replace("]", r"\]") if opening else letter)
                at = opening.end() if opening else at + 1
                continue
        elif letter == "]":
            inside = False
        elif letter == "[" and pattern[at + 1 : at + 2] != ":":
            letter = r"\["
        parts.append(letter)
        at += 1
    return f"(?m){''.join(parts)}"  # every text of a request is on its own line


def _spell(found: re.Match[str], *, inside: bool, wide: bool, edge: bool) -> str:
    if found[0].startswith("{"):
        return "{0,"
    letter = found[1]
    if letter in ("b", "B") and not inside:
        if not wide:
            return found[0]
        return _EDGE if edge and letter == "b" else ""
    if letter == "b":
        return r"\x08"
    if letter in _CLASSES:
        return _CLASSES[letter][inside]
    return _ecma(found)


def _ecma(found: re.Match[str]) -> str:
    r"""Rewrite ``\u0041`` and the like for RE2, and drop escapes of letters that need none."""
    letter: Any = found[1] or ""
    if letter[:1] in ("u", "U") and len(letter) > 1:
        return f"\\x{{{letter[1:].strip('{}')}}}"
    if letter and not letter.isascii():
        return str(letter)
    return found[0]
