"""From what a user wishes for to the shape of a student: a share of the decoder, numbers, or megabytes when quantized.

The decoder is its layers' matrices: token table and head are the tokenizer's, and stay as they are.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from edgekit.errors import LearnError
from edgekit.record import to_json
from edgekit.source import OutlineWeights, tensor_shapes
from edgekit.words import size as shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.types import Checkpoint, ModelSpec, Recipe, Target

FFN_STEP = 64
"""Feed-forward channels are kept in multiples of this: the largest block of the recipes that ship, and of the kernels'
tiles; a row that ends inside a block is padded."""

MANIFEST_BYTES = 300
"""Of edgekit.json for each tensor: 273 tensors take 74 kB."""

NARROWEST = 0.75
"""Share of the channels that is kept while there are layers to leave out. SmolLM2-135M without a quarter of them is
0.37 nats a token from itself (WikiText-2, not healed), without a fifth of its layers, as many weights, about 1."""

DEEPEST_CUT = 0.1
"""Where cutting ends, in the same units: about a tenth of layers and of channels."""


@dataclass(frozen=True)
class Shape:
    """Layers, feed-forward channels in each, and key-value heads in each with all their queries."""

    layers: int
    ffn: int
    kv_heads: int

    @classmethod
    def of(cls, spec: ModelSpec) -> Shape:
        """A model's own."""
        return cls(spec.layers, spec.intermediate_size, spec.kv_heads)

    def spec(self, teacher: ModelSpec) -> ModelSpec:
        """The spec of a student; which layers it has is not decided yet: it gets the first ones' windows and rope."""
        return replace(
            teacher,
            layers=self.layers,
            intermediate_size=self.ffn,
            heads=teacher.heads // teacher.kv_heads * self.kv_heads,
            kv_heads=self.kv_heads,
            windows=teacher.windows[: self.layers],
            rotary=teacher.rotary[: self.layers],
        )

    def decoder_weights(self, teacher: ModelSpec) -> int:
        """Weights in the layers' matrices."""
        shapes = tensor_shapes(self.spec(teacher))
        return sum(prod(s) for name, s in shapes.items() if name.startswith("model.layers.") and len(s) == 2)


def shape_of(
    teacher: ModelSpec, *, layers: int | None = None, ffn: int | None = None, kv_heads: int | None = None
) -> Shape:
    """The shape with these numbers, the teacher's where none is given.

    Raises:
        LearnError: more than the teacher has, or a number that no kernel takes well.
    """
    own = Shape.of(teacher)
    wanted = Shape(layers or own.layers, ffn or own.ffn, kv_heads or own.kv_heads)
    for name, value, most in (
        ("layers", wanted.layers, own.layers),
        ("ffn", wanted.ffn, own.ffn),
        ("kv_heads", wanted.kv_heads, own.kv_heads),
    ):
        if not 1 <= value <= most:
            raise LearnError(
                f"`{name}={value}`: the teacher has {most}, and a student is no larger", f"give 1 to {most}"
            )
    if wanted.ffn != own.ffn and wanted.ffn % FFN_STEP:
        near = max(FFN_STEP, round(wanted.ffn / FFN_STEP) * FFN_STEP)
        raise LearnError(
            f"`ffn={wanted.ffn}` is not a multiple of {FFN_STEP}, the blocks of grids and kernels", f"give `ffn={near}`"
        )
    if wanted == own:
        raise LearnError("the student would be its teacher", "give fewer `layers`, `ffn` or `kv_heads`")
    return wanted


def shape_for_share(teacher: ModelSpec, share: float) -> Shape:
    """The largest shape with at most this share (0..1) of the decoder's weights.

    Raises:
        LearnError: the share is not between those of the smallest shape and the teacher.
    """
    most = Shape.of(teacher).decoder_weights(teacher)
    path = cuts(teacher)
    sizes = [shape.decoder_weights(teacher) / most for shape in path]
    at = bisect_right(sizes, share + 1e-9) - 1
    if at < 0 or share >= 1:
        raise LearnError(
            f"`keep={share:g}`: no student has this share of its teacher", f"give {sizes[0]:.2f} to {sizes[-1]:.2f}"
        )
    return path[at]


def shape_for_size(teacher: Checkpoint, recipe: Recipe, target: Target, most: int) -> Shape:
    """The largest shape whose bundle has at most this many bytes, all files included.

    Args:
        teacher: the model; its weights are not read.
        recipe: how the student will be quantized.
        target: what it will be built for.
        most: bytes.

    Raises:
        LearnError: no shape is that small, or the teacher itself is.
    """
    if recipe.size_bytes is not None or recipe.bits_per_weight is not None:
        raise LearnError(f"recipe '{recipe.name}' has a size of its own", "give a recipe without a budget")
    if bundle_bytes(teacher, Shape.of(teacher.spec), recipe, target) <= most:
        raise LearnError(
            f"the teacher itself takes no more than {shown(most)} with recipe '{recipe.name}'", "build the teacher"
        )
    path = cuts(teacher.spec)
    at = bisect_right(path, most, key=lambda shape: bundle_bytes(teacher, shape, recipe, target)) - 1
    if at < 0:
        least = bundle_bytes(teacher, path[0], recipe, target)
        raise LearnError(
            f"no student of {shown(most)}: the smallest, {path[0].layers} layers with {path[0].ffn} channels, takes "
            f"{shown(least)} with recipe '{recipe.name}'",
            f"give `size_mb={least / 1e6 + 0.05:.1f}` or more, or a recipe with fewer bits",
        )
    return path[at]


def bundle_bytes(teacher: Checkpoint, shape: Shape, recipe: Recipe, target: Target) -> int:
    """Bytes of all files of the bundle that a build of the student writes, within a few kB."""
    from edgekit.inspect.plan import plan_bundle  # loads onnx_ir

    spec = shape.spec(teacher.spec)
    plan = plan_bundle(
        replace(teacher, spec=spec, weights=OutlineWeights("student", tensor_shapes(spec))), recipe, target
    )
    manifest = MANIFEST_BYTES * len(plan.tensors) + len(to_json(plan.prefill))
    return plan.size.graph + plan.size.data + plan.size.beside + manifest


def cuts(teacher: ModelSpec) -> Sequence[Shape]:
    """The shapes that are considered, the smallest first.

    Channels go first, to NARROWEST of them, and from there layers and channels in equal shares. Key-value heads are all
    kept: without some the cache is smaller, not much of the file.
    """
    shapes = {_cut(teacher, share / 1000) for share in range(int(1000 * DEEPEST_CUT), 1000)}
    ordered = sorted(shapes, key=lambda shape: (shape.decoder_weights(teacher), shape.layers))
    return [shape for shape in ordered if shape != Shape.of(teacher)]


def _cut(teacher: ModelSpec, share: float) -> Shape:
    deeper = min(1.0, share / NARROWEST)
    layers = max(1, round(teacher.layers * deeper))
    channels = max(share, NARROWEST) * deeper * teacher.intermediate_size
    ffn = max(FFN_STEP, round(channels / FFN_STEP) * FFN_STEP)
    return Shape(layers, min(ffn, teacher.intermediate_size), teacher.kv_heads)
