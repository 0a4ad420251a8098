"""Weights that a training run left: codes on the very grids that ship, and the float tensors beside them.

``learned.safetensors`` lies in a run's folder or a student's. A tensor on a grid is three, ``NAME.codes``,
``NAME.scales`` and ``NAME.zeros`` (if its grid has zero points), packed as MatMulNBits reads them; one in floating
point is ``NAME``. Its metadata have the recipe and the grids.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import ConfigError, EdgekitError
from edgekit.record import from_json, to_json
from edgekit.source.folder import Folder
from edgekit.source.safetensors_file import read_shard
from edgekit.strangers import read_plain
from edgekit.types import Grid, Recipe
from edgekit.types.layout import Layout
from edgekit.types.learning import RunCard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from edgekit.quantize import Packed
    from edgekit.types import Checkpoint, Weights

FILE, CARD = "learned.safetensors", "run.json"
"""What a run leaves: its tensors, and its card."""

FORMAT = "edgekit.learned.1"
LARGEST_CARD = 4 << 20
AGAIN = "train it again, or remove the file to build without it"


def save_learned(
    path: Path, packed: Mapping[str, Packed], grids: Mapping[str, Grid], floats: Mapping[str, NDArray[np.float32]],
    recipe: Recipe,
) -> None:  # fmt: skip
    """Write codes and float tensors; the file is whole or absent.

    Args:
        path: the file.
        packed: weights on grids, by name.
        grids: theirs.
        floats: the other tensors.
        recipe: with which the weights were drawn and the grids chosen.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[Any]] = {n: np.ascontiguousarray(a) for n, a in floats.items()}
    for name, p in packed.items():
        tensors[f"{name}.codes"], tensors[f"{name}.scales"] = p.codes, p.scales
        if p.zeros is not None:
            tensors[f"{name}.zeros"] = p.zeros
    listed = json.dumps({n: json.loads(to_json(g)) for n, g in grids.items()}, sort_keys=True)
    partial = path.with_name(f"{path.name}.partial")
    save_file(tensors, partial, metadata={"format": FORMAT, "recipe": to_json(recipe), "grids": listed})
    partial.replace(path)


@dataclass(frozen=True)
class Found:
    """The file of a run, and the recipe that it was made with."""

    path: Path
    recipe: Recipe


def find_learned(
    checkpoint: Checkpoint, wanted: Recipe, folder: Path | None, note: Callable[[str], None]
) -> Found | None:
    """The codes to build with: those in ``folder``, or in the checkpoint's own if they are of the wanted recipe.

    Raises:
        ConfigError: ``folder`` holds none, or they are of another recipe.
    """
    location = folder or Path(checkpoint.provenance.location)
    path = location / FILE
    if not path.is_file():
        if folder is None:
            return None
        raise ConfigError(f"{folder} has no {FILE}", "pass the folder of a finished training run")
    recipe, _ = _read_about(path)
    # A student's weights are on their grids as they are: there is nothing to smooth or rotate.
    same = replace(wanted, smooth=recipe.smooth, rotate=recipe.rotate)
    if same == recipe:
        return Found(path, recipe)
    if folder is None:
        note(f"{FILE} is not used: it was trained for recipe '{recipe.name}', not '{wanted.name}'")
        return None
    raise ConfigError(
        f"{path} was trained for recipe '{recipe.name}', not '{wanted.name}'",
        "build with the recipe it was trained for",
    )


def read_card(folder: Path) -> RunCard | None:
    """The card of the run that made a student or codes; None if there is none.

    Raises:
        ConfigError: it is damaged.
    """
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return from_json(RunCard, read_plain(path, LARGEST_CARD, error=ConfigError).decode())
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}", AGAIN) from error


