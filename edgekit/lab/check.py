"""Who is there, and whether they can measure: for `lab devices` and `lab check`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import words
from edgekit.errors import EdgekitError
from edgekit.lab.driver.device import open_device
from edgekit.lab.facts import read_facts, require_room
from edgekit.lab.file import load_lab
from edgekit.lab.lease import lease
from edgekit.lab.transport import connect
from edgekit.strangers.toml_table import is_path
from edgekit.types import Check, DeviceFacts, Progress, Sample, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEAST_DISK = 500_000_000
"""Bytes that the driver, its wheels and a small bundle take."""
_WARM = 45.0
"""Degrees Celsius above which a device at rest has been busy, or is in the sun."""
_BUSY = 0.5


@dataclass(frozen=True)
class Seen:
    """A device that was asked: what it says about itself, or why it does not answer."""

    name: str
    address: str
    facts: DeviceFacts | None
    error: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Meter:
    """A meter on a device; ``problem`` is "" if it can be read."""

    name: str
    problem: str


@dataclass(frozen=True)
class Meters:
    """The meters of a device."""

    found: tuple[Meter, ...]


@dataclass(frozen=True)
class Checked:
    """A device that was checked; ``sample`` and ``meters`` need the driver there."""

    facts: DeviceFacts
    sample: Sample | None
    meters: tuple[Meter, ...]
    checks: tuple[Check, ...]


_LIST_METERS = """import json
from edgekit.errors import EdgekitError
from edgekit.measure.energy import meters
found = []
for probe in meters():
    problem = ""
    try:
        probe.start()
        probe.stop()
    except EdgekitError as error:
        problem = error.message
    found.append({"name": probe.name, "problem": problem})
print(json.dumps({"found": found}))"""


def find_devices(asked: Sequence[str]) -> tuple[Seen, ...]:
    """Ask devices what they are, all at once.

    Args:
        asked: lab files, and addresses.

    Raises:
        ConfigError: a lab file is wrong. A device that does not answer is in the result.
    """
    named: list[tuple[str, str]] = []
    for word in asked:
        if is_path(word) and ":" not in word:
            named += [(d.name, d.address) for d in load_lab(Path(word), digest=lambda _: "").devices]
        else:
            named.append(("", word))
    with ThreadPoolExecutor(max(1, len(named))) as pool:
        return tuple(pool.map(lambda pair: _look(*pair), named))


def _look(name: str, address: str) -> Seen:
    try:
        with closing(connect(address)) as transport:
            return Seen(name, address, read_facts(transport))
    except EdgekitError as error:
        return Seen(name, address, None, error.message, error.hint)


def check_device(address: str, progress: Progress = silent) -> Checked:
    """Check whether a device can run bundles and measure them; brings the driver there if it has room.

    Raises:
        LabError: it refuses, or another uses it.
        LinkLost: nothing answers there.
    """
    with closing(connect(address)) as transport:
        facts = read_facts(transport)
        sample, meters = None, Meters(())
        trouble: tuple[Check, ...] = ()
        with lease(transport):
            try:
                require_room(transport, LEAST_DISK)
                with open_device(transport, progress) as device:
                    sample, meters = device.sample(), device.ask(Meters, _LIST_METERS)
            except EdgekitError as error:
                trouble = (Check("driver", "fail", error.message, error.hint),)
    driver = trouble or (Check("driver", "pass", "runs there"),)
    state = _state(sample) if sample else ()
    return Checked(facts, sample, meters.found, (*_facts(facts), *driver, *state, *_energy(sample, meters.found)))


def _facts(facts: DeviceFacts) -> Iterator[Check]:
    what = ", ".join(filter(None, (facts.model, facts.system, facts.machine, facts.libc)))
    yield Check("device", "info", what or "it does not say what it is")
    processor = words.processor(facts.processor, facts.processor_class)
    yield Check("processor", "info", f"{processor}, {facts.cores or 'an unknown number of'} cores")
    if facts.free_memory_bytes is not None:
        yield Check("memory", "info", f"{words.size(facts.free_memory_bytes)} free")
    if facts.free_disk_bytes is not None:
        yield Check("disk", "info", f"{words.size(facts.free_disk_bytes)} free")


def _state(sample: Sample) -> Iterator[Check]:
    """What a lab's limits look at."""
    hot = sample.hottest
    if hot is None:
        yield Check("temperature", "skip", "it tells none", "a lab file without 'start_below_celsius' can use it")
    else:
        zone = max(sample.zones, key=lambda z: z[1])[0]
        yield Check(
            "temperature",
            "pass" if hot < _WARM else "info",
            f"{hot:.1f} °C at {zone}, {len(sample.zones)} zones",
            "let it cool",
        )
    clocks = ", ".join(f"{clock:.0f}" for clock in sample.clocks_mhz) or "unknown"
    yield Check(
        "clocks", "info" if sample.clocks_mhz else "skip", f"{clocks} MHz, governor {sample.governor or 'unknown'}"
    )
    if sample.background is None:
        yield Check("load", "skip", "it tells none", "a lab file without 'most_background' can use it")
    else:
        quiet = sample.background < _BUSY
        said = f"other processes take {sample.background:.2f} cores"
        yield Check("load", "pass" if quiet else "info", said, "stop them")
    if sample.battery_percent is not None:
        on = {"": "on battery", None: "plug unknown"}.get(sample.plugged, f"plugged into {sample.plugged}")
        yield Check("battery", "info", f"{sample.battery_percent:g} %, {on}")


def _energy(sample: Sample | None, meters: Sequence[Meter]) -> Iterator[Check]:
    """Whether joules can be measured."""
    for meter in meters:
        yield Check(
            "meter", "skip" if meter.problem else "pass", f"{meter.name}{f': {meter.problem}' * bool(meter.problem)}"
        )
    if sample and sample.plugged and sample.battery_percent is not None:
        hint = "unplug it and use adb over Wi-Fi, or measure with a meter beside it"
        yield Check("energy", "skip", "none: it charges while it is plugged in", hint)
    elif not any(not meter.problem for meter in meters):
        yield Check("energy", "skip", "none: no meter there can be read", "use a meter beside it: docs/power.md")
