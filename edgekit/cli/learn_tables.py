"""What recover and distill print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from edgekit import words
from edgekit.cli.layout import columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from edgekit.cli.documents import Student, Trained
    from edgekit.learn.distill import Text as Lessons
    from edgekit.learn.loop import Point
    from edgekit.types.learning import RunCard


def point_line(point: Point) -> str:
    """One line on how a run stands."""
    held_out, code = point.watched
    line = f"step {point.step}: KLD {held_out:.4f} on held-out text, {code:.4f} on source code"
    if not point.step:
        return line
    left = f", {words.seconds(point.seconds_left)} left" if point.seconds_left else ""
    return f"{line}; loss {point.loss:.4f}; {point.tokens_per_second:.0f} tokens/s{left}"


def trained_lines(trained: Trained) -> Iterator[RenderableType]:
    """The bundle, what the run gained, and the command to try next."""
    here, card = Path.cwd(), trained.card
    path = trained.path.relative_to(here) if trained.path.is_relative_to(here) else trained.path
    yield Text.assemble((str(path), "bold"), f": {words.size(trained.bytes)}, in {words.seconds(trained.seconds)}")
    yield Text(f"{card.tokens:,} tokens in {card.steps} steps, the best after {card.best_step}; {card.ending}")
    yield gains_table(card)
    for command in ("verify", "run", "bench"):
        yield Text(f"  edgekit {command} {path}", style="dim")


def gains_table(card: RunCard) -> RenderableType:
    """KLD and top-1 agreement before and after on each text, both of shipped files."""
    shown = columns("text", "KLD before", "after", "gained", "top-1 before", "after")
    for gain in card.gains:
        b, a, g = gain.before, gain.after, gain.gained
        shown.add_row(
            a.text,
            f"{b.kld_mean.value:.4f}",
            f"{a.kld_mean.value:.4f}",
            f"{g.value:.4f} [{g.low:.4f}, {g.high:.4f}]",
            f"{b.top1.value:.1%}",
            f"{a.top1.value:.1%}",
        )
    return shown


def read_lines(text: Lessons) -> Iterator[str]:
    """What was read, and what of it was left out."""
    for source in text.card.sources:
        if source.left_out:
            yield f"{source.name}: left out {source.left_out}"
    yield f"{text.train.size:,} tokens to learn on, {text.held_out.size:,} held out"


def student_lines(student: Student) -> Iterator[RenderableType]:
    """The folder, the student beside its start and controls, and the command to try next."""
    here, card = Path.cwd(), student.card
    path = student.path.relative_to(here) if student.path.is_relative_to(here) else student.path
    shape = f"{student.layers} layers with {student.ffn:,} feed-forward channels"
    yield Text.assemble((str(path), "bold"), f": {shape}, in {words.seconds(student.seconds)}")
    yield Text(
        f"healed on {card.tokens:,} tokens in {card.steps} steps, the best after {card.best_step}; {card.ending}"
    )
    if card.on_grid:
        g = card.on_grid
        steps = f"{g.tokens:,} tokens in {g.steps} steps, the best after {g.best_step}; {g.ending}"
        yield Text(f"on the grids of '{g.recipe}': {steps}")
    shown = columns("on text held out", "KLD", "95 %", "top-1", "perplexity")
    for score in card.scores:
        shown.add_row(
            score.model,
            f"{score.kld.value:.4f}",
            f"[{score.kld.low:.4f}, {score.kld.high:.4f}]",
            f"{score.top1.value:.1%}",
            words.number(score.perplexity.value),
        )
    yield shown
    yield Text(f"the teacher's perplexity is {words.number(card.scores[0].teacher_perplexity.value)}")
    # Codes that were trained are in the folder; any others are better fitted to text.
    how = f"{f' --recipe {student.recipe}' if student.recipe else ''}{'' if card.on_grid else ' --calibrate'}"
    named = Path(student.recipe).stem or "int4"
    yield Text(f"  edgekit build {path}{how} -o {path}-{named}", style="dim")
