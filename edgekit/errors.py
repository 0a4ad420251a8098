"""The exception hierarchy. Every error names the cause and has a hint with the next step.

::

    EdgekitError            exit 1: the user can fix it
    ├── SourceError         checkpoint missing, truncated, contradictory or unknown
    ├── ConfigError         unknown key or invalid value in a TOML file or an option
    ├── GraphError          the model cannot be expressed as a graph
    ├── QuantizeError       the weights cannot be quantized to the requested grid
    ├── LowerError          the target lacks something that no pass in lower/ replaces
    ├── BundleError         bundle changed, incomplete, newer, or not a bundle
    ├── RunError            prompt too long, runtime missing or failing
    ├── MeasureError        a meter or a workload that cannot be used
    ├── RouteError          a calibration, a data file or a document that routing cannot use
    ├── LearnError          a training run that cannot begin or go on
    ├── LabError            a device, a lab file or a meter's clock that the lab cannot use
    │   └── LinkLost        a device that cannot be reached any more
    └── CloudError          an endpoint's key, address, limits or timeouts
    GateFailed              exit 3: everything ran but a limit was not met

Only ``cli`` prints these. Any other exception is a bug in edgekit: traceback, exit 2.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Base class of all errors: a message with the cause, and a hint with the next step, one line each.

    Args:
        message: what is wrong, with the file, the key and the value.
        hint: the next step; never empty.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SourceError(EdgekitError):
    """The checkpoint is missing, damaged, contradictory or of an unknown kind."""


class ConfigError(EdgekitError):
    """A recipe, a target or an option has an invalid key or value."""


class GraphError(EdgekitError):
    """The model cannot be expressed as a graph."""


class QuantizeError(EdgekitError):
    """The weights cannot be quantized to the requested grid."""


class LowerError(EdgekitError):
    """The target lacks something that no pass in ``lower/`` replaces."""


class BundleError(EdgekitError):
    """The bundle is damaged, incomplete, newer than this edgekit, or not a bundle."""


class RunError(EdgekitError):
    """A session cannot be created, or the request does not fit it."""


class MeasureError(EdgekitError):
    """A meter, a text or a workload cannot be used."""


class RouteError(EdgekitError):
    """A calibration of another bundle, data without answers, or an unreadable document."""


class LearnError(EdgekitError):
    """A training run cannot begin or go on."""


class LabError(EdgekitError):
    """A device that is unknown, refuses or lacks something, or a lab file that cannot be used."""


class LinkLost(LabError):
    """The device cannot be reached any more. A run goes on once it can be."""


class CloudError(EdgekitError):
    """An endpoint failed. The message never contains a key or a prompt.

    Args:
        message: the tier and what happened.
        hint: the next step.
        status: the HTTP status, None if there was none.
        retry_after: seconds to wait, from the endpoint; None if it sent none.
        shown: whether part of the answer had already been shown.
    """

    def __init__(
        self,
        message: str,
        hint: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        shown: bool = False,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.retry_after = retry_after
        self.shown = shown


class GateFailed(EdgekitError):
    """Everything ran, but a limit was not met. Exit code 3."""


_LONGEST_WORD = 100


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Return ``"did you mean 'x'? "`` for the nearest known word, or ``""``."""
    from difflib import get_close_matches

    if len(word) > _LONGEST_WORD:
        return ""
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'? " if near else ""
