"""Read a lab file: which bundles run which workloads on which devices, and within which limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from edgekit import words
from edgekit.bundle import open_bundle
from edgekit.config.target import list_targets, load_target
from edgekit.errors import did_you_mean
from edgekit.lab import transport
from edgekit.ranges import PLAIN_NAME
from edgekit.strangers.toml_table import Table, is_path, keys_of
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

Order = Literal["interleaved", "listed"]
"""interleaved: each repetition runs everything once, in an order of its own. listed: as in the file."""

EXAMPLE = "see examples/lab/nightly.toml"
MOST = 10_000


@dataclass(frozen=True)
class LabDevice:
    """A device. ``target`` names the file in ``targets/`` that describes it, "" for none; ``meter``: "" for its own."""

    name: str
    address: str
    labels: tuple[str, ...] = ()
    target: str = ""
    meter: str = ""


@dataclass(frozen=True)
class LabBundle:
    """A bundle; its name is that of its folder."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Workload:
    """What is measured. With ``sustained`` seconds, decoding goes on for that long, and the rest does not apply.

    ``repetitions`` are rounds within a run. ``on``: names or labels of devices; empty: all.
    """

    name: str
    pp: tuple[int, ...] = (512,)
    tg: tuple[int, ...] = (128,)
    depth: tuple[int, ...] = (0,)
    repetitions: int = 5
    warmup: int = 1
    sustained: float = 0.0
    on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """A run starts only inside these; None is no limit.

    Attributes:
        start_below_celsius: of the hottest zone.
        least_battery: percent.
        most_background: cores' worth of time that other processes take.
        wait_at_most: seconds to wait for a device to meet the limits.
        most_spread: (largest - smallest) / median, within a run and between runs.
    """

    start_below_celsius: float | None = None
    least_battery: float | None = None
    most_background: float | None = None
    wait_at_most: float = 600.0
    most_spread: float = 0.1


@dataclass(frozen=True)
class Lab:
    """A lab file. ``deadline``: seconds after the start from which no run starts, None for none."""

    name: str
    devices: tuple[LabDevice, ...]
    bundles: tuple[LabBundle, ...]
    workloads: tuple[Workload, ...]
    limits: Limits
    order: Order = "interleaved"
    seed: int = 0
    repetitions: int = 3
    deadline: float | None = None


def load_lab(path: Path, digest: Callable[[Path], str] | None = None, progress: Progress = silent) -> Lab:
    """Read a lab file. Paths of bundles are relative to its folder.

    Args:
        path: the TOML file.
        digest: returns a bundle's sha256; by default it is opened, which checks its files.
        progress: called while bundles are checked.

    Raises:
        ConfigError: no such file, an unknown or missing key, an invalid value, a device or bundle twice, an unknown
            label, target or kind of address.
        BundleError: a bundle is missing or damaged.
    """
    table = Table.of(path, "lab", _KEYS, EXAMPLE)
    name = table.get("name", str)
    table.require(PLAIN_NAME.holds(name), "name", PLAIN_NAME.words, name)
    devices = tuple(map(_device, table.tables("device", keys_of(LabDevice))))
    _check_devices(table, devices)
    chosen = _select(table, "on", devices)
    workloads = tuple(map(_workload, table.tables("workload", _WORKLOAD_KEYS)))
    _check_workloads(table, workloads, devices)
    limits = _limits(table.table("limits", keys_of(Limits)) if table.has("limits") else None)
    return Lab(
        name=name,
        devices=chosen,
        bundles=_bundles(table, path.parent, digest or (lambda bundle: open_bundle(bundle, progress=progress).sha256)),
        workloads=workloads,
        limits=limits,
        order=table.choice("order", get_args(Order), "interleaved"),
        seed=table.whole("seed", at_least=0) if table.has("seed") else 0,
        repetitions=_count(table, "repetitions", 3),
        deadline=_duration(table, "deadline"),
    )


def pick_devices(devices: Sequence[LabDevice], wanted: Sequence[str]) -> tuple[LabDevice, ...]:
    """The devices whose name or one of whose labels is among the words, in their order; all for no words."""
    return tuple(d for d in devices if not wanted or {d.name, *d.labels} & set(wanted))


_KEYS = ("name", "bundles", "on", "device", "workload", "limits", "order", "seed", "repetitions", "deadline")
_WORKLOAD_KEYS = keys_of(Workload)


def _device(table: Table) -> LabDevice:
    device = LabDevice(
        name=table.get("name", str),
        address=table.get("address", str),
        labels=table.words("labels", default=()),
        **table.present(target=str, meter=str),
    )
    table.require(PLAIN_NAME.holds(device.name), "name", PLAIN_NAME.words, device.name)
    kind = device.address.partition(":")[0]
    if kind not in transport.names():
        hint = did_you_mean(kind, transport.names()) + f"known: {', '.join(transport.names())}"
        raise table.error(f"'{table.where}address' is '{device.address}': unknown transport '{kind[:40]}'", hint)
    if device.target and not is_path(device.target) and device.target not in list_targets():
        hint = f"{did_you_mean(device.target, list_targets())}see `edgekit targets list`"
        raise table.error(f"'{table.where}target' is '{device.target[:60]}', which is no target", hint)
    if device.target:
        load_target(device.target)
    return device


