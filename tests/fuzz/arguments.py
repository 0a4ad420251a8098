"""Command lines: every option of every command, as the command line itself lists them, with values of strangers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from typer.main import get_command

from edgekit.cli.app import app
from tests.fuzz.case import Case, Step, write
from tests.fuzz.values import ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_FILES = (
    write("notes.txt", "Paris is the capital of France. " * 100), Step("folder", "folder"), Step("fifo", "fifo"),
    Step("link", "zero", "/dev/zero"), Step("link", "loop", "loop"), write("locked", "x"), Step("mode", "locked"),
)  # fmt: skip
_SEEDS = ("bundle", "model", "policy", "questions")
_REQUIRED = {
    "bundle": "bundle", "bundles": "bundle", "model": "model", "models": "model", "out": "out/made",
    "policy": "policy/plain.toml", "prompt": "Hello", "data": "questions/questions.jsonl", "target": "cpu",
    "teacher": "model", "meter": "command:false", "output": "out/trace.jsonl", "trace": "out/trace.jsonl",
    "file": "lab.toml", "devices": "lab.toml", "device": "local:/dev/null", "results": "out/results",
}  # fmt: skip
_QUICK = {
    "run": ("--max-new-tokens", "2"), "bench": ("--pp", "4", "--tg", "2", "--depth", "0", "--repetitions", "1"),
    "verify": ("--source", "model", "--tokens", "32", "--window", "16"), "fit": ("--target", "cpu"),
    "route calibrate": ("--no-record",), "route bench": ("--cloud", "questions/answers.jsonl"),
    "serve": ("--port", "0", "--history", "none"), "recover": ("--steps", "1"),
    "distill": ("--layers", "1", "--steps", "1"), "power record": ("--seconds", "0.1"),
}  # fmt: skip
"""What keeps a command short; an option of the case stands behind it and wins."""
_LEFT_OUT = {
    ("doctor", "install"), ("bench", "tune"), ("recover", "steps"), ("recover", "minutes"), ("distill", "steps"),
    ("distill", "minutes"), ("distill", "recover_minutes"), ("power", "seconds"), ("bench", "sustained"),
}  # fmt: skip
"""They fetch, or take minutes, when they are given what they want."""
_WRITES = ("report.html", ".edgekit-*")
_RECORDS = ("bundle", "bundle/edgekit.json", "bundle/edgekit.json.sig", "bundle/.edgekit-*")
"""What is written when a command is asked to record or to sign."""


def commands(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that is no group of others, with the words that call it."""
    command = command or get_command(app)
    children = getattr(command, "commands", {})
    if not children:
        yield words, command
    for word, child in children.items():
        yield from commands(child, (*words, word))


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """One or two hostile values; an argument that must be given may be one of them."""
    del seed
    return st.sampled_from(list(commands())).flatmap(lambda pair: _of(*pair))


def _of(words: tuple[str, ...], command: Any) -> st.SearchStrategy[Case]:
    flags = [p for p in command.params if getattr(p, "is_flag", False) and p.name not in ("help", "version")]
    valued = [p for p in command.params if p not in flags and p.name not in ("help", "version")]
    choices = [_given(p) for p in valued if (words[0], p.name) not in _LEFT_OUT]
    choices += [st.just((p, p.opts[0])) for p in flags if (words[0], p.name) not in _LEFT_OUT]
    if not choices:
        return st.sampled_from(ARGUMENTS).map(lambda text: _case(words, command, [(None, text)]))
    return st.lists(st.one_of(choices), min_size=1, max_size=2).map(lambda given: _case(words, command, given))


def _given(parameter: Any) -> st.SearchStrategy[tuple[Any, str]]:
    return st.sampled_from(ARGUMENTS).map(lambda text: (parameter, text))


def _case(words: tuple[str, ...], command: Any, given: list[tuple[Any, str]]) -> Case:
    by_name = {p.name: text for p, text in given if p is not None}
    line: list[str] = [*words]
    plain: list[str] = []
    for parameter in command.params:
        option = parameter.opts[0].startswith("-")
        if not option:
            text = by_name.pop(parameter.name, _REQUIRED.get(parameter.name, "") if parameter.required else "")
            plain += [text] if text or parameter.required else []
        elif parameter.required and parameter.name not in by_name:
            line += [parameter.opts[0], _REQUIRED[parameter.name]]
    line += _QUICK.get(" ".join(words), ())
    for parameter, text in given:
        if parameter is None:
            line.append(text)
        elif parameter.name in by_name:
            flag = getattr(parameter, "is_flag", False)
            line += [text] if flag else [f"{parameter.opts[0]}={text}"]
    records = words[0] == "sign" or "record" in by_name
    said = " ".join(f"{p.opts[0] if p else ''} {t[:30]!a}" for p, t in given)
    return Case(
        f"arguments: {' '.join(words)} {said}", (*line, *(("--",) if plain else ()), *plain), _SEEDS, _FILES,
        # A path that is asked for may be written to, as everywhere.
        writes=(*_WRITES, *(_RECORDS if records else ()), *(text for _, text in given if _is_free(text))),
    )  # fmt: skip


def _is_free(text: str) -> bool:
    """Whether an output may go there: a name in the case's folder."""
    return bool(text.strip("./- \x1b")) and len(text) < 256
