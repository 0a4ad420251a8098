"""The machine as a decision sees it, and which of a bundle's numbers are of it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from edgekit import __version__, words
from edgekit.estimate.memory import RUNTIME_BYTES, held_bytes, workspace_bytes
from edgekit.estimate.needs import kv_bytes_per_position
from edgekit.host.processor import processor_name
from edgekit.measure import read_conditions
from edgekit.run import choose_settings, physical_cores
from edgekit.types.routing import DeviceState

if TYPE_CHECKING:
    from edgekit.types import Bundle, Manifest, Measurement

FRESH = 1.0
"""Seconds for which battery, temperature and free memory count as read just now."""


class Gauge:
    """Reads the state of this machine for one bundle. What does not change is worked out once."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        loaded: bool,
        context: int | None = None,
        small_memory: bool = False,
        root: Path = Path("/"),
    ) -> None:
        """Read once.

        Args:
            manifest: the bundle's.
            loaded: its model is in memory already.
            context: tokens that its cache can hold; by default, and at most, the model's.
            small_memory: as in load_runner.
            root: where ``proc`` and ``sys`` are looked for.
        """
        spec = manifest.spec
        self._context = min(context or manifest.context_length, manifest.context_length)
        self._spec = spec
        self._row = kv_bytes_per_position(spec) * (1 if manifest.cpu_target.shared_kv else 2)
        self._held = 0 if loaded else RUNTIME_BYTES + held_bytes(manifest.tensors, tied=spec.tied)
        if not loaded and manifest.prefill:
            own = choose_settings(manifest, small_memory=small_memory).prompt_graph == "own"
            # The prompts' graph holds its weights once more, 8 bits each.
            self._held += sum(e.rows * e.columns for e in manifest.prefill.expansions) if own else 0
        self._root = root
        self._conditions = read_conditions(root)
        self._read_at = monotonic()

    @property
    def context(self) -> int:
        """Tokens that fit the device."""
        return self._context

    def memory_needed(self, tokens: int) -> int:
        """Bytes that an answer takes beyond what is held, prompt and answer ``tokens`` long: footprint's estimate."""
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
        """The state now.

        Args:
            tokens: of prompt and answer together.
            waiting: seconds until the model is free.
            spent_today: money, in the policy's currency.
            unreachable: tiers known to be down, with the reason.
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
    """The state of this machine once, with nobody waiting and nothing spent. Arguments as Gauge's and its read's."""
    return Gauge(manifest, loaded=loaded, root=root).read(tokens)


def find_measurement(bundle: Bundle, root: Path = Path("/")) -> tuple[Measurement | None, str]:
    """The bundle's measurement if it is of these very files on this kind of machine, and in words which, or why not.

    Of edgekit and of ONNX Runtime, whose kernels it timed, the minor version counts.
    """
    measured = bundle.manifest.latency
    if measured is None:
        return None, "none is recorded: `edgekit bench --record` makes one"
    if measured.bundle_sha256 != bundle.sha256:
        return None, "the one recorded is of other files: `edgekit bench --record` makes a new one"
    cpu, cores = processor_name(root), physical_cores(root)
    there = measured.environment
    if (there.cpu, there.cores) != (cpu, cores):
        return None, (
            f"the one recorded is of {_machine_words(there.cpu, there.cores)}, this is {_machine_words(cpu, cores)}: "
            "`edgekit bench --record` makes one of this machine"
        )
    was = dict(there.runtime)
    for name, now in (("edgekit", __version__), ("onnxruntime", version("onnxruntime"))):
        if words.minor_version(was.get(name, "")) != words.minor_version(now):
            return None, (
                f"the one recorded is of {name} {was.get(name) or 'of an unknown version'}, and this is {now}: "
                "`edgekit bench --record` makes one with this version"
            )
    return measured, f"of {measured.time}, on {_machine_words(cpu, cores)}"


def _machine_words(cpu: str, cores: int) -> str:
    return f"{cpu or 'an unknown processor'} with {cores} {'core' if cores == 1 else 'cores'}"
