"""The training loop: steps, what is watched, the best point, and going on after a kill.

A run is a pure function of its plan, its data and its seed: the order of the windows follows from the seed and the
step, not from what was drawn before. So a run that is killed and resumed takes the same steps and ends with the same
bytes.
One process or several run the same code: accelerate averages the gradients of a step over them.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from shutil import rmtree
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from edgekit.errors import EdgekitError, GateFailed, LearnError
from edgekit.host.disk import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from accelerate import Accelerator

WARMUP = 0.05
"""Share of the steps in which the rate rises to its full value; it falls linearly to zero from there."""

SAVE_EVERY = 60.0
"""Seconds between two states of a run on disk."""

DIVERGED = 2.0
"""A run ends when what it watches is this many times worse than at its start."""

Ending = Literal["done", "no longer better", "diverged", "not a number"]


@dataclass(frozen=True)
class Plan:
    """How a run goes. ``batch`` counts windows per step over all processes, ``piece`` those in memory at once in one.

    ``rates``: the learning rate of each group of parameters. A run is watched every ``watch_every`` steps, and ends
    early after ``patience`` looks without a new best.
    """

    steps: int
    rates: dict[str, float]
    batch: int = 2
    piece: int = 2
    watch_every: int = 25
    patience: int = 6
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """What was seen at a step.

    ``loss``: the mean since the last point. ``watched``: KLD in nats on each held-out text. ``tokens`` read so far.
    ``seconds_left``: of training, if the speed stays.
    """

    step: int
    loss: float
    watched: tuple[float, ...]
    tokens: int
    tokens_per_second: float
    seconds_left: float


@dataclass
class Outcome:
    """How a run ended: why, the step of the best point and what was seen there, all points, and the seconds it took."""

    ending: Ending = "done"
    best_step: int = 0
    best: tuple[float, ...] = ()
    points: list[Point] = field(default_factory=list)
    seconds: float = 0.0


class Run:
    """One training run in a folder of its own: ``state.pt`` to go on from, ``best.pt`` the best parameters so far."""

    def __init__(
        self,
        module: nn.Module,
        groups: dict[str, list[nn.Parameter]],
        plan: Plan,
        windows: Tensor,
        *,
        accelerator: Accelerator,
        watch: Callable[[], tuple[float, ...]],
        folder: Path | None = None,
        report: Callable[[Point], None] = lambda _: None,
    ) -> None:
        """Prepare, and go on where a killed run stopped.

        Args:
            module: called with numbers of windows [b] int64, it gives the mean loss over their tokens.
            groups: parameters to train, by the names in ``plan.rates``.
            plan: steps and rates.
            windows: tokens [n,S]; only their number and length matter here.
            accelerator: of this process.
            watch: KLD on each held-out text, for the parameters as they are.
            folder: where the run is kept; None keeps nothing, for a trial.
            report: told each point.

        Raises:
            LearnError: the windows are too few, or no multiple of the processes.
        """
        self._plan, self._accelerator, self._watch = plan, accelerator, watch
        self._folder, self._report = folder, report
        self._count, self._tokens = len(windows), plan.batch * windows.shape[1]
        share = plan.batch // accelerator.num_processes
        if not share or plan.batch % accelerator.num_processes:
            raise LearnError(
                f"a step's {plan.batch} windows cannot be shared by {accelerator.num_processes} processes",
                "set `batch` to a multiple of the number of processes",
            )
        if self._count < plan.batch:
            raise LearnError(f"{self._count} windows to train on are fewer than a step takes", "give more text")
        self._trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        optimizer = torch.optim.Adam(
            [{"params": groups[name], "lr": rate, "full": rate} for name, rate in plan.rates.items() if groups[name]],
            betas=(0.9, 0.95),
            eps=1e-12,
            fused=True,
        )
        self._module, self._optimizer = accelerator.prepare(module, optimizer)
        self._step, self.outcome = 0, Outcome()
        self._losses: list[float] = []
        self._resume()

    def run(self) -> Outcome:
        """Take the steps that are left, and leave the best parameters in the module."""
        plan, outcome = self._plan, self.outcome
        if not outcome.best:
            outcome.best = self._watch()
            if not all(map(math.isfinite, outcome.best)):
                raise LearnError(
                    "the predictions on the held-out text are not finite",
                    "check the model: `edgekit verify` on a bundle with fp32 says where",
                )
            self._keep_best()
            self._point(0.0)
        saved = self._since = last = monotonic()
        while self._step < plan.steps and outcome.ending == "done":
            loss = self.take()
            self._losses.append(loss)
            if not math.isfinite(loss):
                outcome.ending = "not a number"
            elif self._step % plan.watch_every == 0 or self._step == plan.steps:
                self._look()
            outcome.seconds, last = outcome.seconds + monotonic() - last, monotonic()
            if monotonic() - saved > SAVE_EVERY:
                self._save()
                saved = monotonic()
        self._save()
        self._load(self._read("best.pt"))
        return outcome

    # --- a step -----------------------------------------------------------------------------------

    def take(self) -> float:
        """Take one step; its mean loss."""
        plan = self._plan
        share = plan.batch // self._accelerator.num_processes
        rank = self._accelerator.process_index
        mine = self._order(self._step)[rank * share : (rank + 1) * share]
        for group in self._optimizer.param_groups:
            group["lr"] = group["full"] * self._pace()
        self._module.train()
        total = torch.zeros((), device=self._accelerator.device)
        pieces = list(mine.split(plan.piece))
        for i, piece in enumerate(pieces):
            with self._synchronized(last=i + 1 == len(pieces)):
                loss = self._module(piece) * (len(piece) / share)
                self._accelerator.backward(loss)
            total += loss.detach()
        mean = float(self._accelerator.reduce(total, "mean"))
        if math.isfinite(mean):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return mean

    def _synchronized(self, *, last: bool) -> Any:
        from contextlib import nullcontext

        return nullcontext() if last else self._accelerator.no_sync(self._module)

    def _pace(self) -> float:
        done = (self._step + 0.5) / self._plan.steps
        return min(1.0, done / WARMUP) * (1 - done)

    def _order(self, step: int) -> Tensor:
        """Numbers of the windows of a step: every epoch is a permutation drawn from the seed."""
        per_epoch = self._count // self._plan.batch
        epoch, place = divmod(step, per_epoch)
        draw = torch.Generator().manual_seed(self._plan.seed * 1_000_003 + epoch)
        return torch.randperm(self._count, generator=draw)[place * self._plan.batch : (place + 1) * self._plan.batch]

    # --- what is watched --------------------------------------------------------------------------

    def _look(self) -> None:
        watched, outcome = self._watch(), self.outcome
        first = outcome.points[0].watched
        self._point(len(self._losses) * self._tokens / max(monotonic() - self._since, 1e-9), watched)
        if not all(map(math.isfinite, watched)) or relative(watched, first) > DIVERGED:
            outcome.ending = "diverged"
        elif relative(watched, first) < relative(outcome.best, first):
            outcome.best, outcome.best_step = watched, self._step
            self._keep_best()
        elif self._step - outcome.best_step >= self._plan.patience * self._plan.watch_every:
            outcome.ending = "no longer better"
        self._losses, self._since = [], monotonic()

    def _point(self, speed: float, watched: tuple[float, ...] = ()) -> None:
        left = (self._plan.steps - self._step) * self._tokens / speed if speed else 0.0
        mean = sum(self._losses) / max(len(self._losses), 1)
        point = Point(self._step, mean, watched or self.outcome.best, self._step * self._tokens, speed, left)
        self.outcome.points.append(point)
        self._report(point)

    # --- what is kept -----------------------------------------------------------------------------

    def _keep_best(self) -> None:
        self._best = {name: p.detach().clone() for name, p in self._trained.items()} if self._folder is None else None
        if self._folder is not None:
            self._write("best.pt", {"trained": {name: p.detach() for name, p in self._trained.items()}})

    def _save(self) -> None:
        state = {
            "step": self._step,
            "outcome": self.outcome,
            "losses": self._losses,
            "trained": {name: p.detach() for name, p in self._trained.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        self._write("state.pt", state)

    def _resume(self) -> None:
        if self._folder is None or not (self._folder / "state.pt").exists():
            return
        state = self._read("state.pt")
        self._load(state)
        self._optimizer.load_state_dict(state["optimizer"])
        self._step, self.outcome, self._losses = state["step"], state["outcome"], state["losses"]

    def _write(self, name: str, state: dict[str, Any]) -> None:
        if self._folder is None or not self._accelerator.is_main_process:
            return
        partial = self._folder / f"{name}.partial"
        torch.save(state, partial)
        partial.replace(self._folder / name)

    def _read(self, name: str) -> dict[str, Any]:
        if self._folder is None:
            return {"trained": self._best}
        self._accelerator.wait_for_everyone()
        with torch.serialization.safe_globals([Outcome, Point]):
            found: dict[str, Any] = torch.load(self._folder / name, map_location="cpu", weights_only=True)
        return found

    def _load(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(state["trained"][name])


def relative(watched: Sequence[float], first: Sequence[float]) -> float:
    """Mean over the texts of KLD in units of the start's: a text that drifts away counts as much as one that gains."""
    return sum(w / max(f, 1e-12) for w, f in zip(watched, first, strict=True)) / len(watched)


