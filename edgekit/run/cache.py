"""The key/value cache: preallocated, doubled when full, bound without copies.

The target decides which one is used: InPlaceCache if the graph may write present into past's buffer, AppendCache if it
returns past and new positions as a new tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from edgekit.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

FIRST_POSITIONS = 256
"""Positions allocated at first. Doubling costs a few copies per session; allocating the whole context of a long-context
model at once would take gigabytes that a short chat never uses."""

TIGHT_STEP = 128
"""Positions added at a time to save memory; copying the cache costs a hundredth of the time for that many tokens."""

PAST = "past_key_values."


@dataclass(frozen=True)
class Slot:
    """One past input and its present output, [1, heads, positions, size]: names, heads, head size and type."""

    past: str
    present: str
    heads: int
    size: int
    dtype: type[np.floating[Any]]


def find_slots(inputs: list[Any]) -> tuple[Slot, ...]:
    """The cache's slots among a session's inputs. Raises RunError if heads or head size are not fixed."""
    slots = []
    for value in inputs:
        if value.name.startswith(PAST):
            _, heads, _, size = value.shape
            if not isinstance(heads, int) or not isinstance(size, int) or value.type not in DTYPES:
                raise RunError(
                    f"graph input '{value.name}' is {value.type} {value.shape}, but its heads and head size must be "
                    "fixed and its type a float",
                    hint="rebuild the bundle with `edgekit build`",
                )
            present = "present." + value.name.removeprefix(PAST)
            slots.append(Slot(value.name, present, heads, size, DTYPES[value.type]))
    return tuple(slots)


class Cache(Protocol):
    """The interface of a cache."""

    @property
    def length(self) -> int:
        """Positions held."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""

    def bind(self, binding: Any, total: int) -> None:
        """Bind past and present for a run that ends with ``total`` positions."""

    def advance(self, total: int) -> None:
        """Record that the bound run has ended: the cache now holds ``total`` positions."""

    def rewind(self, length: int) -> None:
        """Forget the positions from ``length`` on."""

    def clear(self) -> None:
        """Forget everything and free the memory."""


def _room_for(total: int, limit: int, *, tight: bool = False) -> int:
    """The capacity for ``total`` positions: FIRST_POSITIONS doubled, or a multiple of TIGHT_STEP; at most ``limit``."""
    if tight:
        return min(-(-total // TIGHT_STEP) * TIGHT_STEP, limit)
    capacity = FIRST_POSITIONS
    while capacity < total:
        capacity *= 2
    return min(capacity, limit)


class InPlaceCache:
    """One buffer [1, heads, capacity, size] per slot, bound as past and present; the graph writes to it in place."""

    def __init__(self, slots: tuple[Slot, ...], limit: int, *, tight: bool = False) -> None:
        """Args: the slots; the maximum number of positions; ``tight``: grow in small steps, copy more often."""
        self._slots = slots
        self._limit = limit
        self._tight = tight
        self.clear()

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self.length = 0
        self._capacity = 0
        self._buffers: list[NDArray[Any]] = []
        self._bound: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def bind(self, binding: Any, total: int) -> None:
        """Bind past and present for a run that ends with ``total`` positions."""
        if total > self._capacity:
            self._grow(_room_for(total, self._limit, tight=self._tight))
        if id(binding) in self._bound:
            return
        for slot, buffer in zip(self._slots, self._buffers, strict=True):
            binding.bind_input(slot.past, "cpu", 0, slot.dtype, buffer.shape, buffer.ctypes.data)
            binding.bind_output(slot.present, "cpu", 0, slot.dtype, buffer.shape, buffer.ctypes.data)
        self._bound.add(id(binding))

    def advance(self, total: int) -> None:
        """Record that the bound run has ended: the cache now holds ``total`` positions."""
        self.length = total

    def rewind(self, length: int) -> None:
        """Forget the positions from ``length`` on."""
        self.length = length

    def _grow(self, capacity: int) -> None:
        self._bound.clear()
        self._capacity = 0  # if Ctrl-C interrupts growing, it is repeated the next time
        if not self._buffers:
            self._buffers = [np.empty((1, slot.heads, 0, slot.size), slot.dtype) for slot in self._slots]
        for i, slot in enumerate(self._slots):
            # One at a time: memory holds both copies of one slot, not of all.
            buffer = np.zeros((1, slot.heads, capacity, slot.size), slot.dtype)
            buffer[:, :, : self.length] = self._buffers[i][:, :, : self.length]
            self._buffers[i] = buffer
        self._capacity = capacity


class _Flat(NamedTuple):
    """Memory and its address, which numpy takes a microsecond to tell."""

    array: NDArray[Any]
    address: int


def _flat(array: NDArray[Any]) -> _Flat:
    return _Flat(array, array.ctypes.data)


class AppendCache:
    """Two flat buffers per slot that swap roles after each run.

    Past [1, heads, P, size] is read from one, present [1, heads, T, size] is written to the other.
    """

    def __init__(self, slots: tuple[Slot, ...], limit: int) -> None:
        self._slots = slots
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget everything and free the memory."""
        empty = [_flat(np.empty(1, slot.dtype)) for slot in self._slots]
        # One assignment changes past, spare and length, so that Ctrl-C cannot separate them.
        self._state: tuple[list[_Flat], list[_Flat], int] = (empty, list(empty), 0)

    @property
    def length(self) -> int:
        """Positions held."""
        return self._state[2]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        past, spare, _ = self._state
        return sum(buffer.array.nbytes for buffer in (*past, *spare))

    def bind(self, binding: Any, total: int) -> None:
        """Bind past and present for a run that ends with ``total`` positions."""
        past, spare, length = self._state
        for i, slot in enumerate(self._slots):
            needed = slot.heads * total * slot.size
            if spare[i].array.size < needed:
                room = slot.heads * _room_for(total, self._limit) * slot.size
                spare[i] = _flat(np.empty(room, slot.dtype))
            shape = (1, slot.heads, length, slot.size)
            binding.bind_input(slot.past, "cpu", 0, slot.dtype, shape, past[i].address)
            shape = (1, slot.heads, total, slot.size)
            binding.bind_output(slot.present, "cpu", 0, slot.dtype, shape, spare[i].address)

    def advance(self, total: int) -> None:
        """Record that the bound run has ended: the cache now holds ``total`` positions."""
        past, spare, _ = self._state
        self._state = (spare, past, total)

    def rewind(self, length: int) -> None:
        """Forget the positions from ``length`` on. Copies, since heads are stored one after another."""
        past, spare, held = self._state
        if length == held:
            return
        kept = []
        for slot, buffer in zip(self._slots, past, strict=True):
            positions = buffer.array[: slot.heads * held * slot.size].reshape(slot.heads, held, slot.size)
            kept.append(_flat(positions[:, :length].flatten() if length else np.empty(1, slot.dtype)))
        self._state = (kept, spare, length)
