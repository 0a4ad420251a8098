"""Devices that exist only here, for trying the lab itself: 8 devices, 4 bundles, 3 workloads. Nothing is measured.

    python -m benchmarks.lab_emulated FOLDER [--page fleet.html] [--seconds-per-run 0.05]

Each device has a speed, an appetite and a temper: one gets hot, one is noisy, one is never there. ``FOLDER`` holds the
lab's results as a real lab leaves them; a second call goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import LabError, LinkLost
from edgekit.lab.file import Lab, LabBundle, LabDevice, Limits, Workload
from edgekit.lab.night import run_lab
from edgekit.lab.plan import Plan, plan_runs
from edgekit.lab.station import Outcome
from edgekit.lab.store import durations, opened
from edgekit.types import Energy, Environment, Measurement, Series
from edgekit.types.lab import DeviceFacts, Mark, Power, Rate, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgekit.types import LabRun


@dataclass(frozen=True)
class Temper:
    """What a device is like: tok/s with int4 weights, watts, share of the speed left when hot, noise, whether there."""

    speed: float
    watts: float
    hot: float = 1.0
    noise: float = 0.01
    there: bool = True


TEMPERS = {
    "pi5-a": Temper(9.0, 6.5),
    "pi5-b": Temper(8.8, 6.6, hot=0.7),
    "rk3588": Temper(11.5, 7.5),
    "jetson": Temper(21.0, 11.0),
    "phone-a": Temper(24.0, 3.8, hot=0.55),
    "phone-b": Temper(19.0, 3.5, noise=0.12),
    "imx8": Temper(2.4, 3.1),
    "laptop": Temper(38.0, 24.0, there=False),
}
BUNDLES = {"smollm2-int4": 1.0, "smollm2-int8": 0.62, "llama-1b-int4": 0.16, "qwen-0.5b-int4": 0.31}
"""Speed relative to the first."""
WORKLOADS = (
    Workload("chat", pp=(128,), tg=(32,), depth=(0, 128), repetitions=3),
    Workload("summary", pp=(512,), tg=(64,), depth=(512,), repetitions=3),
    Workload("hot", sustained=600.0),
)


def emulated_lab(**changes: object) -> Lab:
    """The lab file of these devices."""
    settings: dict[str, object] = {
        "name": "emulated",
        "devices": tuple(LabDevice(name, f"ssh:emulated@{name}", ("board",)) for name in TEMPERS),
        "bundles": tuple(
            LabBundle(name, Path("/emulated") / name, hashlib.sha256(name.encode()).hexdigest()) for name in BUNDLES
        ),
        "workloads": WORKLOADS,
        "limits": Limits(start_below_celsius=60.0, wait_at_most=0.0, most_spread=0.1),
        "repetitions": 3,
    }
    return Lab(**{**settings, **changes})  # type: ignore[arg-type]


class EmulatedStation:
    """A Station of a device that exists only here; its runs take ``seconds``."""

    def __init__(self, device: LabDevice, stopped: Callable[[], bool], seconds: float, drift: float) -> None:
        self.temper = TEMPERS[device.name]
        if not self.temper.there:
            raise LinkLost(f"{device.address} does not answer", "switch it on")
        self._stopped, self._seconds, self._drift, self._name = stopped, seconds, drift, device.name
        self._random = random.Random(f"{device.name}/{drift}")
        self._at = 1000.0
        self.facts = DeviceFacts(
            *(device.address, f"emulated-{device.name}", device.name, "Linux 6.6", "aarch64", "glibc 2.36", "3.11.2"),
            *("emulated", "dotprod", 4, 8_000_000_000, 6_000_000_000, 20_000_000_000, "boot-1"),
        )

    def sample(self) -> Sample:
        """A cool device."""
        return self._sample(self._at, 41.0, 2400.0)

    def execute(self, bundle: LabBundle, workload: Workload) -> Outcome:
        """Make numbers up."""
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            if self._stopped():
                raise LabError("stopped", "start the lab again")
            time.sleep(min(0.01, self._seconds))
        speed = self.temper.speed * BUNDLES[bundle.name] * self._drift * (1 + self._noise())
        return self._sustain(speed, workload) if workload.sustained else self._bench(bundle, speed, workload)

    def close(self) -> None:
        """Nothing is held."""

    def _noise(self) -> float:
        return self._random.gauss(0, self.temper.noise)

    def _sample(self, at: float, celsius: float, clock: float) -> Sample:
        return Sample(at, (("cpu-thermal", celsius),), (clock,) * 4, "schedutil", 80.0, "", 0.05, 6_000_000_000)

    def _sustain(self, speed: float, workload: Workload) -> Outcome:
        """Heat up with a time constant of 90 s, and slow down with it."""
        begin = self._at
        rates, samples, power = [], [], []
        at = begin
        while at < begin + workload.sustained:
            warm = 1 - exp(-(at - begin) / 90)
            kept = 1 - (1 - self.temper.hot) * warm
            now = speed * kept * (1 + 0.2 * self._noise())
            tokens = max(1, round(now))
            at += tokens / now
            rates.append(Rate(at, tokens / now, tokens))
            samples.append(self._sample(at, 41 + 42 * warm * self.temper.watts**0.1 / 1.2, 2400 * kept))
            power.append(Power(at, self.temper.watts * kept))
        self._at = begin + workload.sustained + 60
        marks = (Mark(begin, "sustain begin"), Mark(begin + workload.sustained, "sustain end"))
        joules = sum(p.value * rate.seconds for p, rate in zip(power, rates, strict=True))
        energy = self._energy(joules, sum(rate.tokens for rate in rates), workload.sustained)
        return Outcome("emulated", None, energy, marks, tuple(samples), tuple(rates), tuple(power))

    def _bench(self, bundle: LabBundle, speed: float, workload: Workload) -> Outcome:
        series, marks, samples = [], [], []
        at = self._at
        for n in workload.pp:
            prompts = tuple(8 * speed * (1 + 0.2 * self._noise()) for _ in range(workload.repetitions))
            series += [Series(f"pp{n}", "tok/s", prompts), Series(f"ttft{n}", "s", tuple(n / p for p in prompts))]
        for depth in workload.depth:
            for n in workload.tg:
                rate = speed / (1 + depth / 4000)
                steps = tuple(1 / (rate * (1 + 0.2 * self._noise())) for _ in range(n * workload.repetitions))
                rounds = [steps[k * n : (k + 1) * n] for k in range(workload.repetitions)]
                series.append(Series(f"tg{n}@{depth}", "tok/s", tuple(n / sum(r) for r in rounds)))
                series.append(Series(f"tpot@{depth}", "s", steps))
                for r in rounds:
                    marks += [Mark(at, f"tg{n}@{depth} begin"), Mark(at + sum(r), f"tg{n}@{depth} end")]
                    at += sum(r) + 0.5
                    samples.append(self._sample(at, 45.0, 2400.0))
        tokens = sum(workload.tg) * len(workload.depth) * workload.repetitions
        seconds = at - self._at
        power = tuple(Power(self._at + k / 10, self.temper.watts) for k in range(int(10 * seconds)))
        energy = self._energy(self.temper.watts * seconds, tokens, seconds)
        self._at = at + 60
        measurement = _measurement(self._name, bundle, tuple(series), energy)
        return Outcome("emulated", measurement, energy, tuple(marks), tuple(samples), (), power)

    def _energy(self, joules: float, tokens: int, seconds: float) -> Energy:
        net = 0.8 * joules
        return Energy("measured", "INA226 (emulated)", joules, net, 1.5, 1.6, seconds, tokens)


def _measurement(device: str, bundle: LabBundle, series: tuple[Series, ...], energy: Energy) -> Measurement:
    environment = Environment(
        *(device, "Linux 6.6", "emulated", 4, 4, 8_000_000_000, "schedutil", 2400.0, 45.0, None, None, 0.1),
        *((("edgekit", "0.1.0"), ("onnxruntime", "1.32.0")), "CPUExecutionProvider", ()),
    )
    words = ", ".join(s.name for s in series)
    return Measurement(
        *(2, bundle.sha256, bundle.name, "int4", "arm64", "2026-01-01T00:00:00+00:00", environment, words, 1, series),
        *(None, 400_000_000, 80_000_000, 46_080, 2.7e8, None, energy),
    )


def run_emulated(
    folder: Path,
    lab: Lab,
    *,
    seconds: float = 0.0,
    drift: float = 1.0,
    fresh: bool = False,
    told: Callable[[LabRun], None] | None = None,
) -> Plan:
    """Run a lab of emulated devices, or what is left of it."""
    with opened(folder) as store:
        night = store.begin(lab.name, fresh=fresh)
        plan = plan_runs(lab, night, durations(store.runs()))
        run_lab(plan, store, lambda device, stopped: EmulatedStation(device, stopped, seconds, drift), told=told)
    return plan


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--seconds-per-run", type=float, default=0.0)
    parser.add_argument("--drift", type=float, default=1.0, help="speed of all devices relative to the first night")
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args(arguments)
    began = time.monotonic()
    made: list[LabRun] = []
    plan = run_emulated(
        given.folder,
        emulated_lab(repetitions=given.repetitions),
        seconds=given.seconds_per_run,
        drift=given.drift,
        told=made.append,
    )
    print(f"{plan.night}: {len(made)} of {len(plan.runs)} runs made in {time.monotonic() - began:.1f} s (emulated)")
    if given.page:
        from edgekit.lab.results import summarize
        from edgekit.lab.store import read_folder
        from edgekit.report.fleet import write_fleet

        write_fleet(summarize(read_folder(given.folder), plan.lab.limits.most_spread), given.page)
        print(given.page)


if __name__ == "__main__":
    main(sys.argv[1:])
