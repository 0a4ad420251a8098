"""Divergences between the teacher's and the student's next tokens, a few hundred tokens at a time.

Logits [tokens, V] of a window of 512 tokens and 49,152 words take 100 MB, and their gradients as much: both are made in
pieces in the forward pass and dropped; what is kept is the gradient of the hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

Divergence = Literal["forward", "reverse", "skewed"]

PIECE = 256
"""Tokens whose logits are in memory at once."""


@dataclass(frozen=True)
class Loss:
    """How far the student is from the teacher, in nats per token.

    ``forward`` is KL(teacher || student); ``reverse`` KL(student || teacher), which seeks modes (MiniLLM, arXiv
    2306.08543); ``skewed`` KL(teacher || skew x teacher + (1 - skew) x student) (DistiLLM, arXiv 2402.03898).
    ``temperature`` divides both logits; the loss is multiplied by its square (arXiv 1503.02531).
    """

    divergence: Divergence = "forward"
    temperature: float = 1.0
    skew: float = 0.1

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Sum over tokens, for logits [tokens, V]."""
        s = F.log_softmax(student / self.temperature, -1)
        t = F.log_softmax(teacher / self.temperature, -1)
        if self.divergence == "forward":
            found = F.kl_div(s, t, reduction="sum", log_target=True)
        elif self.divergence == "reverse":
            found = F.kl_div(t, s, reduction="sum", log_target=True)
        else:
            mixed = (self.skew * t.exp() + (1 - self.skew) * s.exp()).clamp_min(1e-30).log()
            found = F.kl_div(mixed, t, reduction="sum", log_target=True)
        return found * self.temperature**2


def divergence(hidden: Tensor, head: Tensor, target: Tensor, target_head: Tensor, loss: Loss) -> Tensor:
    """Mean of ``loss`` over tokens.

    Args:
        hidden: inputs of the student's head [..., H].
        head: the student's head [V,H].
        target: inputs of the teacher's head [..., H'].
        target_head: the teacher's [V,H'].
        loss: which divergence.
    """
    teacher = target.reshape(-1, target.shape[-1])

    def of(piece: slice, logits: Tensor) -> Tensor:
        return loss.of(logits, teacher[piece] @ target_head.T)

    return _HeadLoss.apply(hidden.reshape(-1, hidden.shape[-1]), head, of)  # type: ignore[no-any-return]


def divergence_of_top(hidden: Tensor, head: Tensor, ids: Tensor, logprobs: Tensor, rest: Tensor, loss: Loss) -> Tensor:
    """Mean of ``loss`` over tokens against the teacher's likeliest tokens, the rest taken together as one.

    Args:
        hidden: inputs of the student's head [..., H].
        head: the student's head [V,H].
        ids: the teacher's likeliest tokens [..., k] int64.
        logprobs: their log probabilities [..., k].
        rest: the log probability of all others together [...].
        loss: which divergence; its temperature must be 1, as the cache is of one temperature.
    """
    ids = ids.reshape(-1, ids.shape[-1])
    teacher = torch.cat([logprobs.reshape(ids.shape), rest.reshape(-1, 1)], -1)

    def of(piece: slice, logits: Tensor) -> Tensor:
        chosen = F.log_softmax(logits, -1).gather(1, ids[piece])
        return loss.of(_with_rest(chosen), teacher[piece])

    return _HeadLoss.apply(hidden.reshape(-1, hidden.shape[-1]), head, of)  # type: ignore[no-any-return]


def cross_entropy(hidden: Tensor, head: Tensor, tokens: Tensor) -> Tensor:
    """Mean over the tokens [B,S] of a text after the first: the control that has no teacher."""
    labels = tokens[:, 1:].reshape(-1)
    states = hidden[:, :-1].reshape(-1, hidden.shape[-1])

    def of(piece: slice, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels[piece], reduction="sum")

    return _HeadLoss.apply(states, head, of)  # type: ignore[no-any-return]


def _with_rest(logprobs: Tensor) -> Tensor:
    """Log probabilities [tokens, k] and that of all other tokens together, [tokens, k + 1]."""
    rest = (1 - logprobs.exp().sum(-1, keepdim=True)).clamp_min(1e-7).log()
    return torch.cat([logprobs, rest], -1)


class _HeadLoss(torch.autograd.Function):
    """Mean of a loss over tokens, piece by piece; gradients of hidden states and head are made on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, of: Any) -> Tensor:
        total, count = hidden.new_zeros(()), len(hidden)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_head = torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        for piece in _pieces(count):
            logits = hidden[piece] @ head.T
            if to_hidden is None and to_head is None:
                total += of(piece, logits)
                continue
            with torch.enable_grad():
                logits.requires_grad_()
                loss = of(piece, logits)
                (gradient,) = torch.autograd.grad(loss, logits)
            total += loss.detach()
            if to_hidden is not None:
                torch.mm(gradient, head, out=to_hidden[piece])
            if to_head is not None:
                to_head.addmm_(gradient.T, hidden[piece])
        ctx.gradients = tuple(None if g is None else g.div_(count) for g in (to_hidden, to_head))
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by = gradients[0]
        to_hidden, to_head = (None if g is None else g * by for g in ctx.gradients)
        return to_hidden, to_head, None


def _pieces(count: int) -> Iterator[slice]:
    for start in range(0, count, PIECE):
        yield slice(start, min(start + PIECE, count))
