"""Train small models for devices: recover what quantization lost, distill a smaller student. The only owner of torch.

    graph        the float graph of a decoder as a torch module, one segment a layer
    fake_quant   weights on the grids that ship: codes, scales and zero points as parameters, and their exact packing
    losses       divergences from the teacher's distribution, without keeping logits
    shapes       from a share, numbers or megabytes to the shape of a student; prune, depth, width: cut a model to it
    heal         train a student to predict what its teacher predicts; distill: all of it; student: a plain folder
    loop         steps, the best point, resuming; the same on one process and on several

Needs the extra ``learn``.
"""

from importlib.util import find_spec

from edgekit.errors import LearnError


def require_packages() -> None:
    """Refuse to begin without the packages of the extra ``learn``.

    Raises:
        LearnError: one is missing.
    """
    for package in ("torch", "accelerate"):
        if find_spec(package) is None:
            raise LearnError(f"training needs {package}, which is not installed", "pip install 'edgekit[learn]'")
