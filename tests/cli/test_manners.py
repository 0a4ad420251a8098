"""How the command line behaves: errors, exit codes, pipes, Ctrl-C, terminals, colours."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from edgekit.cli import progress, run
from edgekit.cli.progress import Bars, amount
from edgekit.errors import EdgekitError, GateFailed

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def edgekit(*arguments, **options):
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    environment |= options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment, **options,
    )  # fmt: skip


def hear_ctrl_c():
    """What is started in the background of a script ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command in a pseudo-terminal."""

    def __init__(self, *arguments, env=None):
        environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        environment |= {"TERM": "xterm-256color", "COLUMNS": "100"} | (env or {})
        self.fd, inside = pty.openpty()
        command = [sys.executable, "-m", "edgekit", *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=hear_ctrl_c,  # noqa: PLW1509 - no other thread is running
        )
        os.close(inside)
        self.seen = ""

    def read(self, seconds=0.1):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        try:
            data = os.read(self.fd, 65536) if ready else b""
        except OSError:  # Linux says so when the other side has closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data) or not ready

    def wait_for(self, text, count=1):
        limit = time.monotonic() + 60
        while self.seen.count(text) < count:
            assert self.read(), self.seen
            assert time.monotonic() < limit, self.seen

    def say(self, text):
        os.write(self.fd, text.encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def end(self):
        while self.read(1):
            pass
        return self.process.wait(60)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal():
    """Starts commands in terminals, and ends them all afterwards."""
    opened = []

    def start(*arguments, **options):
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["biuld", "x"], "no such command 'biuld'", "did you mean 'build'?"),
        (["targets", "lst"], "no such command 'lst'", "did you mean 'list'?"),
        (["build", "m", "--precison", "int4"], "no such option: --precison", "did you mean '--precision'?"),
        (["build", "m"], "missing option '--out' / '-o'", "edgekit build --help"),
        (["run"], "missing argument 'BUNDLE'", "edgekit run --help"),
        (
            ["build", "m", "-o", "x", "--precision", "int5"],
            "'int5' is not one of 'fp32', 'fp16'",
            "edgekit build --help",
        ),
        (["verify", "b", "--tokens", "many"], "invalid value for '--tokens'", "edgekit verify --help"),
        (["targets", "show", "cpy"], "unknown target 'cpy'", "did you mean 'cpu'?"),
        (["run", "/nowhere", "hi"], "not a bundle", "edgekit build"),
        (["report", "/nowhere"], "not a bundle", "edgekit build"),
        (["inspect", "/nowhere"], "model '/nowhere' not found", "smollm2-135m"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_1(arguments, error, hint, capsys):
    assert run(arguments) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 2, captured.err
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]
    assert captured.out == ""


def test_an_error_is_a_json_document_too(capsys):
    assert run(["inspect", "/nowhere", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["exit_code"] == 1
    assert captured.err.startswith("error: ")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (EdgekitError("a\n  b", "do\nthis"), 1, "error: a b\nhint: do this\n"),
        (GateFailed("too far", "more bits"), 3, "error: too far\nhint: more bits\n"),
        (
            OSError(28, "No space left on device", "/full"),
            1,
            "error: [Errno 28] No space left on device: '/full'\nhint: free",
        ),
        (
            PermissionError(13, "Permission denied", "/closed"),
            1,
            "error: [Errno 13] Permission denied: '/closed'\nhint: ",
        ),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (ZeroDivisionError("ours"), 2, "Traceback"),
    ],
)
def test_exit_codes(raised, code, said, monkeypatch, capsys):
    def fail():
        raise raised

    monkeypatch.setattr("edgekit.inspect.doctor.examine", fail)
    assert run(["doctor"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(said)
    assert captured.out == ""
    if code == 2:
        assert "ZeroDivisionError: ours" in captured.err
        assert "report it" in captured.err


# --- pipes, colours, widths -----------------------------------------------------------------------


def test_a_closed_pipe_is_quiet(bundle):
    command = f"{sys.executable} -m edgekit inspect {bundle} --tensors --json | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "{"
    closed = (
        f"{sys.executable} -m edgekit inspect {bundle} --tensors --json | (exec 0<&-; sleep 3); echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", closed], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "141\n"


def test_a_pipe_gets_plain_text():
    done = edgekit("targets", "show", "portable")
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    assert "\x1b" not in edgekit("--help").stdout
    assert not re.search(r"[─│╭╮╰╯]", edgekit("--help").stdout)


def test_columns_are_honoured():
    for columns in ("60", "100"):
        done = edgekit("targets", "show", "portable", env={"COLUMNS": columns})
        assert max(map(len, done.stdout.splitlines())) <= int(columns)


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_honoured_on_a_terminal(terminal, env, coloured):
    tty = terminal("inspect", "/nowhere", env=env)
    assert tty.end() == 1
    used = set(re.findall(r"\x1b\[(?:[0-9]+;)*(3[0-9])m", tty.seen))
    assert "31" in used if coloured else not used
    assert "error: model '" in ESCAPE.sub("", tty.seen)


def test_completion_works(tmp_path):
    environment = {"_EDGEKIT_COMPLETE": "complete_bash", "COMP_WORDS": "edgekit be", "COMP_CWORD": "1"}
    assert edgekit(env=environment).stdout.split() == ["bench"]
    environment |= {"COMP_WORDS": "edgekit build m --prec", "COMP_CWORD": "3"}
    assert edgekit(env=environment).stdout.split() == ["--precision"]


# --- progress -------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(progress, "monotonic", lambda: Clock.now)
    return Clock


def test_amounts():
    assert amount(230e6, 538e6, "B") == "230 MB / 538 MB"
    assert amount(3, 8, "windows") == "3 / 8 windows"
    assert amount(12, 0, "s") == "12 s"
    assert amount(1500, None, "B") == "1.5 kB"


def test_no_terminal_gets_a_line_now_and_then(clock, capsys):
    with Bars() as bars:
        for second in range(25):
            clock.now = float(second)
            bars("reading", second, 25, "shards")
    assert capsys.readouterr().err.splitlines() == ["reading: 10 / 25 shards", "reading: 20 / 25 shards"]


def test_a_bar_appears_after_a_second_and_goes_away(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Bars() as bars:
        bars("reading", 1, 100)
        clock.now = 0.9
        bars("reading", 2, 100)
        assert capsys.readouterr().err == ""
        clock.now = 1.1
        bars("reading", 50_000_000, 100_000_000)
        bars("counting", 5, 0, "layers")
    shown = ESCAPE.sub("", capsys.readouterr().err)
    assert "reading" in shown
    assert "50.0 MB / 100 MB" in shown
    assert "5 layers" in shown


# --- Ctrl-C and conversation ----------------------------------------------------------------------


def test_interrupting_a_build_leaves_nothing(checkpoint, tmp_path):
    code = (
        "import os, signal, sys\n"
        "from edgekit.cli import main\n"
        "import edgekit.lower as line\n"
        "lower = line.lower\n"
        "def stop(*a):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return lower(*a)\n"
        "line.lower = stop\n"
        "main(sys.argv[1:])\n"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, "build", str(checkpoint), "-o", str(out)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=hear_ctrl_c,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "interrupted"
    assert list(tmp_path.iterdir()) == []


def test_a_chat_at_the_terminal(bundle, terminal):
    tty = terminal("run", bundle, "--max-new-tokens", "3")
    tty.wait_for("/reset starts over")
    tty.wait_for("> ")
    tty.say("The quick\n")
    tty.wait_for("> ", 2)
    tty.say("/reset\n")
    tty.wait_for("new conversation")
    tty.say("/system Be brief.\n")
    tty.wait_for("with this system message")
    tty.say("/what\n")
    tty.wait_for("/reset starts over", 2)
    tty.say("brown fox\n")
    tty.wait_for("> ", 6)
    tty.say("/exit\n")
    assert tty.end() == 0, tty.seen


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(talker, terminal):
    tty = terminal("run", talker, "--max-new-tokens", "16000")
    tty.wait_for("> ")
    tty.say("The quick\n")
    tty.wait_for("The quick\r\n")
    before = len(tty.seen)
    while len(tty.seen) < before + 10:
        assert tty.read(), tty.seen
    tty.interrupt()
    tty.wait_for(" ...\r\n")
    tty.wait_for("> ", 2)
    # readline misses a signal that comes while it sets itself up, so it is sent until it is heard.
    while tty.seen.count("> ") < 3:
        tty.interrupt()
        heard = time.monotonic() + 3
        while tty.seen.count("> ") < 3 and time.monotonic() < heard:
            tty.read()
    tty.say("\x04")
    assert tty.end() == 0, tty.seen


def test_ctrl_c_ends_a_single_answer_with_what_it_had(talker, terminal):
    tty = terminal("run", talker, "The quick", "--max-new-tokens", "16000")
    while len(tty.seen) < 10:
        assert tty.read(), tty.seen
    tty.interrupt()
    assert tty.end() == 0, tty.seen
    assert "Traceback" not in tty.seen
