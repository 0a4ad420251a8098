"""Two processes on one machine take the steps that one takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from edgekit.testing import tiny_checkpoint  # noqa: E402

PROGRAM = """
import sys, json
from pathlib import Path
from edgekit.learn.plan import Effort
from edgekit.learn import recover as room
from edgekit.learn.recover import Wish, recover
room.require_gain = lambda gains: None  # a run this short need not gain
model, text, out, divide = sys.argv[1:]
points = []
effort = Effort((text,), steps=8, batch=4, divide_teacher=divide == "1")
recover(Wish(model, recipe="small"), effort, out=Path(out), report=points.append)
if points:
    print(json.dumps([[p.step, p.loss, *p.watched] for p in points]))
"""

STUDENT = """
import sys, json
from pathlib import Path
from edgekit.config.recipe import load_recipe, load_target
import numpy as np
from edgekit.learn.distill import Text, distill
from edgekit.learn.heal import Method
from edgekit.learn.plan import Effort
from edgekit.learn.shapes import Shape
from edgekit.learn.student_on_grid import Recovery
from edgekit.source import open_model
from edgekit.types.data import DataCard
model, text, out, _ = sys.argv[1:]
points = []
teacher, method = open_model(model), Method(steps=4, batch=4)
card = DataCard((), 768, 192, 24, 0)
text = Text(*(np.random.default_rng(i).integers(4, 384, (n, 24)) for i, n in enumerate((32, 6, 2))), card)
recovery = Recovery(load_recipe("small"), load_target("cpu"), Effort(steps=4, batch=4))
made = distill(
    teacher, Shape(2, 64, 2), text, method, out=Path(out), recovery=recovery, cache_bytes=10**7, report=points.append
)
assert (made is None) == (not points)
if made:
    print(json.dumps([[p.step, p.loss, *p.watched] for p in points]))
"""


def curve(processes, model, text, out, *, divide=False, program=PROGRAM):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, str(model), str(text), str(out), str(int(divide))]
    started = []
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} if processes > 1 else {}
        started.append(
            subprocess.Popen(
                command, env={**shared, **ranks}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=300) for process in started]
    assert [p.returncode for p in started] == [0] * processes, said
    assert [bool(out) for out, _ in said] == [True] + [False] * (processes - 1)
    return json.loads(said[0][0].splitlines()[-1])


def test_two_processes_give_the_curve_of_one(tmp_path):
    model = tiny_checkpoint(tmp_path / "tiny")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"{i * i} boxes of {i} apples and a river;" for i in range(4000)))
    one = curve(1, model, text, tmp_path / "one")
    two = curve(2, model, text, tmp_path / "two")
    divided = curve(2, model, text, tmp_path / "divided", divide=True)
    assert len(one) == 9
    for row, other, third in zip(one, two, divided, strict=True):
        assert other == pytest.approx(row, rel=2e-3)
        assert third == pytest.approx(row, rel=2e-3)


def test_two_processes_make_the_student_of_one(tmp_path):
    model = tiny_checkpoint(tmp_path / "tiny", num_hidden_layers=3)
    one = curve(1, model, "", tmp_path / "one", program=STUDENT)
    two = curve(2, model, "", tmp_path / "two", program=STUDENT)
    assert [row[0] for row in one] == [0, 1, 2, 3, 4] * 2
    for row, other in zip(one, two, strict=True):
        assert other == pytest.approx(row, rel=5e-3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "tiny", "two"]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())
