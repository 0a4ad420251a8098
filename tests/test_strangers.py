"""Files that others made: whatever stands at a path, it is read within bounds or refused at once, with a hint."""

import os
import socket
from pathlib import Path

import pytest

from edgekit.errors import BundleError, SourceError
from edgekit.strangers import MAX_DEPTH, open_plain, parse_json, read_plain

LIMIT = 1000


def refused(path: Path, *said: str, within: tuple[Path, ...] = ()) -> None:
    for read in (lambda: read_plain(path, LIMIT, error=BundleError, within=within),):
        with pytest.raises(BundleError) as caught:
            read()
        assert caught.value.hint
        for word in said:
            assert word in caught.value.message


def test_a_plain_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * LIMIT)
    (tmp_path / "b").symlink_to("a")
    assert read_plain(tmp_path / "a", LIMIT, error=SourceError) == b"x" * LIMIT
    assert read_plain(tmp_path / "b", LIMIT, error=SourceError, within=(tmp_path,)) == b"x" * LIMIT
    with open_plain(tmp_path / "a", error=SourceError) as file:
        assert file.read(3) == b"xxx"


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "named pipe")
    refused(Path("/dev/zero"), "device")
    refused(tmp_path, "folder")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        refused(tmp_path / "s", "socket")


def test_a_file_larger_than_its_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (LIMIT + 1))
    refused(tmp_path / "a", "1,000 bytes")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    refused(tmp_path / "sparse", "1,000 bytes")
    refused(Path("/proc/self/smaps"), "1,000 bytes")  # its size says 0


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "missing", "loop"])
def test_names_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / name)


def test_a_link_leads_no_further_than_it_may(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "in" / "a").symlink_to("../secret")
    (tmp_path / "in" / "b").symlink_to("a")
    refused(tmp_path / "in" / "a", "secret", within=(tmp_path / "in",))
    refused(tmp_path / "in" / "b", "secret", within=(tmp_path / "in",))
    assert read_plain(tmp_path / "in" / "b", LIMIT, error=SourceError, within=(tmp_path,)) == b"s"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": {"b": 1, "b": 2}}', "duplicate key 'b'"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b"[1]", "object"),
        (b"", "not valid JSON"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "nested"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"a":' + b"[" * 2_000_000, "nested"),
        (b'{"a":[' + b"[]," * 5_000_000 + b"0]}", "values"),
    ],
    ids=range(15),
)
def test_json_that_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_json(data, "config.json", error=SourceError)
    assert caught.value.hint
    assert "config.json" in caught.value.message
    assert said in caught.value.message


def test_json_that_is_read() -> None:
    deep = b'{"a":' * MAX_DEPTH + b'"\\ud83d\\ude00"' + b"}" * MAX_DEPTH
    value = parse_json(deep, "x", error=SourceError)
    for _ in range(MAX_DEPTH):
        value = value["a"]
    assert value == "😀"  # type: ignore[comparison-overlap]