def open_run(folder: Path, key: str) -> None:
    """Make the folder of a run, or take up the one that is there.

    Args:
        folder: the run's.
        key: what the run follows from.

    Raises:
        LearnError: the folder holds another run, or something else.
    """
    path = folder / "key"
    # The folder is removed in the end: it must hold nothing but a run.
    taken = folder.is_dir() and not path.is_file() and any(folder.iterdir())
    if taken or folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise LearnError(f"{folder} is not the folder of a run", "move it elsewhere, or choose another `out`")
    if path.exists() and path.read_text(encoding="utf-8") != key:
        raise LearnError(
            f"{folder} holds another run: its model, its data or its plan differ",
            "remove the folder, or give the run another `out`",
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, key.encode())


@contextmanager
def kept_to_resume(folder: Path, *, mine: bool) -> Iterator[None]:
    """Around a run: after an error its folder goes if a limit was not met, or if it is new and nothing was trained.

    Args:
        folder: the run's.
        mine: whether this process writes it.
    """
    began = folder.exists()
    try:
        yield
    except EdgekitError as error:
        # More minutes or more text make another run: this one is of no use to it.
        unused = not began and not any(folder.rglob("state.pt"))
        if mine and (isinstance(error, GateFailed) or unused):
            rmtree(folder, ignore_errors=True)
        raise
