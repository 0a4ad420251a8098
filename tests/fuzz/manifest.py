"""edgekit.json: every value of it, and the file itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case
from tests.fuzz.values import damaged_text, json_steps, odd_files, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE = "bundle/edgekit.json"
COMMANDS = (
    ("inspect", "bundle"),
    ("inspect", "bundle", "--tensors", "--json"),
    ("run", "bundle", "Hello", "--max-new-tokens", "2"),
    ("verify", "bundle", "--source", "model", "--tokens", "32", "--window", "16"),
    ("bench", "bundle", "--pp", "4", "--tg", "2", "--depth", "0", "--repetitions", "1", "--warmup", "0", "--json"),
    ("report", "bundle", "-o", "out/report.html"),
    ("route", "explain", "bundle", "Hello", "--policy", "policy/plain.toml"),
    ("build", "model", "-o", "bundle", "--force"),
)


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Every value of the manifest by every command that opens a bundle."""
    folder = seed("bundle")
    text = (folder / "edgekit.json").read_text(encoding="utf-8")
    changes = json_steps(FILE, read(folder, "edgekit.json"), typed=True)
    damage = st.one_of(changes, changes, changes, damaged_text(FILE, text), odd_files(FILE))

    def case(command: tuple[str, ...], change: tuple) -> Case:
        what, steps, impossible = change
        builds = command[0] == "build"
        return Case(
            f"manifest: {command[0]}: {what}", command, ("bundle", "model", "policy"), steps,
            refused=impossible and not builds, writes=("bundle", ".bundle.*") if builds else (),
        )  # fmt: skip

    # What was measured is read by every command, and believed by routing and reports.
    kept = seed("measured")
    records = [
        json_steps("measured/edgekit.json", read(kept, "edgekit.json"), typed=True, under=(key,))
        for key in ("quality", "latency", "calibration", "tunings")
    ]

    def recorded(command: tuple[str, ...], change: tuple) -> Case:
        what, steps, impossible = change
        words = tuple("measured" if word == "bundle" else word for word in command)
        return Case(
            f"records: {command[0]}: {what}", words, ("measured", "model", "policy"), steps, refused=impossible
        )  # fmt: skip

    return st.one_of(
        st.builds(case, st.sampled_from(COMMANDS), damage),
        st.builds(recorded, st.sampled_from(COMMANDS[:-1]), st.one_of(records)),
    )
