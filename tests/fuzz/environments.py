"""Variables that edgekit reads, and those that change libraries under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case
from tests.fuzz.values import TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_NAMES = (
    "EDGEKIT_CACHE", "EDGEKIT_TOKEN", "EDGEKIT_OPTIMUM_PYTHON", "COLUMNS", "LINES", "TERM", "HOME", "XDG_CACHE_HOME",
    "XDG_DATA_HOME", "TMPDIR", "HF_HOME", "HF_TOKEN", "LANG", "LC_ALL", "NO_COLOR", "FORCE_COLOR", "TZ",
    "SOURCE_DATE_EPOCH", "OMP_NUM_THREADS", "SSLKEYLOGFILE", "SSL_CERT_FILE", "HTTP_PROXY", "PYTHONUTF8",
)  # fmt: skip
_COMMANDS = (
    ("doctor",),
    ("inspect", "bundle"),
    ("run", "bundle", "Hello", "--max-new-tokens", "2"),
    ("build", "model", "-o", "out/made"),
    ("fit", "model", "--target", "cpu"),
    ("route", "explain", "bundle", "Hello", "--policy", "policy/plain.toml"),
    ("inspect", "no-such/model"),
)
_VALUES = (*(t for t in TEXTS if "\x00" not in t), "0", "-1", "1", "99999999999999999999", "/dev/null", "/proc/1/x")


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """One variable with a strange value."""
    del seed

    def case(command: tuple[str, ...], name: str, value: str) -> Case:
        named = f"environment: {name}={value[:30]!a}: {command[0]}"
        # Where the user says his cache or home is, edgekit writes.
        return Case(named, command, ("bundle", "model", "policy"), environment=((name, value),),
                    writes=(value,) if _is_free(value) else ())  # fmt: skip

    return st.builds(case, st.sampled_from(_COMMANDS), st.sampled_from(_NAMES), st.sampled_from(_VALUES))


def _is_free(value: str) -> bool:
    return bool(value.strip("./- ")) and not value.startswith(("/", "~", ".."))
