"""How much memory a run will take, told before it begins: an estimate from shapes, not a measurement."""

from __future__ import annotations

import os
from math import prod
from typing import TYPE_CHECKING

import torch

from edgekit import words
from edgekit.errors import LearnError
from edgekit.learn.losses import PIECE
from edgekit.learn.objective import KEPT
from edgekit.source import tensor_shapes
from edgekit.types.tensor_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from edgekit.types import ModelSpec

BASE = 450_000_000
"""Of Python with torch and accelerate."""

HEALED, ON_GRID = 16, 28
"""Bytes a trained weight: itself, its gradient and Adam's two moments; on a grid also what it was healed to, where it
started, and the weight as the device reads it."""


def estimate_memory(
    student: ModelSpec, teacher: ModelSpec, tokens: int, window: int, *, beside: bool, grid: bool
) -> int:
    """Bytes that one process takes.

    Args:
        student: its shape.
        teacher: its teacher's.
        tokens: of the text to train on.
        window: tokens of a window.
        beside: whether the teacher is in memory; else its head alone.
        grid: whether the student is trained on a grid in the end.
    """
    shapes = {name: prod(shape) for name, shape in tensor_shapes(student).items()}
    fixed = sum(size for name, size in shapes.items() if name in (EMBEDDING, HEAD))
    trained = sum(shapes.values()) - fixed
    weights = (trained + fixed) * ON_GRID if grid else trained * HEALED + fixed * 4
    whole = {name: prod(shape) for name, shape in tensor_shapes(teacher).items()}
    weights += 4 * (sum(whole.values()) if beside else whole[EMBEDDING if teacher.tied else HEAD])
    states = min(KEPT, 4 * tokens * teacher.hidden_size) if beside else 0
    return BASE + weights + states + _activations(student, window) * (2 if grid else 1)


def _activations(spec: ModelSpec, window: int) -> int:
    """Of one window, kept for the backward pass, and the logits of a piece of it."""
    inside = 10 * spec.hidden_size + 4 * spec.heads * spec.head_dim + 5 * spec.intermediate_size
    return 4 * window * spec.layers * (inside + 3 * spec.heads * window) + 4 * 4 * PIECE * spec.vocab_size


def require_memory(needed: int, less: str) -> str:
    """What is told of a run that needs so many bytes, as estimated; ``less`` is the hint for one that needs too many.

    Raises:
        LearnError: the device has fewer.
    """
    gpu = torch.cuda.is_available()
    if gpu:
        has = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    else:
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    where = "the GPU" if gpu else "this machine"
    if needed > has:
        raise LearnError(
            f"training takes about {words.size(needed)} of memory (estimated), {where} has {words.size(has)}",
            less,
        )
    return f"training takes about {words.size(needed)} of memory (estimated); {where} has {words.size(has)}"
