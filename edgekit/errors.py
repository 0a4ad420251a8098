"""What can go wrong, as one tree. Every error names the culprit and carries the next step.

::

    EdgekitError            exit 1: the user can fix it
    ├── SourceError         the checkpoint: missing, truncated, contradictory, unknown
    ├── ConfigError         a TOML file or an option: unknown key, impossible value
    ├── GraphError          the model cannot be expressed as a graph
    ├── QuantizeError       the weights cannot be put on the grid asked for
    ├── LowerError          the target lacks something that no file in lower/ cures
    ├── BundleError         the directory that ships: changed, incomplete, not ours, newer
    ├── RunError            the session: prompt too long, runtime missing or refusing
    ├── MeasureError        a meter or a workload that cannot be used
    ├── RouteError          a calibration, a data file or a document that routing cannot use
    └── CloudError          an endpoint: its key, its address, its limits, its silence
    GateFailed              exit 3: everything worked and a limit was not met

Only ``cli`` prints these. Anything that is not an EdgekitError is our bug: traceback, exit 2.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """One line that names the culprit, and one that says what to do.

    Args:
        message: what is wrong, with the file, the key and the value.
        hint: the next step; never empty.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SourceError(EdgekitError):
    """The checkpoint is missing, damaged, contradictory or of a kind we do not know."""


class ConfigError(EdgekitError):
    """A recipe, a target or an option holds a key or a value that is not allowed."""


class GraphError(EdgekitError):
    """The model cannot be expressed as a graph."""


class QuantizeError(EdgekitError):
    """The weights cannot be put on the grid asked for."""


class LowerError(EdgekitError):
    """The target lacks something that no file in ``lower/`` cures."""


class BundleError(EdgekitError):
    """The bundle is damaged, incomplete, newer than this edgekit, or not a bundle."""


class RunError(EdgekitError):
    """A session cannot be made or the request does not fit it."""


class MeasureError(EdgekitError):
    """A meter, a text or a workload cannot be used."""


class RouteError(EdgekitError):
    """A calibration of something else, data without answers, a document that cannot be read."""


class CloudError(EdgekitError):
    """An endpoint did not answer as it should. Never holds a key or a prompt.

    Args:
        message: which tier, and what happened.
        hint: the next step.
        status: the HTTP status, None where there was none.
        retry_after: seconds the endpoint asks us to wait, None where it does not say.
        shown: text of this answer had been given out before it broke off.
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
    """Everything ran and a limit was not met. Exit code 3."""


_LONGEST_WORD = 100


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """Return ``"did you mean 'x'? "`` for the nearest known word, or ``""``."""
    from difflib import get_close_matches

    if len(word) > _LONGEST_WORD:
        return ""
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'? " if near else ""
