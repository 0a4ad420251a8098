"""Make bundles and students through the command line, each as a process of its own whose costs are measured."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.spending import Spent, spend
from edgekit import open_bundle

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types import Bundle


@dataclass(frozen=True)
class Plan:
    """What all rows are made of. ``text`` as for ``--calibrate``; ``minutes`` or ``steps`` of training."""

    source: str
    text: str
    work: Path
    minutes: float = 30.0
    steps: int | None = None
    layers: int = 24
    size_mb: float = 54.0

    @property
    def effort(self) -> list[str]:
        """Options of a training run."""
        limit = ["--minutes", f"{self.minutes:g}"] if self.steps is None else ["--steps", str(self.steps)]
        return ["--text", self.text, *limit]


@dataclass(frozen=True)
class Made:
    """A bundle, what it is called, and what making it took: None if it was given. ``scores`` of a distillation."""

    name: str
    bundle: Bundle
    spent: Spent | None = None
    scores: tuple[dict[str, Any], ...] = ()


class Failed(Exception):
    """A command that failed; the message has its last lines."""


def edgekit(*words: str, log: Path) -> Spent:
    """Run a command of the command line.

    Raises:
        Failed: it did.
    """
    log.unlink(missing_ok=True)
    spent = spend([sys.executable, "-m", "edgekit", *words], log)
    if spent.code:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise Failed("\n".join([f"edgekit {' '.join(words)}", *last]))
    return spent


def build(plan: Plan, name: str, recipe: str, *options: str, source: str | None = None) -> Made:
    """Build a bundle in the work folder."""
    out = plan.work / name.replace(" ", "-")
    spent = edgekit(
        "build", source or plan.source, "--recipe", recipe, "-o", str(out), "--force", *options,
        log=out.with_suffix(".log"),
    )  # fmt: skip
    return Made(name, open_bundle(out), spent)


def recover(plan: Plan, name: str, recipe: str) -> Made:
    """Train a recipe's weights; a run that was killed goes on."""
    out = plan.work / name.replace(" ", "-")
    spent = edgekit(
        "recover", plan.source, "--recipe", recipe, *plan.effort, "-o", str(out), "--force",
        log=out.with_suffix(".log"),
    )  # fmt: skip
    return Made(name, open_bundle(out), spent)


def distill(plan: Plan, name: str, *options: str) -> tuple[Path, Spent, tuple[dict[str, Any], ...]]:
    """Make a student: its folder, the costs, and the scores of the run's own held-out text."""
    out, log = plan.work / name.replace(" ", "-"), plan.work / f"{name.replace(' ', '-')}.log"
    shutil.rmtree(out, ignore_errors=True)
    spent = edgekit("distill", plan.source, *options, *plan.effort, "-o", str(out), "--json", log=log)
    said = "\n" + log.read_text(encoding="utf-8")  # messages, then the document
    document, _ = json.JSONDecoder().raw_decode(said, said.rindex("\n{\n") + 1)
    return out, spent, tuple(document["card"]["scores"])
