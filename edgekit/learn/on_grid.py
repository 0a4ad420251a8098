"""A model on the grids that ship: its calibrated codes, what of it is trained, and the file that a build takes.

What ``recover`` trains a model with, and ``distill`` its student.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from edgekit.build.learned import FILE, Learned, save_learned
from edgekit.learn.fake_quant import GridWeight, round_to_int8
from edgekit.learn.graph import Decoder, FloatWeight
from edgekit.learn.plan import SHARES
from edgekit.quantize import Calibration, Kept, unpack
from edgekit.quantize.model import load_method
from edgekit.quantize.tensor import cores, quantize_weight

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgekit.types import Grid, GridPolicy, Progress, Recipe, Target, Weights

CALIBRATION = 8192
"""Tokens that codes are calibrated on before they are trained."""

WINDOW = 512
"""Tokens of a window."""


@dataclass(frozen=True)
class Drawn:
    """A model's float graph and weights as drawn with ``recipe``, the grids of the weights, and what they ship to."""

    graph: ir.Model
    weights: Weights
    policy: GridPolicy
    recipe: Recipe
    target: Target

    @property
    def grids(self) -> dict[str, Grid]:
        """The grids of the weights that have one."""
        found = {name: self.policy(name, self.weights.shape(name)) for name in self.weights.names()}
        return {name: grid for name, grid in found.items() if grid is not None}

    @property
    def accuracy_level(self) -> int:
        """Of MatMulNBits on the target."""
        level = self.target.accuracy_level
        return self.recipe.accuracy_level if level is None else level


def calibrate(drawn: Drawn, windows: NDArray[np.int64], folder: Path, progress: Progress) -> Learned:
    """The codes that training starts from, made once and kept in ``folder``, which lies in the folder of the run.

    Args:
        drawn: the model.
        windows: text [n,S]; the first CALIBRATION tokens count.
        folder: where codes are kept.
        progress: told the weights rounded.
    """
    path = folder / FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        recipe, weights, grids = drawn.recipe, drawn.weights, drawn.grids
        kept = Kept(folder / "rounded", (folder.parent / "key").read_text(encoding="utf-8"))
        text = windows[: -(-CALIBRATION // windows.shape[1])]
        walk = Calibration(
            drawn.graph.clone(), weights, drawn.policy, text, method=recipe.method, kept=kept, progress=progress
        )
        fit, packed = load_method(recipe.method), {}
        with ThreadPoolExecutor(cores()) as pool:
            for name, grid in grids.items():
                rounds = walk.rounds(name)
                packed[name] = walk.take(name) if rounds else quantize_weight(weights, name, grid, fit, pool)
        floats = {n: weights.read(n) for n in weights.names() if n not in grids}
        save_learned(path, packed, grids, floats, recipe)
    return Learned(path, drawn.weights)


def student_weights(start: Learned, weights: Weights) -> dict[str, nn.Module]:
    """Modules for every weight: grids of fewer than 8 bits and vectors are trained, the rest stays as it was."""
    modules: dict[str, nn.Module] = {}
    for name in weights.names():
        grid = start.grids.get(name)
        if grid is None:
            value = torch.from_numpy(start.read(name))
            modules[name] = FloatWeight(value, trained=value.ndim == 1)
        elif grid.bits < 8:
            modules[name] = GridWeight(start.take(name), weights.read(name), grid)
        else:
            modules[name] = FloatWeight(torch.from_numpy(on_device(start, name)), trained=False)
    return modules


def on_device(codes: Learned, name: str) -> NDArray[np.float32]:
    """A weight as the device reads it, float32: ``(code - zero) * scale``, or as it is if it has no grid."""
    if name not in codes.grids:
        return codes.read(name)
    return np.ascontiguousarray(unpack(codes.take(name), codes.shape(name), codes.grids[name]))


def decoder(drawn: Drawn, modules: dict[str, nn.Module]) -> Decoder:
    """The model with these weights, inputs rounded as the device does."""
    rounding = round_to_int8(drawn.grids) if drawn.accuracy_level == 4 else None
    return Decoder(drawn.graph, modules, rounding=rounding)


def parameter_groups(modules: dict[str, nn.Module]) -> dict[str, list[nn.Parameter]]:
    """Trained parameters by the names in SHARES."""
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in SHARES}
    for module in modules.values():
        if isinstance(module, GridWeight):
            groups["codes"].append(module.latent)
            groups["scales"].append(module.ratio)
            groups["zeros"].append(module.zero)
        elif isinstance(module, FloatWeight):
            groups["norms"].append(module.value)
    return {name: [p for p in found if p.requires_grad] for name, found in groups.items()}


def export(modules: dict[str, nn.Module], start: Learned, recipe: Recipe, path: Path) -> None:
    """Write the trained codes, and those that stayed, as a build takes them.

    Args:
        modules: the weights, trained.
        start: where they started.
        recipe: which the file is for.
        path: the file.
    """
    packed, floats = {}, {}
    for name, module in modules.items():
        if isinstance(module, GridWeight):
            packed[name] = module.pack()
        elif name in start.grids:
            packed[name] = start.take(name)
        elif isinstance(module, FloatWeight):
            floats[name] = module.value.detach().cpu().numpy()
    save_learned(path, packed, start.grids, floats, recipe)
