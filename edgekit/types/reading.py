"""Extract all text that a receiver could read in a JSON value, including encoded text.

A veto on raw characters would be bypassed by escapes, base64 or letters of another alphabet. So strings are read as is,
then decoded (percent encoding, HTML entities, backslash escapes, base64, hexadecimal, data URLs, JSON in a string), and
then normalized: single spaces, no invisible characters, no accents, Latin letters for look-alikes. Text that is
paraphrased, encrypted, compressed or drawn is not recognized.
"""

from __future__ import annotations

import binascii
import html
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_plus

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 1_000_000
"""Most characters in the strings of a value; longer values are not checked."""

MOST = 4 * LONGEST
"""Most characters in all decoded forms of a value."""

DEPTH = 3
"""Most nested encodings."""

_SEAM = 1000
"""Characters on each side that are read where one string continues another."""

_BINARY = 24
"""Least run of printable characters that counts as text in binary data; so many do not occur by chance."""

_SHORTEST = 8
"""Least characters of base64 or hexadecimal digits that are decoded."""

_PROTOCOL = frozenset(
    (
        *("role", "content", "type", "text", "user", "assistant", "system", "developer", "name", "id", "tool_call_id"),
        *("tool", "tools", "tool_calls", "function", "arguments", "image_url", "url", "prompt", "messages"),
        *("response_format", "json_schema", "schema", "strict", "parameters", "properties", "items", "required"),
        *("description", "title", "default", "enum", "anyOf", "additionalProperties"),
        *("string", "object", "array", "integer", "number", "boolean", "null"),
    )
)
"""Words of the protocol and of schemas, which may separate the pieces of a split-up text."""


@dataclass(frozen=True)
class Reading:
    """Texts to check, each a form of the whole value.

    ``lines``: every key, string and number on its own line, and their decoded and normalized forms. ``wording``: the
    normalized text without the protocol's words. ``whole``: False if the value was too large to read completely.
    """

    lines: tuple[str, ...]
    wording: tuple[str, ...]
    whole: bool = True


def read(value: Any) -> Reading:
    """Read every string of a JSON value in all its forms. Never raises."""
    try:
        return _read(value)
    except RecursionError:
        return Reading((), (), whole=False)


def _read(value: Any) -> Reading:
    atoms = list(_walk(value, 0))
    if sum(map(len, atoms)) + len(atoms) > LONGEST:
        return Reading((), (), whole=False)
    lines: dict[str, None] = {}
    wording: dict[str, None] = {}
    fresh = [atoms, *([seam] for seam in _seams(value))]
    left = MOST
    for depth in range(DEPTH + 1):
        shown = [_note(texts, lines, wording) for texts in fresh]
        if depth == DEPTH:
            break
        fresh = [[text] for visible in shown for text in _decoded(visible) if text not in lines]
        left -= sum(len(text) for texts in fresh for text in texts)
        if left < 0:
            return Reading((), (), whole=False)
    return Reading(tuple(lines), tuple(wording))


def _note(texts: list[str], lines: dict[str, None], wording: dict[str, None]) -> str:
    """Add a form as is, normalized, and with spaced-out letters and words split by line ends joined."""
    visible = [_visible(text) for text in texts]
    spaced = [_spaced(text) for text in visible]
    bare = [_latin(text) for text in spaced]
    # Separate lines, because an expression may match only at the start of a text.
    together = "\n\n".join(visible)
    lines["\n\n".join(texts)] = lines[" ".join(spaced)] = lines[whole := " ".join(bare)] = None
    if _APART.search(whole):
        lines[_SPACED.sub(lambda match: re.sub(r"[ ._*|-]", "", match[0]), whole)] = None
    wording[" ".join(text for written, text in zip(texts, bare, strict=True) if written not in _PROTOCOL)] = None
    for text in visible:
        if "\n" in text and (joined := _CUT.sub("", latin := _latin(text))) != latin:
            one = _spaced(joined)
            lines[one] = wording[one] = None
    return together


def plain(text: str) -> str:
    """A text without accents, invisible characters and unusual spaces, with look-alikes as Latin letters."""
    return _latin(_spaced(_visible(text)))


# --- strings of a value -------------------------------------------------------------------------