class Learned:
    """The file of a run, opened: to quantize/ what rounds the weights, to the graph the source of float tensors."""

    def __init__(self, path: Path, weights: Weights) -> None:
        """Open and check.

        Args:
            path: the file.
            weights: of the model that it belongs to, as drawn with its recipe.

        Raises:
            ConfigError: damaged, of another format, or of a model with other shapes.
        """
        self._path, self._base = path, weights
        self.recipe, self.grids = _read_about(path)
        self._tensors = _read_tensors(path)
        self.sha256 = _hash(path)
        self.errors: dict[str, float] = {}
        known = set(weights.names())
        for name in {*self.grids, *(n for n in self._tensors if "." in n and n in known)} - known:
            raise ConfigError(f"{path}: the model has no tensor {name}", AGAIN)
        for name in known:
            if name in self.grids:
                self._check_packed(name)
            elif name in self._tensors:
                self._check_float(name)

    # --- what quantize/ asks ----------------------------------------------------------------------

    def policy(self, name: str, shape: tuple[int, ...]) -> Grid | None:
        """The grid of a tensor; None keeps it in floating point."""
        del shape
        return self.grids.get(name)

    def rounds(self, name: str) -> bool:
        """Whether the run left codes for a tensor."""
        return name in self.grids

    def take(self, name: str) -> Packed:
        """A tensor's codes; ``error`` is their distance from the model's own weight."""
        from edgekit.quantize import Packed, unpack  # loading it takes as long as hashing the source; see pipeline.py

        grid = self.grids[name]
        zeros = None if grid.symmetric else self._tensors[f"{name}.zeros"]
        packed = Packed(self._tensors[f"{name}.codes"], self._tensors[f"{name}.scales"], zeros, 0.0)
        wanted = self._base.read(name)
        return replace(packed, error=_distance(unpack(packed, wanted.shape, grid), wanted))

    # --- weights, with the float tensors that were trained ------------------------------------------

    def names(self) -> tuple[str, ...]:
        """All tensor names, in model order."""
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._base.shape(name)

    def stored(self, name: str) -> str:
        """The type in the checkpoint."""
        return self._base.stored(name)

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in the checkpoint."""
        return self._base.nbytes(name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) of a tensor: as trained, if it is a float tensor of the run."""
        if name in self._tensors:
            rows: NDArray[np.float32] = self._tensors[name][start:stop].copy()
            return rows
        return self._base.read(name, start, stop)

    def float_errors(self) -> dict[str, float]:
        """How far every trained float tensor is from the model's own, relative."""
        found = {n: _distance(self._tensors[n], self._base.read(n)) for n in self.names() if n in self._tensors}
        return {n: e for n, e in found.items() if e}

    # --- checks -----------------------------------------------------------------------------------

    def _check_packed(self, name: str) -> None:
        grid, shape = self.grids[name], self._base.shape(name)
        if grid.bits not in (2, 4, 8) or len(shape) != 2:
            raise ConfigError(f"{self._path}: {name} {list(shape)} is on no grid of {grid.bits} bits that ships", AGAIN)
        layout = Layout.of(shape, grid)
        scale = np.dtype(grid.scale)
        wanted = {
            f"{name}.codes": ((layout.rows, layout.blocks, layout.code_bytes(grid)), np.dtype(np.uint8)),
            f"{name}.scales": ((layout.rows, layout.scale_columns), scale),
        }
        if not grid.symmetric:
            wanted[f"{name}.zeros"] = ((layout.rows, layout.zero_bytes(grid)), np.dtype(np.uint8))
        for part, (size, kind) in wanted.items():
            found = self._tensors.get(part)
            if found is None or found.shape != size or found.dtype != kind:
                what = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise ConfigError(f"{self._path}: {part} is {what}, not {kind} {list(size)}", AGAIN)
        scales = self._tensors[f"{name}.scales"]
        if not np.isfinite(scales).all() or not scales.all():
            raise ConfigError(f"{self._path}: a scale of {name} is zero or not finite", AGAIN)

    def _check_float(self, name: str) -> None:
        found = self._tensors[name]
        if found.shape != self._base.shape(name) or found.dtype != np.float32 or not np.isfinite(found).all():
            wanted = f"finite float32 {list(self._base.shape(name))}"
            raise ConfigError(f"{self._path}: {name} is {found.dtype} {list(found.shape)}, not {wanted}", AGAIN)


def _read_about(path: Path) -> tuple[Recipe, dict[str, Grid]]:
    """The recipe and the grids, without the tensors, which may be gigabytes."""
    with _reading(path):
        read_shard(Folder(path.parent), path.name)  # as strict as for a checkpoint: holes, overlaps, sizes
        with _opened(path) as file:
            about = file.metadata() or {}
        if about.get("format") != FORMAT:
            raise ConfigError(f"{path} is not what a training run of this edgekit left", AGAIN)
        grids = json.loads(about.get("grids", "")).items()
        return from_json(Recipe, about.get("recipe", "")), {str(n): from_json(Grid, json.dumps(g)) for n, g in grids}


def _read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    with _reading(path), _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def _opened(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="numpy")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise ConfigError for whatever a stranger's file makes its readers raise."""
    from safetensors import SafetensorError

    try:
        yield
    except ConfigError:
        raise
    except (EdgekitError, SafetensorError, ValueError, AttributeError, TypeError, OSError) as error:
        said = error.message if isinstance(error, EdgekitError) else str(error)
        raise ConfigError(f"{path} cannot be read: {said}", AGAIN) from error


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _distance(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """||found - wanted|| / ||wanted||, in double precision."""
    total = float(np.linalg.norm(wanted.astype(np.float64)))
    return float(np.linalg.norm(found.astype(np.float64) - wanted)) / (total or 1.0)
