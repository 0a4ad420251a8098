"""Write docs/demo.svg: a terminal in which a person builds, checks and asks SmolLM2. Every line is from a real run."""

import os
import re
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

FILE = Path(__file__).with_name("demo.svg")
WIDTH = 108
COMMANDS = (
    ("build", "smollm2-135m", "--precision", "int4", "-o", "smollm2-int4"),
    ("verify", "smollm2-int4"),
    ("run", "smollm2-int4", "What is the capital of France?"),
)


def record(command: tuple[str, ...], folder: str) -> Text:
    """Run a command and return what it showed on stdout, with its prompt line."""
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = " ".join(f'"{word}"' if " " in word else word for word in command)
    shown_output = done.stdout.replace(str(Path.home()), "~")
    return Text.assemble(("$ ", "green"), (f"edgekit {shown}\n", "bold"), Text.from_ansi(shown_output.rstrip()), "\n")


def main() -> None:
    """Run the commands in a folder that is thrown away and draw the terminal."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            console.print(record(command, folder))
    svg = console.export_svg(title="edgekit")
    # rich names a web font; the picture asks nobody for anything.
    FILE.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