def _walk(value: Any, depth: int) -> Iterator[str]:
    """Yield keys, strings and numbers in order; JSON in a string is read in addition to the string."""
    if isinstance(value, str):
        yield value
        if depth < DEPTH and value.lstrip()[:1] in ("{", "[", '"'):
            try:
                inner = json.loads(value)
            except (ValueError, RecursionError):
                return
            yield from _walk(inner, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _walk(item, depth)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, depth)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _seams(value: Any) -> list[str]:
    """Messages and their parts joined, in case text continues across them: of all roles, and of the user only."""
    asked = value[0] if isinstance(value, list) and value else None
    messages = asked.get("messages") if isinstance(asked, dict) else None
    if not isinstance(messages, list):
        return []
    said = [(_role(message), _contents(message)) for message in messages]
    whole = [text for _, texts in said for text in texts]
    own = [text for role, texts in said if role == "user" for text in texts]
    found = []
    for texts in dict.fromkeys((tuple(whole), tuple(own))):
        if len(texts) > 1:
            ends = [t if len(t) <= 2 * _SEAM else f"{t[:_SEAM]}\n…\n{t[-_SEAM:]}" for t in texts]
            found += ["".join(ends), " ".join(ends)]
    return found


def _role(message: Any) -> str:
    return str(message.get("role")) if isinstance(message, dict) else ""


def _contents(message: Any) -> list[str]:
    """The texts of a message, without images, names and ids between them."""
    if not isinstance(message, dict):
        return []
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}, message]
    texts = [part.get(key) for part in parts if isinstance(part, dict) for key in ("text", "refusal")]
    return [text for text in texts if isinstance(text, str)]


# --- decoding -----------------------------------------------------------------------------------

_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]{1,6})\}|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([nrt]))")
_DATA = re.compile(r"[dD][aA][tT][aA]:([^,\s]{0,100}),([^\s\"'<>)]*)")
_LONG = re.compile(rf"\S{{{_SHORTEST},}}")
_DENSE = re.compile(rf"[A-Za-z0-9+/_-]{{{_SHORTEST},}}={{0,2}}")
_HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2}){4,})")


def _decoded(text: str) -> Iterator[str]:
    """Yield the decoded forms of a text."""
    if "%" in text and (clear := unquote(text)) != text:
        yield clear
        if "+" in clear:
            yield unquote_plus(text)
    elif "+" in text and "=" in text:
        yield text.replace("+", " ")
    if "&" in text and (clear := html.unescape(text)) != text:
        yield clear
    if "\\" in text and (clear := _ESCAPE.sub(_unescape, text)) != text:
        yield clear
    if ":" in text:
        yield from (found for match in _DATA.finditer(text) if (found := _data(match[1], match[2])))
    yield from _dense(text)


def _dense(text: str) -> Iterator[str]:
    """Yield decoded base64 and hexadecimal text, in one line or several."""
    lines: list[str] = []
    end = -9
    for word in _LONG.finditer(text):
        # Ordinary words, lower case except perhaps the first letter, are skipped.
        if (letters := word[0])[1:].islower() and letters.isalpha():
            continue
        for match in _DENSE.finditer(letters):
            yield from _clear(match[0])
            if len(match[0]) >= len(letters) - 2:
                if word.start() > end + 2:
                    if len(lines) > 1:
                        yield from _clear("".join(lines))
                    lines = []
                lines.append(match[0])
                end = word.end()
    if len(lines) > 1:
        yield from _clear("".join(lines))


def _clear(token: str) -> Iterator[str]:
    digits = _HEX.fullmatch(token)
    if digits and (found := _as_text(bytes.fromhex(digits[1]))):
        yield found
    if found := _as_text(_from_base64(token)):
        yield found


