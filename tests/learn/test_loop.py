"""A run that is killed ends with the same bytes; one that goes wrong keeps its best point."""

from __future__ import annotations

import math
import random

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from edgekit.errors import LearnError  # noqa: E402
from edgekit.learn.loop import Plan, Run, kept_to_resume, open_run  # noqa: E402


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr("edgekit.learn.loop.SAVE_EVERY", 0.0)


WINDOWS = torch.zeros(9, 4, dtype=torch.long)
DATA = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
PLAN = Plan(steps=40, rates={"all": 0.05}, batch=2, piece=1, watch_every=5)


class Fit(torch.nn.Module):
    """Learns the mean of the rows it is shown; ``kill_at`` counts calls."""

    def __init__(self, kill_at=None, poison_at=None):
        super().__init__()
        self.guess = torch.nn.Parameter(torch.zeros(6))
        self.kill_at, self.poison_at, self.calls = kill_at, poison_at, 0
        self.seen = []

    def forward(self, numbers):
        self.calls += 1
        self.seen += numbers.tolist()
        if self.calls == self.kill_at:
            raise KeyboardInterrupt
        loss = (DATA[numbers] - self.guess).square().mean()
        return loss * math.nan if self.calls == self.poison_at else loss

    def watch(self):
        return (float((DATA.mean(0) - self.guess.detach()).square().mean()), 1.0)


def start(module, folder=None, plan=PLAN, **options):
    if folder:
        folder.mkdir(exist_ok=True)
    options.setdefault("watch", module.watch)
    return Run(
        module, {"all": [module.guess]}, plan, WINDOWS, accelerator=accelerate.Accelerator(cpu=True), folder=folder,
        **options,
    )  # fmt: skip


def test_it_learns_and_the_best_point_is_left_in_the_module(tmp_path):
    module = Fit()
    outcome = start(module, tmp_path).run()
    assert outcome.ending == "done"
    assert [p.step for p in outcome.points] == [0, *range(5, 41, 5)]
    assert outcome.best[0] < 0.1 * outcome.points[0].watched[0]
    assert module.watch() == outcome.best


def test_an_epoch_shows_every_window_once(tmp_path):
    module = Fit()
    start(module, plan=Plan(steps=4, rates={"all": 0.1}, batch=2, watch_every=5)).run()
    assert len(set(module.seen)) == 8


def test_a_run_killed_at_ten_random_points_ends_with_the_same_bytes(tmp_path):
    whole = Fit()
    expected = start(whole, tmp_path / "whole").run()
    draw = random.Random(7)
    for attempt in range(11):
        module = Fit(kill_at=draw.randint(1, 14) if attempt < 10 else None)
        try:
            outcome = start(module, tmp_path / "killed").run()
        except KeyboardInterrupt:
            assert attempt < 10
            continue
        break
    assert attempt > 3
    assert torch.equal(module.guess, whole.guess)
    assert [(p.step, p.loss, p.watched) for p in outcome.points] == [
        (p.step, p.loss, p.watched) for p in expected.points
    ]


def test_another_run_is_not_gone_on_with(tmp_path):
    open_run(tmp_path / "run", "a")
    open_run(tmp_path / "run", "a")
    with pytest.raises(LearnError, match="another run"):
        open_run(tmp_path / "run", "b")


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_what_is_no_run_is_left_alone(kind, tmp_path):
    place, mine = tmp_path / "b.run", tmp_path / "mine"
    (place if kind == "folder" else mine).mkdir()
    if kind == "folder":
        (place / "notes").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(mine if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(LearnError, match="not the folder of a run"), kept_to_resume(place, mine=True):
        open_run(place, "key")
    assert place.is_symlink() or place.exists()
    assert kind != "folder" or (place / "notes").read_text() == "mine"


def test_another_run_outlives_a_mistake(tmp_path):
    place = tmp_path / "b.run"
    open_run(place, "theirs")
    with pytest.raises(LearnError, match="another run"), kept_to_resume(place, mine=True):
        open_run(place, "mine")
    assert (place / "key").read_text() == "theirs"


def test_a_loss_that_is_not_a_number_ends_the_run_at_its_best_point(tmp_path):
    module = Fit(poison_at=31)
    outcome = start(module, tmp_path).run()
    assert outcome.ending == "not a number"
    assert torch.isfinite(module.guess).all()
    assert module.watch() == outcome.best
    assert outcome.best_step == 15


def test_a_run_that_gets_worse_ends_at_its_best_point(tmp_path):
    module, scores = Fit(), iter([1.0, 0.5, 0.8, 3.0, 0.1, 0.1, 0.1, 0.1, 0.1])
    outcome = start(module, tmp_path, watch=lambda: (next(scores), 1.0)).run()
    assert outcome.ending == "done"
    module, scores = Fit(), iter([1.0, 0.5, 0.8, 3.5])
    outcome = start(module, tmp_path / "other", watch=lambda: (next(scores), 1.0)).run()
    assert (outcome.ending, outcome.best_step) == ("diverged", 5)


def test_one_text_that_drifts_outweighs_one_that_gains_little(tmp_path):
    module, scores = Fit(), iter([(1.0, 1.0), (0.9, 1.3), (0.9, 0.95)])
    outcome = start(module, tmp_path, plan=Plan(10, {"all": 0.1}, watch_every=5), watch=lambda: next(scores)).run()
    assert outcome.best == (0.9, 0.95)


def test_it_ends_when_nothing_gets_better(tmp_path):
    module = Fit()
    plan = Plan(steps=400, rates={"all": 0.05}, watch_every=5, patience=3)
    outcome = start(module, tmp_path, plan=plan, watch=lambda: (1.0, 1.0)).run()
    assert (outcome.ending, outcome.points[-1].step) == ("no longer better", 15)


def test_fewer_windows_than_a_step_takes(tmp_path):
    with pytest.raises(LearnError, match="9 windows"):
        start(Fit(), plan=Plan(steps=1, rates={"all": 0.1}, batch=10))
