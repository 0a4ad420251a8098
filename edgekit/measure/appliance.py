"""Ask an appliance in the local network by HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import MeasureError

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS = 3.0
MOST_BYTES = 1 << 16


def missing(package: str, error: ImportError) -> MeasureError:
    """The error of an instrument's package that is not installed."""
    return MeasureError(f"{package} is not installed: {error}", "pip install 'edgekit[meters]'")


class Appliance:
    """An appliance that answers GET requests with JSON objects. One connection, kept open; no redirects, no proxy.

    Args:
        title: for messages.
        host: name or address, with a port if it is not 80.
        auth: user and password.

    Raises:
        MeasureError: httpx is missing.
    """

    def __init__(self, title: str, host: str) -> None:
        try:
            import httpx
        except ImportError as error:
            raise missing("httpx", error) from error
        self._title, self._host, self._httpx = title, host, httpx
        self._client = httpx.Client(timeout=SECONDS, follow_redirects=False, trust_env=False)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            MeasureError: it does not answer, refuses, or answers something else.
        """
        url = f"http://{self._host}/{path}"
        try:
            answer = self._client.get(url, params=dict(query) if query else None)
        except (self._httpx.HTTPError, self._httpx.InvalidURL) as error:
            raise MeasureError(
                f"{self._title} at {self._host} does not answer: {type(error).__name__}: {error}",
                "check its address and that it is in this network",
            ) from error
        if answer.status_code == 401:
            raise MeasureError(
                f"{self._title} at {self._host} wants a password", "switch its password off: there is no option for it"
            )
        try:
            found = answer.json() if answer.status_code == 200 and len(answer.content) <= MOST_BYTES else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise MeasureError(
                f"{self._title} at {self._host} answered {answer.status_code} to /{path}, and no JSON object",
                "check that this is the right address, and update its firmware",
            )
        return found


def number(found: Any, title: str, *keys: str | int) -> float:
    """The number at a path of keys in an answer.

    Raises:
        MeasureError: there is none.
    """
    value = found
    for key in keys:
        inside = value[key] if isinstance(value, dict) and key in value else None
        if isinstance(value, list) and isinstance(key, int) and key < len(value):
            inside = value[key]
        value = inside
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MeasureError(
            f"{title} tells no {'.'.join(map(str, keys))}", "use a model that meters power, and the right channel"
        )
    return float(value)
