"""A folder of the user's documents, as the server and the prompt of `serve --docs` read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case, Step, write
from tests.fuzz.values import TEXTS, damaged_text, odd_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TEXT = "# Travel\n\nThe train to Rome leaves at nine. " + "Bring the tickets and the map. " * 40 + "\n"
_COMMAND = ("serve", "bundle", "--policy", "policy/plain.toml", "--port", "0", "--history", "none", "--docs", "docs")


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Documents, their names, and the file that says which are private."""
    del seed
    names = [t for t in TEXTS if t and not {"/", "\x00"} & set(t) and t not in (".", "..") and len(t.encode()) < 250]
    named = st.sampled_from(names).map(
        lambda name: (f"called {name[:20]!r}", (write(f"docs/{name}.md", _TEXT),), False)
    )
    rules = st.sampled_from([
        ("rules of brackets", (write("docs/.private", "[" * 5000 + "\n"),), False),
        ("rules of stars", (write("docs/.private", "*a" * 5000 + "b\n"),), False),
        ("a rule that is long", (write("docs/.private", "a" * 1_000_000 + "\n"),), False),
        ("many rules", (write("docs/.private", "".join(f"a{n}*\n" for n in range(30_000))),), False),
        ("a folder within itself", (Step("link", "docs/again", "."),), False),
        ("a folder that is elsewhere", (Step("link", "docs/else", "/proc"),), False),
        ("deep folders", (write("docs/" + "d/" * 400 + "x.txt", _TEXT),), False),
        ("a long word", (write("docs/w.txt", "a" * 4_000_000),), False),
        ("marks", (write("docs/m.txt", "e" + "\u0301" * 1_000_000),), False),
        ("no documents", (Step("folder", "docs"),), False),
        ("no folder", (write("docs", "x"),), True),
    ])  # fmt: skip
    texts = st.one_of(damaged_text("docs/a.md", _TEXT), damaged_text("docs/.private", "private/\n*.secret.md\n"))
    odd = st.one_of(odd_files("docs/b.txt"), odd_files("docs/.private"))
    # One file that is odd is passed over, and said so.
    odd = odd.map(lambda change: (*change[:2], False))

    def case(change: tuple) -> Case:
        how, steps, refused = change
        good = () if how == "no folder" else (write("docs/good.md", _TEXT),)
        return Case(f"documents: {how}", _COMMAND, ("bundle", "policy"), (*good, *steps), refused=refused)

    return st.builds(case, st.one_of(texts, rules, named, odd))
