"""The distance of a student from its teacher on windows of text: what a run lowers, and what it watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgekit.learn.losses import Loss, divergence
from edgekit.learn.processes import shard

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.learn.graph import Decoder

KEPT = 2 << 30
"""Bytes of the teacher's hidden states that are kept between epochs; what does not fit is computed again."""


class Teacher:
    """A decoder that does not change. Its states on a window are computed alone, so they depend on nothing else."""

    def __init__(self, decoder: Decoder, *, divide: bool = False) -> None:
        """``divide`` it among all processes, which then keep no states: all must compute at the same time."""
        head: Tensor = decoder.head().detach()
        self._head = head.clone() if divide else head
        if divide:
            shard(decoder)
        self._decoder = decoder.eval()
        self._known: dict[bytes, Tensor] = {}
        self._left = 0 if divide else KEPT

    @torch.no_grad()
    def states(self, windows: Tensor) -> Tensor:
        """Inputs of the head [B,S,H] for tokens [B,S]."""
        return torch.cat([self._one(window) for window in windows])

    def head(self) -> Tensor:
        """The head [V,H]."""
        return self._head

    def _one(self, window: Tensor) -> Tensor:
        key = window.cpu().numpy().tobytes()
        if key in self._known:
            return self._known[key].to(window.device)
        states: Tensor = self._decoder(window[None])
        if self._left >= states.nbytes:
            self._left -= states.nbytes
            self._known[key] = states.cpu()
        return states


class Distance(nn.Module):
    """Called with numbers of windows, the mean loss over their tokens. The teacher is not part of the module."""

    def __init__(self, student: Decoder, teacher: Teacher, windows: Tensor, loss: Loss) -> None:
        super().__init__()
        self.student = student
        self._beside = (teacher, windows, loss)  # a tuple, so that torch does not see a module in it

    def forward(self, numbers: Tensor) -> Tensor:
        """Mean loss over the tokens of the windows ``numbers`` [b]."""
        teacher, windows, loss = self._beside
        tokens = windows[numbers].to(next(self.student.parameters()).device)
        hidden, target = self.student(tokens), teacher.states(tokens)
        with torch.autocast(tokens.device.type, enabled=False):  # logits need float32
            return divergence(hidden.float(), self.student.head(), target.float(), teacher.head(), loss)


class Watch:
    """KLD in nats per token on each of several texts, for the student as it is."""

    def __init__(self, student: Decoder, teacher: Teacher, texts: Sequence[NDArray[np.int64]]) -> None:
        self._student, self._teacher = student, teacher
        self._texts = [torch.from_numpy(text) for text in texts]

    @torch.no_grad()
    def __call__(self) -> tuple[float, ...]:
        """One number for each text."""
        device = next(self._student.parameters()).device
        head, target_head = self._student.head(), self._teacher.head()
        found = []
        for text in self._texts:
            total = 0.0
            for window in text.to(device).split(1):
                hidden = self._student(window)
                total += float(divergence(hidden, head, self._teacher.states(window), target_head, Loss()))
            found.append(total / len(text))
        return tuple(found)
