"""The command line: the only place that prints and exits.

Exit codes: 0 done; 1 the user can fix it (an ``error:`` line and a ``hint:`` line); 2 a bug in edgekit (traceback);
3 a gate failed; 130 Ctrl-C; 141 the reader of a pipe has gone.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from edgekit.cli.console import complain, emit, gated, say
from edgekit.errors import EdgekitError, GateFailed, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typer.exceptions import TyperException

DONE, USER, BUG, GATE, INTERRUPTED, PIPE = 0, 1, 2, 3, 130, 141

_SYSTEM_HINTS = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EACCES: "check the permissions, or choose another path",
    errno.EPERM: "check the permissions, or choose another path",
    errno.EROFS: "choose a path outside this read-only file system",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "pass a file, not a directory",
    errno.ENAMETOOLONG: "shorten the file name to 255 bytes",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or close other programs",
    errno.ENOMEM: "close other programs, or use a smaller model",
    errno.EADDRINUSE: "choose another port: a program already listens on this one",
}
_SYSTEM_HINT = "check the path, its permissions, the disk and the network, then try again"
_MEMORY_HINT = "close other programs, or use a smaller model, a shorter context or --small-memory"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit."""
    # Libraries and graphs are a million long-lived objects; scanning them again and again costs a tenth of a build.
    gc.set_threshold(200_000, 20, 20)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return the exit code."""
    with gated():
        try:
            code = _dispatch(arguments)
            sys.stdout.flush()
        except BaseException as error:
            code = _explain(arguments, error)
        return code


def _explain(arguments: Sequence[str], error: BaseException) -> int:
    from edgekit.cli.flags import name_flags

    match error:
        case GateFailed():
            complain(name_flags(error.message, arguments), name_flags(error.hint, arguments))
            code = GATE
        case EdgekitError():
            code = _refuse(arguments, name_flags(error.message, arguments), name_flags(error.hint, arguments))
        case OSError(errno=errno.EPIPE) | SystemExit():
            # Typer and rich exit only when the reader of stdout has gone.
            code = _leave_pipe()
        case OSError(errno=number):
            code = _refuse(arguments, str(error) or type(error).__name__, _SYSTEM_HINTS.get(number or 0, _SYSTEM_HINT))
        case MemoryError():
            code = _refuse(arguments, f"not enough memory{': ' * bool(str(error))}{error}", _MEMORY_HINT)
        case KeyboardInterrupt():
            code = _interrupt()
        case _:
            code = _confess(error)
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    from typer.exceptions import TyperException
    from typer.main import get_command

    from edgekit.cli.app import app

    # A pipe gets plain help, without boxes.
    app.rich_markup_mode = "rich" if sys.stdout.isatty() else None
    try:
        code = get_command(app).main(list(arguments), prog_name="edgekit", standalone_mode=False)
    except TyperException as error:
        return _misuse(arguments, error)
    # Typer returns this code on Ctrl-C.
    return _interrupt() if code == INTERRUPTED else code if isinstance(code, int) else DONE


def _misuse(arguments: Sequence[str], error: TyperException) -> int:
    """Report a command line that Typer cannot parse in our two lines instead of its box."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        say(error.format_message())
        return DONE
    path = context.command_path if context else "edgekit"
    hint = f"see `{path} --help`"
    command = getattr(context, "command", None)
    if "unexpected extra argument" in error.format_message() and "--calibrate" in arguments:
        hint = f"quote a pattern, or the shell expands it: --calibrate 'notes/*.txt'; {hint}"
    if hasattr(error, "option_name") and command:
        known = [name for parameter in command.params for name in parameter.opts]
        hint = did_you_mean(error.option_name, known) + hint
    message, _, suggestion = error.format_message().partition(" Did you mean ")
    if suggestion:
        hint = f"did you mean {suggestion} {hint}"
    elif hasattr(error, "possibilities"):
        message = error.message
    message = message.replace("Value error, ", "").replace("Input should be", "must be")
    return _refuse(arguments, message[0].lower() + message[1:].rstrip("."), hint)


def _refuse(arguments: Sequence[str], message: str, hint: str) -> int:
    if "--json" in arguments:
        from edgekit.cli.documents import Refusal

        emit(Refusal(message, hint, USER))
    complain(message, hint)
    return USER


def _confess(error: BaseException) -> int:
    """Print what a report of a bug in edgekit needs."""
    import traceback

    traceback.print_exception(error)
    sys.stderr.write(
        "\nThis is a bug in edgekit. Please report it with the lines above, the command and the output of "
        "`edgekit doctor`.\n"
    )
    return BUG


def _interrupt() -> int:
    sys.stderr.write("\ninterrupted\n")
    return INTERRUPTED


def _leave_pipe() -> int:
    """Point stdout to the null device, so that the interpreter exits without an error message."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PIPE
