"""Where a key may come from, and that it is seen nowhere."""

from __future__ import annotations

import copy
import json
import os
import pickle

import pytest

from edgekit.errors import ConfigError
from edgekit.routing.endpoints import Key, read_key
from tests.cloud.loopback import KEY, tier


@pytest.fixture
def key_file(tmp_path):
    def write(content: bytes = KEY.encode() + b"\n", mode: int = 0o600):
        path = tmp_path / "key"
        path.write_bytes(content)
        path.chmod(mode)
        return tier("https://host/v1", key_env="", key_file=str(path))

    return write


def refused(one, environment=None) -> ConfigError:
    with pytest.raises(ConfigError) as failed:
        read_key(one, environment or {})
    said = failed.value.message + failed.value.hint
    assert "tier 'far'" in said
    assert KEY not in said
    assert failed.value.hint
    return failed.value


def test_from_the_variable_that_is_named():
    environment = {"FAR_KEY": f" {KEY}\n", "OPENAI_API_KEY": "another"}
    assert read_key(tier("https://host/v1"), environment).reveal() == KEY


@pytest.mark.parametrize("environment", [{}, {"FAR_KEY": ""}, {"FAR_KEY": "  "}, {"OPENAI_API_KEY": KEY}])
def test_a_variable_that_is_not_set_is_an_error(environment):
    assert "FAR_KEY is not set" in refused(tier("https://host/v1"), environment).message


@pytest.mark.parametrize("value", [f"{KEY} {KEY}", f"{KEY}\r\nX-Evil: 1", f"{KEY}é", f"{KEY}\x00"])
def test_a_key_that_no_header_can_carry(value):
    assert "space or a character" in refused(tier("https://host/v1"), {"FAR_KEY": value}).message


def test_no_key_is_no_key():
    key = read_key(tier("https://host/v1", key_env=""), {"OPENAI_API_KEY": "another"})
    assert not key
    assert key.reveal() == ""


def test_two_places_are_one_too_many(key_file):
    assert "both set" in refused(tier("https://host/v1", key_file="x")).message


@pytest.mark.parametrize("content", [KEY.encode(), KEY.encode() + b"\n", b"\n " + KEY.encode() + b"\r\n\n"])
def test_from_a_file_of_ones_own(key_file, content):
    assert read_key(key_file(content), {}).reveal() == KEY
    assert read_key(key_file(content, 0o400), {}).reveal() == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_a_file_that_others_may_touch(key_file, mode):
    error = refused(key_file(mode=mode))
    assert f"{mode:03o}" in error.message
    assert "chmod 600" in error.hint


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (KEY.encode() + b"\n" + KEY.encode(), "more than one"),
        (b"x" * 10_000, "more than one"),
        (b"\xff\xfe" + KEY.encode(), "non-ASCII characters"),
        (b"KEY=" + KEY.encode() + b" # mine", "space or a character"),
    ],
)
def test_a_file_that_holds_something_else(key_file, content, match):
    assert match in refused(key_file(content)).message


def test_things_that_are_no_file(tmp_path):
    def named(path) -> str:
        return refused(tier("https://host/v1", key_env="", key_file=str(path))).message

    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    assert "not a file" in named(tmp_path / "folder")
    assert "not a file" in named(tmp_path / "pipe")
    assert "No such file" in named(tmp_path / "missing")
    assert "no such path" in named("a\0b")


def test_a_file_of_another_user(key_file, monkeypatch):
    one = key_file()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to another user" in refused(one).message


def test_a_link_is_judged_by_what_it_points_to(key_file, tmp_path):
    one = key_file(mode=0o644)
    (tmp_path / "link").symlink_to(one.key_file)
    assert "644" in refused(tier("https://host/v1", key_env="", key_file=str(tmp_path / "link"))).message


def test_a_key_is_never_shown():
    key = Key(KEY, "FAR_KEY")
    for shown in (repr(key), str(key), f"{key}", f"{[key]}", "%s" % key):  # noqa: UP031
        assert shown.strip("[]") == "Key(*** from FAR_KEY)"
    for leak in (pickle.dumps, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            leak(key)
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"bad key {KEY}!", "bad key ***!"),
        (f"starts with {KEY[:8]}", "starts with ***"),
        (f"ends with {KEY[-6:]}", "ends with ***"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_a_key_is_masked_in_what_others_say(text, masked):
    shown = Key(KEY).mask(text)
    assert not any(KEY[i : i + 6] in shown for i in range(len(KEY) - 5))
    assert shown.replace("******", "***").startswith(masked[:10])
    assert Key("").mask(text) == text
    assert Key("ab").mask("ab, drab") == "***, dr***"
