"""No value of no option ends in anything but an answer, or two lines and exit code 1, before anything is opened."""

import errno
import os
import socket
from inspect import unwrap
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from edgekit.cli import run
from edgekit.cli.arguments import MOST_TOKENS, numbers
from edgekit.cli.commands import FREE
from edgekit.errors import ConfigError
from tests.fuzz.arguments import commands


def kinds(hint):
    """The plain types in an annotation: ``float | None`` is {float}."""
    inner = {kind for one in get_args(hint) for kind in kinds(one)} if get_args(hint) else {hint}
    return {kind for kind in inner if isinstance(kind, type)} - {type(None)}


def parameters():
    """Every parameter of every command: the command's words, the parameter, and its type."""
    for words, command in commands():
        hints = get_type_hints(unwrap(command.callback))
        for parameter in command.params:
            if parameter.name in hints:
                yield words, parameter, kinds(hints[parameter.name])


EVERY = list(parameters())
NUMBERS = [(words, p, kind) for words, p, found in EVERY for kind in found & {int, float}]
NAMES = [(words, p) for words, p, found in EVERY if found & {str, Path} and p.name not in FREE]
BAD = ("nan", "-inf", "1e309", "9" * 40, "", "0x10", "\x1b]0;x\x07")


def ids(value):
    if isinstance(value, tuple):
        return "-".join(value)
    return getattr(value, "name", getattr(value, "__name__", None))


def call(words, parameter, value):
    """The command with made-up values for what it needs, and one value to look at."""
    line = list(words)
    for other in dict(commands())[words].params:
        chosen = value if other is parameter or other.name == parameter.name else "/dev/null/nowhere"
        if other.param_type_name == "argument" and (other.required or other.name == parameter.name):
            line.append(chosen)
        elif other.required or other.name == parameter.name:
            line.append(f"{other.opts[0]}={chosen}")
    return run(line)


def two_lines(err):
    lines = err.splitlines()
    assert len(lines) == 2, err
    assert lines[0].startswith("error: ") and len(lines[0]) > 8
    assert lines[1].startswith("hint: ") and len(lines[1]) > 7


def test_every_number_has_a_least_and_a_most():
    assert len(NUMBERS) > 30
    for words, parameter, _ in NUMBERS:
        assert parameter.min is not None and parameter.max is not None, (words, parameter.name)


@pytest.mark.parametrize(("words", "parameter", "kind"), NUMBERS, ids=ids)
def test_numbers_that_mean_nothing(words, parameter, kind, capsys):
    beyond = (parameter.max + 1, parameter.min - 1, parameter.max * 10)
    for value in (*BAD, *map(str, beyond)):
        assert call(words, parameter, value) == 1, value
        captured = capsys.readouterr()
        two_lines(captured.err)
        assert parameter.opts[0] in captured.err
        assert captured.out == ""


@pytest.mark.parametrize(("words", "parameter"), NAMES, ids=ids)
def test_names_that_name_nothing(words, parameter, capsys, tmp_path):
    for value in ("", "  "):
        assert call(words, parameter, value) == 1
        captured = capsys.readouterr()
        two_lines(captured.err)
        assert ": empty" in captured.err
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    for value, said in ((pipe, "named pipe"), (tmp_path / "socket", "a socket")):
        assert call(words, parameter, str(value)) == 1
        captured = capsys.readouterr()
        two_lines(captured.err)
        assert said in captured.err
    listening.close()


READ = ("bundle", "model", "models", "bundles", "text", "data", "policy", "schema", "state", "target", "recipe")


@pytest.mark.parametrize(("words", "parameter"), [(w, p) for w, p in NAMES if p.name in READ], ids=ids)
@pytest.mark.parametrize("value", ["a" * 300, "x/" * 3000, "folder", "garbage", "\udc9b\udcff", "-", "~", "a:b\\c"])
def test_paths_that_lead_nowhere(words, parameter, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "garbage").write_bytes(bytes(range(256)))
    if value == "-" and parameter.param_type_name == "argument":
        return
    if words in (("targets", "list"), ("doctor",)):
        return
    assert call(words, parameter, value) in (1, 3)
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-2].startswith("error: "), captured.err
    assert captured.err.splitlines()[-1].startswith("hint: "), captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("text", ["", "-1", "0", "1,", "1,x", f"{MOST_TOKENS + 1}", "9" * 5000, "1;2", "1.5"])
def test_lists_of_numbers(text):
    with pytest.raises(ConfigError) as caught:
        numbers("--pp", text)
    assert caught.value.hint


@pytest.mark.parametrize("number", [*sorted(errno.errorcode)[::7], None])
def test_whatever_the_system_refuses_has_a_hint(number, monkeypatch, capsys):
    if number == errno.EPIPE:
        return

    def fail():
        raise OSError(number, "no", "/there") if number else OSError("no number")

    monkeypatch.setattr("edgekit.inspect.doctor.examine", fail)
    assert run(["doctor"]) == 1
    two_lines(capsys.readouterr().err)


def test_no_memory_is_two_lines(monkeypatch, capsys):
    def fail():
        raise MemoryError("Unable to allocate 8.00 EiB")

    monkeypatch.setattr("edgekit.inspect.doctor.examine", fail)
    assert run(["doctor"]) == 1
    captured = capsys.readouterr()
    two_lines(captured.err)
    assert "Unable to allocate 8.00 EiB" in captured.err