def _from_base64(token: str) -> bytes:
    token = token.translate(_URL_SAFE).rstrip("=")
    try:
        return binascii.a2b_base64(token[: len(token) // 4 * 4 + (len(token) % 4 if len(token) % 4 > 1 else 0)] + "==")
    except (binascii.Error, ValueError):
        return b""


_URL_SAFE = str.maketrans("-_", "+/")


def _data(kind: str, payload: str) -> str:
    """The text of a data URL, whatever its media type; for binary data, the runs of printable text in it."""
    payload = unquote(payload)
    if "base64" not in kind.casefold():
        return payload
    data = _from_base64(re.sub(r"[^A-Za-z0-9+/_-]", "", payload))
    return _as_text(data) or " ".join(run.decode() for run in _PRINTABLE.findall(data))


_PRINTABLE = re.compile(rb"[\t\n\r\x20-\x7e]{%d,}" % _BINARY)


def _as_text(data: bytes) -> str:
    """Bytes as text, "" if they are not text."""
    codecs: tuple[str, ...] = ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",)
    if data[1:2] == b"\0" or data[:1] == b"\0":
        codecs = ("utf-16-le", "utf-16-be")
    for codec in codecs:
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        if "".join(text.split()).isprintable():
            return text
    return ""


def _unescape(match: re.Match[str]) -> str:
    if match[5]:
        return " "
    code = int(match[1] or match[2] or match[3] or match[4], 16)
    return chr(code) if code <= 0x10FFFF and not 0xD800 <= code < 0xE000 else ""


# --- normalization ------------------------------------------------------------------------------

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Each starts with the character to search for, which makes it as fast as finding one character.
_BROKEN = re.compile(r"-\n(?<=\w-\n)[ \t]*(?=\w)")
_ROWS = re.compile(r"\n(?<=\d\n)(?=\d)")
_CUT = re.compile(r"\n(?<=[^\W\d_]\n)(?=[^\W\d_])")
_APART = re.compile(r"[ ._*|-]\w[ ._*|-]\w[ ._*|-]")
_SPACED = re.compile(r"\b\w(?:[ ._*|-]\w){3,}\b")
_MARKS = re.compile("[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_ROW = "\ue000"

# Letters that look like Latin ones, by Unicode's confusables.txt and by eye; dashes and quotation marks as in ASCII.
_ALIKE = {
    "аɑαａ": "a", "вβʙᏏ": "b", "сϲᴄ": "c", "ԁɗđᴅ": "d", "еєεɛᴇ": "e", "ғϝ": "f", "ɡǥԍ": "g", "һнհʜ": "h",
    "іıιɩӏǀɪ": "i", "јʝϳ": "j", "кκᴋ": "k", "łʟ": "l", "мᴍ": "m", "пոηɴ": "n", "оοօσøᴏ": "o", "рρᴘ": "p", "ԛգ": "q",
    "гʀᴦ": "r", "ѕꜱ": "s", "тτᴛŧ": "t", "υսʋᴜ": "u", "νѵᴠ": "v", "ԝωшᴡ": "w", "хχ": "x", "уγүʏ": "y", "зᴢʐ": "z",
    "‐‑‒–—―−﹣": "-", "‘’‚‛′`´": "'", "“”„‟″": '"', "⁄∕": "/", "․·": ".", "…": "...",
}  # fmt: skip
_TABLE = {ord(c): latin for alike, latin in _ALIKE.items() for c in alike}
_TABLE |= {
    ord(c.upper()): latin for alike, latin in _ALIKE.items() for c in alike if len(c.upper()) == 1 and c.isalpha()
}
_TABLE |= {ord("В"): "b", ord("Β"): "b", ord("Ν"): "n", ord("Η"): "h", ord("Υ"): "y", ord("Ρ"): "p", ord("Ι"): "i"}
# The zeros of scripts with their own digits.
_ZEROS = "\u0660\u06f0\u07c0\u0966\u09e6\u0a66\u0ae6\u0b66\u0be6\u0c66\u0ce6\u0d66\u0e50\u0ed0\u0f20\u1040\u17e0\u1810"
_TABLE |= {ord(zero) + i: str(i) for zero in _ZEROS for i in range(10)}
_TABLE |= {0x1F1E6 + i: chr(97 + i) for i in range(26)}
_TABLE |= {0x1F170 + i: chr(97 + i) for i in range(26)} | {0x1F150 + i: chr(97 + i) for i in range(26)}


def _visible(text: str) -> str:
    """Remove invisible characters and apply NFKC."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return text.replace("\r\n", "\n") if "\n" in text else text


def _spaced(visible: str) -> str:
    """Collapse whitespace. Lines of numbers stay separate, so that a column of years is not a phone number."""
    if "\n" not in visible:
        return " ".join(visible.split())
    text = _BROKEN.sub("", visible) if "-\n" in visible else visible
    return " ".join(_ROWS.sub(_ROW, text).split()).replace(_ROW, "\n")


def _latin(text: str) -> str:
    if text.isascii():
        return text
    bare = _MARKS.sub("", unicodedata.normalize("NFD", text))
    return bare if bare.isascii() else bare.translate(_TABLE)
