"""The lab file: what it says, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.lab.file import Lab, LabDevice, Limits, Workload, load_lab

WHOLE = """
name = "nightly"
bundles = ["one", "sub/two"]
on = ["board", "phone"]
order = "listed"
seed = 7
repetitions = 2
deadline = "8h"

[limits]
start_below_celsius = 40
least_battery = 30
most_background = 0.5
wait_at_most = "10m"
most_spread = 0.05

[[device]]
name = "pi"
address = "local:/tmp/pi"
labels = ["board"]
target = "raspberry-pi-5"
meter = "ina226"

[[device]]
name = "phone"
address = "local:/tmp/phone"

[[device]]
name = "desk"
address = "local"

[[workload]]
name = "short"
pp = [128]
tg = [32]
depth = [0, 64]
repetitions = 3
warmup = 0
on = ["board"]

[[workload]]
name = "hot"
sustained = "10m"
"""


def lab(folder: Path, text: str = WHOLE) -> Lab:
    for name in ("one", "sub/two"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / "lab.toml"
    path.write_text(text)
    return load_lab(path, digest=lambda bundle: bundle.name.ljust(64, "0"))


def test_everything_that_a_lab_file_says(tmp_path: Path) -> None:
    found = lab(tmp_path)
    assert (found.name, found.order, found.seed, found.repetitions, found.deadline) == (
        "nightly",
        "listed",
        7,
        2,
        28800,
    )
    # 'on' chooses by label and by name; 'desk' is left out.
    assert found.devices == (
        LabDevice("pi", "local:/tmp/pi", ("board",), "raspberry-pi-5", "ina226"),
        LabDevice("phone", "local:/tmp/phone"),
    )
    assert [(b.name, b.path, b.sha256) for b in found.bundles] == [
        ("one", tmp_path / "one", "one".ljust(64, "0")),
        ("two", tmp_path / "sub/two", "two".ljust(64, "0")),
    ]
    assert found.workloads == (
        Workload("short", (128,), (32,), (0, 64), 3, 0, on=("board",)),
        Workload("hot", sustained=600.0),
    )
    assert found.limits == Limits(40.0, 30.0, 0.5, 600.0, 0.05)


@pytest.mark.parametrize(
    ("old", "new", "said", "hint"),
    [
        ("seed = 7", "sead = 7", "unknown key 'sead'", "did you mean 'seed'?"),
        ("most_spread", "most_spred", "unknown key 'limits.most_spred'", "did you mean 'most_spread'?"),
        ("tg = [32]", "tq = [32]", "unknown key 'workload[0].tq'", "did you mean 'tg'?"),
        ('name = "phone"', 'name = "pi"', "the device with name 'pi' is there twice", "remove one"),
        (
            '"local:/tmp/phone"',
            '"local:/tmp/pi"',
            "the device with address 'local:/tmp/pi' is there twice",
            "remove one",
        ),
        ('on = ["board", "phone"]', 'on = ["bord"]', "'on' has 'bord'", "did you mean 'board'?"),
        ('on = ["board"]', 'on = ["phne"]', "'workload[0].on' has 'phne'", "did you mean 'phone'?"),
        ('address = "local"', 'address = "locl"', "unknown transport 'locl'", "did you mean 'local'?"),
        ('"raspberry-pi-5"', '"raspberry-pi-4"', "which is no target", "did you mean 'raspberry-pi-5'?"),
        ('"sub/two"', '"three"', "three does not exist", "edgekit build"),
        ('"sub/two"', '"sub/../one"', "two bundles are called 'one'", "rename"),
        ('sustained = "10m"', 'sustained = "10"', "must be a duration", "10m"),
        ('sustained = "10m"', 'sustained = "10m"\npp = [1]', "'workload[1].pp' does not apply", "remove 'pp'"),
        ('name = "hot"', 'name = "short"', "the workload 'short' is there twice", "rename"),
        ("tg = [32]", "tg = [0]", "'workload[0].tg' must be a list of numbers", "at least 1"),
        ("repetitions = 2", "repetitions = 0", "'repetitions' must be at least 1", "repetitions"),
        ('name = "desk"', 'name = "board"', "'board' is the name of a device and a label", "rename"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(tmp_path: Path, old: str, new: str, said: str, hint: str) -> None:
    assert WHOLE.count(old) >= 1
    with pytest.raises(ConfigError) as raised:
        lab(tmp_path, WHOLE.replace(old, new, 1))
    assert said in raised.value.message
    assert hint in raised.value.hint


def test_without_a_device_or_a_workload_there_is_no_lab(tmp_path: Path) -> None:
    for what in ("device", "workload"):
        head, _, _ = WHOLE.partition(f"[[{what}]]")
        with pytest.raises(ConfigError, match=rf"there is no \[\[{what}\]\]"):
            lab(tmp_path, head)
