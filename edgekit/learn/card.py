"""The card of a student: ``run.json``, which a bundle's manifest takes up, and README.md for people and hubs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from edgekit import __version__
from edgekit.build.learned import CARD
from edgekit.host.processor import processor_class
from edgekit.learn.watched import CODE
from edgekit.record import to_json
from edgekit.types import SideFile
from edgekit.types.learning import CurvePoint, GridTraining, RunCard

if TYPE_CHECKING:
    from edgekit.learn.heal import Method
    from edgekit.learn.loop import Outcome, Plan
    from edgekit.types import ModelSpec, Provenance
    from edgekit.types.data import DataCard
    from edgekit.types.learning import StudentScore


def run_card(
    teacher: Provenance,
    data: DataCard,
    method: Method,
    outcome: Outcome,
    scores: tuple[StudentScore, ...],
    on_grid: GridTraining | None,
) -> RunCard:
    """What was trained on what, for how long, and what it gave."""
    loss, last = method.loss, outcome.points[-1]
    return RunCard(
        kind="distill",
        teacher=teacher.id,
        teacher_sha256=teacher.sha256,
        data=data,
        loss=f"{loss.divergence} KL from the teacher, temperature {loss.temperature:g}",
        rates=(("matrices", method.rate), ("vectors", method.rate)),
        seed=method.seed,
        steps=last.step,
        best_step=outcome.best_step,
        tokens=last.tokens,
        minutes=outcome.seconds / 60,
        tokens_per_second=last.tokens / max(outcome.seconds, 1e-9),
        processor_class=processor_class(),
        ending=outcome.ending,
        watched=("text held out from training", CODE),
        curve=_curve(outcome),
        gains=(),
        edgekit=__version__,
        torch=str(torch.__version__),
        scores=scores,
        on_grid=on_grid,
    )


def grid_card(recipe: str, plan: Plan, outcome: Outcome) -> GridTraining:
    """The second part of a run, on the grids of a recipe."""
    last = outcome.points[-1]
    return GridTraining(
        recipe=recipe,
        rates=tuple(plan.rates.items()),
        steps=last.step,
        best_step=outcome.best_step,
        tokens=last.tokens,
        minutes=outcome.seconds / 60,
        ending=outcome.ending,
        curve=_curve(outcome),
    )


def _curve(outcome: Outcome) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(p.step, p.loss, p.watched) for p in outcome.points)


def card_files(name: str, card: RunCard, whole: ModelSpec, spec: ModelSpec, kept: tuple[int, ...]) -> list[SideFile]:
    """The two files.

    Args:
        name: of the student's folder.
        card: of its run.
        whole: the teacher.
        spec: the student.
        kept: the teacher's layers that are left; empty for a student that was no part of its teacher.
    """
    text = "\n".join([*_what(name, card, whole, spec, kept), *_scores(card), *_data(card), *_warnings(spec)]) + "\n"
    return [SideFile(CARD, f"{to_json(card, indent=1)}\n".encode()), SideFile("README.md", text.encode())]


def _what(name: str, card: RunCard, whole: ModelSpec, spec: ModelSpec, kept: tuple[int, ...]) -> list[str]:
    listed = f" ({', '.join(map(str, kept))})" if len(kept) < whole.layers and kept else ""
    shape = (
        f"{spec.layers} of {whole.layers} layers{listed}",
        f"{spec.intermediate_size} of {whole.intermediate_size} feed-forward channels",
        f"{spec.kv_heads} of {whole.kv_heads} key-value heads",
    )
    if not kept:
        shape = (
            f"{spec.layers} layers",
            f"{spec.intermediate_size} feed-forward channels",
            f"{spec.kv_heads} key-value heads",
        )
    lines = [
        f"# {name}\n",
        f"A student of {card.teacher} (sha256 {card.teacher_sha256}), made by edgekit {card.edgekit}: "
        f"{', '.join(shape)}.",
        "The teacher's licence holds.\n",
        f"Healed on {card.tokens:,} tokens in {card.steps} steps and {card.minutes:.1f} minutes at "
        f"{card.tokens_per_second:.0f} tokens/s ({card.processor_class}); the best after {card.best_step}; "
        f"{card.ending}. Loss: {card.loss}; rate {card.rates[0][1]:g}, seed {card.seed}.\n",
    ]
    if card.on_grid:
        g = card.on_grid
        lines += [
            f"Then trained on the grids of recipe '{g.recipe}', {g.tokens:,} tokens in {g.steps} steps and "
            f"{g.minutes:.1f} minutes; the best after {g.best_step}; {g.ending}. The weights here "
            f"are what its codes say, and `edgekit build` with that recipe takes the codes as they are.\n"
        ]
    return lines


def _scores(card: RunCard) -> list[str]:
    lines = ["| on text held out | KLD, nats a token (95 %) | top-1 | perplexity |", "|---|---|---|---|"]
    for s in card.scores:
        kld = f"{s.kld.value:.4f} [{s.kld.low:.4f}, {s.kld.high:.4f}]"
        lines.append(f"| {s.model} | {kld} | {s.top1.value:.1%} | {s.perplexity.value:.2f} |")
    return [*lines, f"\nThe teacher's perplexity there is {card.scores[0].teacher_perplexity.value:.2f}.\n"]


def _data(card: RunCard) -> list[str]:
    rows = (
        f"| {s.name} | {s.documents:,} | {s.tokens:,} | {s.licence or 'unknown'} | {s.left_out or '-'} |"
        for s in card.data.sources
    )
    return ["| text | documents | tokens | licence | left out |", "|---|---|---|---|---|", *rows]


def _warnings(spec: ModelSpec) -> list[str]:
    if all(spec.rotary) or not any(r == ((i + 1) % 4 == 0) for i, r in enumerate(spec.rotary)):
        return []
    return ["", "llama.cpp takes every fourth layer to be without rope, and would compute another model than this."]
