"""The state of this machine for a routing decision, and the bundle's measurement if it applies to this machine."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from edgekit import __version__, words
from edgekit.config.measured import read_records
from edgekit.estimate.memory import RUNTIME_BYTES, held_bytes, workspace_bytes
from edgekit.estimate.needs import kv_bytes_per_position
from edgekit.host.processor import processor_name
from edgekit.measure import read_conditions
from edgekit.run import choose_settings, physical_cores
from edgekit.types.routing import DeviceState

if TYPE_CHECKING:
    from edgekit.types import Bundle, Manifest, Measurement

FRESH = 1.0
"""Seconds for which a reading of battery, temperature and free memory is reused."""


class Gauge:
    """Reads the state of this machine for one bundle. What does not change is computed once."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        loaded: bool,
        context: int | None = None,
        small_memory: bool = False,
        root: Path = Path("/"),
    ) -> None:
        """Take the first reading.

        Args:
            manifest: the bundle's manifest.
            loaded: whether its model is already in memory.
            context: tokens that the KV cache can hold; by default, and at most, the model's context length.
            small_memory: as in load_runner.
            root: the folder that holds ``proc`` and ``sys``.
        """
        spec = manifest.spec
        self._context = min(context or manifest.context_length, manifest.context_length)
        self._spec = spec
        self._row = kv_bytes_per_position(spec) * (1 if manifest.cpu_target.shared_kv else 2)
        self._held = 0 if loaded else RUNTIME_BYTES + held_bytes(manifest.tensors, tied=spec.tied)
        if not loaded and manifest.prefill:
            own = choose_settings(manifest, small_memory=small_memory).prompt_graph == "own"
            # A separate prompt graph holds a second copy of the weights, 8 bits each.
            self._held += sum(e.rows * e.columns for e in manifest.prefill.expansions) if own else 0
        self._root = root
        self._conditions = read_conditions(root)
        self._read_at = monotonic()

    @property
    def context(self) -> int:
        """The device's context length in tokens."""
        return self._context

    def memory_needed(self, tokens: int) -> int:
        """Estimate the further bytes that answering needs, with prompt and answer ``tokens`` long together."""
        tokens = min(tokens, self._context)
        return self._held + self._row * tokens + workspace_bytes(self._spec, tokens)

    def read(
        self,
        tokens: int,
        *,
        waiting: float = 0.0,
        spent_today: float = 0.0,
        unreachable: tuple[tuple[str, str], ...] = (),
    ) -> DeviceState:
        """Read the current state.

        Args:
            tokens: length of prompt and answer together.
            waiting: seconds until the model is free.
            spent_today: money spent, in the policy's currency.
            unreachable: tiers known to be down, each with the reason.
        """
        now = monotonic()
        if now - self._read_at > FRESH:
            self._conditions, self._read_at = read_conditions(self._root), now
        seen = self._conditions
        return DeviceState(
            context=self._context,
            free_memory=seen.free_memory,
            memory_needed=self.memory_needed(tokens),
            battery_percent=seen.battery_percent,
            on_battery=seen.on_battery,
            celsius=seen.temperature_c,
            waiting=waiting,
            spent_today=spent_today,
            unreachable=unreachable,
        )


def read_state(manifest: Manifest, tokens: int, *, loaded: bool = False, root: Path = Path("/")) -> DeviceState:
    """Read the state of this machine once, with an empty queue and nothing spent. Args: as Gauge and Gauge.read."""
    return Gauge(manifest, loaded=loaded, root=root).read(tokens)


def find_measurement(bundle: Bundle, root: Path = Path("/")) -> tuple[Measurement | None, str]:
    """Return the bundle's measurement if it applies to its files and this machine, and a description or why not.

    If the one in the bundle does not, one that a lab took on this kind of machine does. The minor versions of edgekit
    and ONNX Runtime must agree: kernels, and what is measured, change with them.
    """
    own, why = _applies(bundle.manifest.latency, bundle, root)
    if own:
        return own, why
    for record in read_records(bundle.sha256):
        found, said = _applies(record.measurement, bundle, root)
        if found:
            return found, f"{said}, by a lab on {record.device}"
    return None, why


def _applies(measured: Measurement | None, bundle: Bundle, root: Path) -> tuple[Measurement | None, str]:
    """Return a measurement if it applies, and a description or why not."""
    if measured is None:
        return None, "none recorded (run `edgekit bench --record`)"
    if measured.bundle_sha256 != bundle.sha256:
        return None, "the recorded one is of other files (run `edgekit bench --record` again)"
    cpu, cores = processor_name(root), physical_cores(root)
    there = measured.environment
    if (there.cpu, there.cores) != (cpu, cores):
        return None, (
            f"the recorded one is from {_machine_words(there.cpu, there.cores)}, and this machine is "
            f"{_machine_words(cpu, cores)} (run `edgekit bench --record` here)"
        )
    was = dict(there.runtime)
    for name, now in (("edgekit", __version__), ("onnxruntime", version("onnxruntime"))):
        if words.minor_version(was.get(name, "")) != words.minor_version(now):
            return None, (
                f"the recorded one is from {name} {was.get(name) or 'of an unknown version'}, and this is {now} "
                "(run `edgekit bench --record` again)"
            )
    return measured, f"taken at {measured.time} on {_machine_words(cpu, cores)}"


def _machine_words(cpu: str, cores: int) -> str:
    return f"{cpu or 'an unknown processor'} with {cores} {'core' if cores == 1 else 'cores'}"