def _check_devices(table: Table, devices: Sequence[LabDevice]) -> None:
    if not devices:
        raise table.error("there is no [[device]]", f"add one with a name and an address; {EXAMPLE}")
    for what in ("name", "address"):
        seen: dict[str, str] = {}
        for device in devices:
            value = getattr(device, what)
            if value in seen:
                raise table.error(f"the device with {what} '{value}' is there twice", "remove one of them")
            seen[value] = device.name
    labels = {label for device in devices for label in device.labels}
    if both := sorted(labels & {d.name for d in devices}):
        raise table.error(f"'{both[0]}' is the name of a device and a label", "rename one of them")


def _select(table: Table, key: str, devices: Sequence[LabDevice]) -> tuple[LabDevice, ...]:
    """The devices that a list of names and labels means."""
    wanted: tuple[str, ...] = table.words(key, default=())
    known = sorted({word for d in devices for word in (d.name, *d.labels)})
    for word in sorted(set(wanted) - set(known)):
        hint = f"{did_you_mean(word, known)}known names and labels: {', '.join(known)}"
        raise table.error(f"'{table.where}{key}' has '{word}', which is no device and no label", hint)
    return pick_devices(devices, wanted)


def _bundles(table: Table, folder: Path, digest: Callable[[Path], str]) -> tuple[LabBundle, ...]:
    listed: tuple[str, ...] = table.words("bundles")
    paths = [(folder / word).resolve() for word in listed]
    if not paths:
        raise table.error("'bundles' is empty", "list folders that `edgekit build` made")
    for path in paths:
        if not path.is_dir():
            raise table.error(f"the bundle {path} does not exist", "make it with `edgekit build`, or correct 'bundles'")
    names = [path.name for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise table.error(f"two bundles are called '{twice[0]}'", "rename one of the folders, or remove it")
    return tuple(LabBundle(path.name, path, digest(path)) for path in paths)


def _workload(table: Table) -> Workload:
    name = table.get("name", str)
    table.require(PLAIN_NAME.holds(name), "name", PLAIN_NAME.words, name)
    sustained = _duration(table, "sustained") or 0.0
    for key in ("pp", "tg", "depth", "repetitions", "warmup"):
        if sustained and table.has(key):
            raise table.error(
                f"'{table.where}{key}' does not apply to a sustained workload", f"remove '{key}' or 'sustained'"
            )
    plain = Workload(name)
    return Workload(
        name=name,
        pp=_numbers(table, "pp", plain.pp, 1),
        tg=_numbers(table, "tg", plain.tg, 1),
        depth=_numbers(table, "depth", plain.depth, 0),
        repetitions=_count(table, "repetitions", plain.repetitions),
        warmup=_count(table, "warmup", plain.warmup, 0),
        sustained=sustained,
        on=table.words("on", default=()),
    )


def _check_workloads(table: Table, workloads: Sequence[Workload], devices: Sequence[LabDevice]) -> None:
    if not workloads:
        raise table.error("there is no [[workload]]", f"add one with a name; {EXAMPLE}")
    names = [workload.name for workload in workloads]
    if twice := [name for name in names if names.count(name) > 1]:
        raise table.error(f"the workload '{twice[0]}' is there twice", "rename one of them")
    for row in table.tables("workload", _WORKLOAD_KEYS):
        _select(row, "on", devices)


def _limits(table: Table | None) -> Limits:
    if table is None:
        return Limits()
    plain = Limits()
    return Limits(
        start_below_celsius=table.positive("start_below_celsius"),
        least_battery=table.number("least_battery", most=100),
        most_background=table.number("most_background"),
        wait_at_most=_duration(table, "wait_at_most") or plain.wait_at_most,
        most_spread=table.positive("most_spread") or plain.most_spread,
    )


def _numbers(table: Table, key: str, default: tuple[int, ...], least: int) -> tuple[int, ...]:
    values = table.get(key, list, list(default))
    fit = all(type(v) is int and least <= v <= 1 << 24 for v in values)
    table.require(fit and bool(values), key, f"a list of numbers of tokens, at least {least}", values)
    return tuple(values)


def _count(table: Table, key: str, default: int, least: int = 1) -> int:
    if not table.has(key):
        return default
    value = table.whole(key, at_least=least)
    table.require(value <= MOST, key, f"at most {MOST:,}", value)
    return value


def _duration(table: Table, key: str) -> float | None:
    """Seconds of a duration such as ``10m``, or None if the key is missing."""
    if not table.has(key):
        return None
    text = table.get(key, str)
    seconds = words.duration(text)
    table.require(seconds is not None, key, 'a duration such as "90s", "10m" or "8h"', text)
    return seconds
