"""Read the key of an endpoint, and keep it out of everything that is shown."""

from __future__ import annotations

import hmac
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from edgekit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.types.routing import Tier

MASK = "***"

_LONGEST = 8192
_TELLING = 6
"""Length of the pieces of a key that are masked: endpoints echo a part of it (``sk-ab***xyz``)."""


class Key:
    """A secret that repr, str, format, JSON and pickle do not show; ``reveal`` returns it for sending."""

    __slots__ = ("_value", "source")

    def __init__(self, value: str = "", source: str = "") -> None:
        self._value = value
        self.source = source

    def reveal(self) -> str:
        """Return the secret itself, for the authorization header."""
        return self._value

    def mask(self, text: str) -> str:
        """Mask the key, and every piece of it of six characters, in ``text``."""
        key = self._value
        if not key:
            return text
        text = text.replace(key, MASK)
        pieces = {key[i : i + _TELLING] for i in range(max(1, len(key) - _TELLING + 1))}
        return re.sub("|".join(map(re.escape, sorted(pieces))), MASK, text)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._value.encode(), other._value.encode())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Key({MASK} from {self.source})" if self else "Key(none)"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key cannot be copied or pickled")


def read_key(tier: Tier, environment: Mapping[str, str]) -> Key:
    """Read the key that the tier names, from no other place.

    Args:
        tier: ``key_env`` names a variable, or ``key_file`` a file; with neither there is no key.
        environment: the variables.

    Raises:
        ConfigError: the variable is not set or empty; the file is missing, not a plain file, another user's, readable
            by others, empty or of several lines; or the key holds a character that a header cannot contain.
    """
    if tier.key_env and tier.key_file:
        raise ConfigError(f"tier '{tier.name}': key_env and key_file are both set", "keep one of them")
    if tier.key_env:
        value = environment.get(tier.key_env, "").strip()
        if not value:
            raise ConfigError(
                f"tier '{tier.name}': the environment variable {tier.key_env} is not set, or empty",
                f"set it to the key (export {tier.key_env}=...), or use key_file",
            )
        return _checked(value, tier, tier.key_env)
    if tier.key_file:
        return _checked(_read_file(tier), tier, tier.key_file)
    return Key()


def _read_file(tier: Tier) -> str:
    where = f"tier '{tier.name}': key file {tier.key_file}"
    try:
        # Open before checking, so that the checked file is the one read. Non-blocking, as it may be a pipe.
        handle = os.open(Path(tier.key_file).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or "no such path"
        raise ConfigError(f"{where}: {reason}", "give the path of a file that holds only the key") from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(f"{where} is not a file", "give the path of a file that holds only the key")
        if about.st_uid != os.geteuid():
            raise ConfigError(f"{where} belongs to another user", "copy the key to your own file with mode 600")
        if about.st_mode & 0o077:
            mode = stat.S_IMODE(about.st_mode)
            raise ConfigError(f"{where} can be read by others (mode {mode:03o})", f"chmod 600 {tier.key_file}")
        data = os.read(handle, _LONGEST + 1)
    finally:
        os.close(handle)
    lines = data.strip().splitlines()
    if not lines:
        raise ConfigError(f"{where} is empty", "write the key into it, on one line")
    if len(lines) > 1 or len(data) > _LONGEST:
        raise ConfigError(f"{where} holds more than one line", "write only the key into it, on one line")
    try:
        return lines[0].decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{where} holds non-ASCII characters", "write only the key into it, on one line") from None


def _checked(value: str, tier: Tier, source: str) -> Key:
    """Check that a header can contain the key. The error does not quote it."""
    if not re.fullmatch(r"[!-~]+", value):
        problem = f"tier '{tier.name}': the key in {source} holds a space or a character that no key has"
        raise ConfigError(problem, "copy it again, without quotes and line breaks")
    return Key(value, source)
