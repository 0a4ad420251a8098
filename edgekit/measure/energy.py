"""Measure the energy of some work with the meters of this machine. Without a meter there is no number."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from edgekit.errors import MeasureError
from edgekit.measure import power
from edgekit.types import Energy, PowerProbe

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def meter_files() -> tuple[ModuleType, ...]:
    """The modules of ``power/``, by name."""
    names = sorted(m.name for m in iter_modules(power.__path__))
    return tuple(import_module(f"{power.__name__}.{name}") for name in names)


def meters(root: Path = Path("/")) -> list[PowerProbe]:
    """Every meter of this machine, whether usable or not: start() raises if it is not.

    Args:
        root: the folder that contains ``sys``.
    """
    return [probe for file in meter_files() for probe in file.find(root)]


def choose_meter(root: Path = Path("/")) -> tuple[PowerProbe | None, str]:
    """The default meter, or None and the reason why there is none.

    It is the first that can be read and is known to include the processor (``WHOLE``).
    """
    told: list[str] = []
    for file in meter_files():
        for probe in file.find(root):
            if not file.WHOLE:
                told.append(f"{probe.name} covers {file.COVERS}: used only if selected by name")
                continue
            try:
                probe.start()
                probe.stop()
            except MeasureError as error:
                told.append(f"{error.message} ({error.hint})" if error.hint else error.message)
            else:
                return probe, ""
    names = ", ".join(f.__name__.rpartition(".")[2] for f in meter_files())
    return None, "; ".join(told) or f"this machine has no supported meter ({names})"


def meter_energy(
    probe: PowerProbe, work: Callable[[], int], *, what: str = "the work", idle_seconds: float = 5.0
) -> Energy:
    """Measure the joules of ``work``, and idle power before and after it.

    gross = the meter's reading during the work; net = gross - mean(idle watts before, after) * seconds.

    Args:
        probe: the meter.
        work: does the work and returns the number of tokens processed. It should last seconds, since meters refresh 1
            to 10 times per second.
        what: a description of the work, for the formula.
        idle_seconds: how long to sleep for each idle reading.

    Returns:
        Energy with the probe's kind, or kind "none" with the reason if the meter cannot be read or does not move.
    """
    try:
        before = _idle_watts(probe, idle_seconds)
        probe.start()
        started = perf_counter()
        try:
            tokens = work()
        except BaseException:
            with suppress(MeasureError):
                probe.stop()
            raise
        seconds = perf_counter() - started
        gross = probe.stop()
        after = _idle_watts(probe, idle_seconds)
    except MeasureError as error:
        return Energy(
            "none", meter=probe.name, reason=f"{error.message} ({error.hint})" if error.hint else error.message
        )
    if gross <= 0:
        return Energy("none", meter=probe.name, reason=f"the meter did not move in {seconds:.1f} s of work")
    return Energy(
        kind=probe.kind,
        meter=probe.name,
        gross_joules=gross,
        net_joules=gross - (before + after) / 2 * seconds,
        idle_watts_before=before,
        idle_watts_after=after,
        seconds=seconds,
        tokens=tokens,
        formula=f"gross: the meter during {what}; net: gross - (idle before + idle after) / 2 * seconds",
    )


def _idle_watts(probe: PowerProbe, seconds: float) -> float:
    probe.start()
    started = perf_counter()
    sleep(seconds)
    elapsed = perf_counter() - started
    return probe.stop() / elapsed
