"""The table of a lab's runs, in any database that SQLAlchemy supports: one row per run, with its whole JSON line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.record import from_json, to_json
from edgekit.types.lab import LabRun

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

try:
    from sqlalchemy import Column, Double, Integer, MetaData, String, Table, Text, create_engine, insert, select
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as missing:
    raise LabError("a lab's results need sqlalchemy", "pip install 'edgekit[lab]'") from missing

RUNS = Table(
    "edgekit_lab_runs",
    MetaData(),
    Column("id", String(64), primary_key=True),
    Column("night", String(160), nullable=False, index=True),
    Column("device", String(128), nullable=False),
    Column("bundle", String(256), nullable=False),
    Column("bundle_sha256", String(64), nullable=False),
    Column("workload", String(128), nullable=False),
    Column("repetition", Integer, nullable=False),
    Column("started", String(40), nullable=False),
    Column("ended", String(40), nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("net_joules", Double),
    Column("record", Text, nullable=False),
)
_HINT = "pass an SQLAlchemy URL such as sqlite:////home/me/lab.sqlite as `database`"


class Database:
    """The runs of labs.

    Args:
        url: an SQLAlchemy URL.

    Raises:
        LabError: it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except SQLAlchemyError:
            # The text is not repeated, as it may contain a password.
            raise LabError("`database` is not an SQLAlchemy URL", _HINT) from None
        self._place = parsed.render_as_string(hide_password=True)
        try:
            self._engine = create_engine(parsed)
            RUNS.metadata.create_all(self._engine)
        except (SQLAlchemyError, ImportError, OSError) as error:
            raise self._error("opened", error) from error

    def ids(self, night: str) -> frozenset[str]:
        """The ids of a night's runs.

        Raises:
            LabError: it cannot be read.
        """
        try:
            with self._engine.connect() as connection:
                return frozenset(connection.execute(select(RUNS.c.id).where(RUNS.c.night == night)).scalars())
        except SQLAlchemyError as error:
            raise self._error("read", error) from error

    def add(self, runs: Sequence[LabRun]) -> None:
        """Add runs, all or none.

        Raises:
            LabError: it cannot be written.
        """
        try:
            with self._engine.begin() as connection:
                for run in runs:
                    connection.execute(insert(RUNS), _row(run))
        except SQLAlchemyError as error:
            raise self._error("written", error) from error

    def runs(self) -> Iterator[LabRun]:
        """All runs, oldest first.

        Raises:
            LabError: it cannot be read, or a row is damaged.
        """
        try:
            with self._engine.connect() as connection:
                for record in connection.execute(select(RUNS.c.record).order_by(RUNS.c.started)).scalars():
                    yield from_json(LabRun, record)
        except ValueError as error:
            raise LabError(f"{self._place} holds a damaged run: {error}", "remove its row") from error
        except SQLAlchemyError as error:
            raise self._error("read", error) from error

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def _error(self, what: str, error: BaseException) -> LabError:
        cause = getattr(error, "orig", None) or error
        said = str(cause).splitlines()[0] if str(cause) else "no message"
        return LabError(f"the database {self._place} cannot be {what}: {said}", _HINT)


def _row(run: LabRun) -> dict[str, object]:
    return {
        "id": run.id,
        "night": run.lab,
        "device": run.device,
        "bundle": run.bundle,
        "bundle_sha256": run.bundle_sha256,
        "workload": run.workload,
        "repetition": run.repetition,
        "started": run.started,
        "ended": run.ended,
        "status": run.status,
        "reason": run.reason,
        "net_joules": run.energy.net_joules,
        "record": to_json(run),
    }
