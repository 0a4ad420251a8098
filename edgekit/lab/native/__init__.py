"""A runner in C++ for devices without Python, and for NPUs on phones: the same lines as the driver's."""

from edgekit.lab.native.building import MACHINES, build_runner, find_runtime
from edgekit.lab.native.record import measurement_of
from edgekit.lab.native.task import There, task_words

__all__ = ["MACHINES", "There", "build_runner", "find_runtime", "measurement_of", "task_words"]
