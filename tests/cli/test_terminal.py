"""Nothing that a stranger wrote is obeyed by the terminal, whichever way it gets there."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from edgekit.cli import console, run
from edgekit.cli.console import SafeStream, visible
from edgekit.cli.progress import Bars
from edgekit.errors import CloudError
from edgekit.testing import serve_fake_openai
from tests.cli.test_route_explain import EXAMPLE

EVIL = "\x1b]0;owned\x07\x1b]52;c;b3du\x07\x1b[5mblink\x1b[2J\x9b31m\x9d0;c1\x9c\x08\r\x7f\u202eright\u2066"
"""Title, clipboard, blinking, clearing, C1 forms of the same, backspace, return, reordering. Legal in a file's name."""

_STYLE = r"(0|1|2|3[0-7]|9[0-7]|38;5;\d+|38;2;\d+;\d+;\d+)"
OWN = re.compile(rf"\x1b\[{_STYLE}(;{_STYLE})*m|\x1b\[\?25[lh]|\r?\x1b\[(2K|1A|0K)|\r(?=\n)")
"""What rich writes by itself: colours, hiding the cursor and clearing the bar's line; and the terminal's own \\r."""

OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Screen:
    """The two streams as a real terminal; what it was sent is ``seen`` once the block is left."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch
        self.seen = ""

    def __enter__(self):
        outside, inside = pty.openpty()
        self.chunks, self.outside = [], outside
        self.stream = open(inside, "w", encoding="utf-8")  # noqa: PTH123
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        self.patch.delenv("NO_COLOR", raising=False)
        self.patch.setenv("TERM", "xterm-256color")
        self.patch.setenv("COLUMNS", "300")
        self.before = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = self.stream
        return self

    def _read(self):
        try:
            while data := os.read(self.outside, 1 << 16):
                self.chunks.append(data)
        except OSError:  # the other side has closed
            pass

    def __exit__(self, *_):
        sys.stdout, sys.stderr = self.before
        self.stream.close()
        self.thread.join(30)
        os.close(self.outside)
        self.seen = b"".join(self.chunks).decode()


def check(seen, *, evil=True):
    rest = OWN.sub("", seen)
    assert not OBEYED.search(rest), repr(rest)
    assert "\x1b[5m" not in seen
    if evil:
        assert r"\x1b]0;owned" in rest, rest


@pytest.fixture
def screen(monkeypatch):
    return Screen(monkeypatch)


@pytest.fixture
def evil_bundle(bundle, tmp_path):
    """Its folder, its origin and its tensors have names that command a terminal."""
    path = shutil.copytree(bundle, tmp_path / f"b{EVIL}")
    manifest = json.loads((path / "edgekit.json").read_text())
    manifest["provenance"]["id"] = f"model {EVIL}"
    for tensor in manifest["tensors"]:
        tensor["name"] += EVIL
    (path / "edgekit.json").write_text(json.dumps(manifest))
    return path


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def places(bundle, evil, folder):
    """Command lines by where the evil text stands in them."""
    policy = EXAMPLE.read_text(encoding="utf-8")
    quoted = json.dumps(EVIL)
    renamed = write(folder / "renamed.toml", policy.replace('"standard"', quoted))
    key = write(folder / "key.toml", policy + f"\n{quoted} = 1\n")
    named = write(folder / f"p{EVIL}.toml", "tiers = 1")
    target = write(folder / "target.toml", f'name = "t"\n{quoted} = 1\n')
    data = write(folder / f"d{EVIL}.jsonl", json.dumps({EVIL: 1}) + "\n")
    return {
        "a command": [EVIL],
        "an option": ["build", "--" + EVIL],
        "an option's value": ["build", "m", "-o", "x", "--precision", EVIL],
        "a number": ["verify", "b", "--tokens", EVIL],
        "a bundle that is not": ["run", EVIL, "hi"],
        "a model that is not": ["inspect", EVIL],
        "a model to build": ["build", EVIL, "-o", "x"],
        "a target that is not": ["targets", "show", EVIL],
        "a target's key": ["targets", "lint", str(target)],
        "a bundle's names": ["inspect", str(evil), "--tensors"],
        "a bundle's names in JSON": ["inspect", str(evil), "--json"],
        "a bundle's check": ["verify", str(evil), "--tokens", "64", "--window", "32"],
        "a bundle's report": ["report", str(evil), "-o", str(folder / f"r{EVIL}.html")],
        "a policy's tier": ["route", "explain", str(bundle), "hi", "--policy", str(renamed)],
        "a policy's key": ["route", "explain", str(bundle), "hi", "--policy", str(key)],
        "a policy's file": ["route", "explain", str(bundle), "hi", "--policy", str(named)],
        "a data file": ["route", "calibrate", str(bundle), "--data", str(data)],
        "a tune": ["bench", str(bundle), "--pp", EVIL],
        "fit's model": ["fit", EVIL],
    }


def place_names():
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        return list(places(Path("b"), Path("e"), Path(folder)))


@pytest.mark.parametrize("place", place_names())
def test_a_command_line_shows_what_would_be_obeyed(place, bundle, evil_bundle, tmp_path, screen, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = places(bundle, evil_bundle, tmp_path)[place]
    with screen:
        run(arguments)
    if "JSON" in place:
        check(screen.seen, evil=False)
        assert json.loads(screen.seen)["provenance"]["id"] == f"model {EVIL}"
    else:
        check(screen.seen, evil=place != "a number")  # Typer does not repeat it
    # A pipe ends in a terminal or in a log.
    run(arguments)
    captured = capsys.readouterr()
    assert not OBEYED.search(captured.out + captured.err)


def speak(kind):
    if kind == "an endpoint's error":
        raise CloudError(f"tier: {EVIL}", f"ask {EVIL}")
    if kind == "the system's error":
        raise OSError(5, EVIL, EVIL)
    if kind == "a bug":
        raise ZeroDivisionError(EVIL)
    if kind == "a library that prints":
        sys.stderr.write(EVIL + "\n")
        sys.stdout.writelines([EVIL, "\n"])
    elif kind == "a bar":
        with Bars() as bars:
            bars._began -= 10
            bars(EVIL, 1, 3)
            sys.stderr.write(EVIL + "\n")
            bars(f"resumed {EVIL}", 2, 3)
    elif kind == "a note":
        console.note(EVIL)
    elif kind == "an answer":
        console.stream(EVIL)
    return ()


KINDS = (
    "an endpoint's error", "the system's error", "a bug", "a library that prints", "a bar", "a note", "an answer",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_up_while_a_command_runs(kind, screen, monkeypatch):
    monkeypatch.setattr("edgekit.inspect.doctor.examine", lambda: speak(kind))
    with screen:
        run(["doctor"])
    check(screen.seen)


def test_warnings_logs_and_other_threads(tmp_path):
    """In a process of its own, whose warnings and logs pytest does not take."""
    program = write(
        tmp_path / "program.py",
        "import logging, sys, threading, warnings\n"
        "import edgekit.inspect.doctor\n"
        "from edgekit.cli import run\n"
        f"EVIL = {EVIL!r}\n"
        "def speak():\n"
        "    warnings.warn(EVIL)\n"
        "    logging.getLogger('any').error(EVIL)\n"
        "    thread = threading.Thread(target=lambda: 1 / 0, name=EVIL)\n"
        "    thread.start(); thread.join()\n"
        "    return ()\n"
        "edgekit.inspect.doctor.examine = speak\n"
        "sys.exit(run(['doctor']))\n",
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)
    assert not OBEYED.search(done.stdout + done.stderr)
    assert done.stderr.count(r"\x1b]0;owned\x07") >= 3


def test_an_answer_in_pieces(screen, capsys):
    with screen, console.gated():
        for character in EVIL:
            console.stream(character)
    check(screen.seen)
    with console.gated():
        for character in EVIL:
            console.stream(character)
    assert capsys.readouterr().out == EVIL, "a pipe gets the model's bytes"


def test_a_models_output(bundle, screen, capsys):
    wild = ["run", str(bundle), "The quick", "--raw", "--temperature", "100", "--max-new-tokens", "300"]
    assert run(wild) == 0
    told = capsys.readouterr().out
    assert OBEYED.search(told), "the vocabulary has every byte"
    with screen:
        assert run(wild) == 0
    check(screen.seen, evil=False)
    assert visible(told) == screen.seen.replace("\r\n", "\n")
    with screen:
        assert run([*wild, "--signals"]) == 0
    check(screen.seen, evil=False)
    assert run([*wild, "--json", "--signals"]) == 0
    document = capsys.readouterr().out
    assert not OBEYED.search(document)
    assert json.loads(document)["text"] + "\n" == told


def test_an_endpoint_that_commands(bundle, tmp_path, screen):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}?", "answer": EVIL}) + "\n" for n in range(3)))
    with serve_fake_openai(EVIL, model=EVIL) as endpoint, screen:
        run(["route", "bench", str(bundle), "--data", str(data), "--cloud", endpoint.url, "--model", EVIL])
    check(screen.seen, evil=False)


def test_the_help_keeps_its_styles(screen):
    with screen:
        assert run(["--help"]) == 0
    assert "\x1b[1" in screen.seen
    assert r"\x1b" not in screen.seen


@pytest.mark.parametrize(
    "text",
    [
        "Grüße, Ελλάδα, Привет, שלום, مرحبا, नमस्ते, สวัสดี, 漢字, かな, 한글",
        "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇫🇷 👍🏽 ❤️",
        "می‌خواهم",  # Persian is written with joiners
        "\u200e\u200fmarks\ttab\nline",
    ],
)
def test_every_language_and_emoji_survive(text, screen):
    assert visible(text) == text
    with screen, console.gated():
        console.stream(text)
        console.say(text)
        console.show(text.split("\n")[0].split("\t")[0])
    assert screen.seen.count(text.split("\n")[0].split("\t")[0]) == 3


def test_what_no_stream_can_encode_is_spelled_out():
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    stream.write("caf\xe9 \udc9b\n")
    assert raw.getvalue() == rb"caf\xe9 \udc9b" + b"\n"
    assert visible("\udc9b") == r"\udc9b"


def test_the_streams_are_given_back(monkeypatch):
    before = sys.stdout, sys.stderr
    run(["--version"])
    assert (sys.stdout, sys.stderr) == before


def test_a_bundles_record_is_json_with_escapes(bundle):
    from edgekit import open_bundle

    provenance = replace(open_bundle(bundle).manifest.provenance, id=EVIL)
    text = console.document_text(provenance)
    assert not OBEYED.search(text)
    assert json.loads(text)["id"] == EVIL
