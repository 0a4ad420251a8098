"""The embedded text and the windows cut from one."""

from __future__ import annotations

import platform
from hashlib import sha256

import pytest

from edgekit.errors import MeasureError
from edgekit.measure.text import Text, cut_windows, embedded_text, read_text


def encode(text: str) -> list[int]:
    return [ord(c) % 7 for c in text]


def test_the_embedded_text_is_the_same_twice_and_tells_its_python():
    one, other = embedded_text(), embedded_text()
    assert one.sha256 == other.sha256
    assert platform.python_version() in one.name
    assert len(one.content) > 100_000


def test_windows_are_the_beginning_of_the_text_without_anything_added():
    text = Text("t", "abcdefghijkl" * 10)
    windows = cut_windows(text, encode, window=8, tokens=30)
    assert windows.shape == (4, 8)  # rounded up to whole windows
    assert windows.ravel().tolist() == encode(text.content)[:32]


def test_a_small_request_still_gives_two_windows():
    assert cut_windows(Text("t", "a" * 100), encode, window=8, tokens=1).shape == (2, 8)


def test_a_window_needs_two_tokens_and_a_request_one():
    assert cut_windows(Text("t", "a" * 100), encode, window=2, tokens=1).shape == (2, 2)
    for window, tokens in ((1, 8), (8, 0)):
        with pytest.raises(MeasureError, match=f"window={window} must be 2 or more and tokens={tokens} 1 or more"):
            cut_windows(Text("t", "a" * 100), encode, window=window, tokens=tokens)


def test_only_the_beginning_is_encoded_unless_more_is_needed():
    seen = []

    def spy(text):
        seen.append(len(text))
        return encode(text)[::40]  # forty characters a token

    cut_windows(Text("t", "a" * 100_000), spy, window=10, tokens=20)
    assert seen == [320, 100_000]


def test_a_short_text_names_the_count_that_is_needed():
    with pytest.raises(MeasureError, match=r"short: has 10 tokens, but 3 windows of 8 need 24") as caught:
        cut_windows(Text("short", "a" * 10), encode, window=8, tokens=24)
    assert "`tokens=8`" in caught.value.hint


def test_a_file(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_bytes("é".encode())
    text = read_text(path)
    assert (text.name, text.content) == ("wiki.txt", "é")
    assert text.sha256 == sha256("é".encode()).hexdigest()
    path.write_bytes(b"ab\xff")
    with pytest.raises(MeasureError, match="not UTF-8 at byte 2"):
        read_text(path)
    with pytest.raises(MeasureError, match="not found"):
        read_text(tmp_path / "none")
