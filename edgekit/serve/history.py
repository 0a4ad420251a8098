"""Record who answered each request and why: one row per request, in any database that SQLAlchemy supports.

Rows contain no prompt, no answer and no hash of them, unless ``store_prompts`` is set. A thread writes them, so that no
answer waits for the database; if it fails, rows are lost and counted, but answers are not affected.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from edgekit.errors import ConfigError
from edgekit.host.disk import make_private

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from edgekit.types.routing import Request, Routed

_LOG = logging.getLogger("edgekit.serve")
_BATCH = 256
_WAITING = 10_000
"""Most rows that wait for the database; further ones are counted as lost."""

_SQLITE_BUSY = 5.0
"""Seconds to wait while another process writes to the same file."""

_SQLITE_CACHE = 256
"""Kilobytes of cache: rows are added and hardly ever read."""

REQUESTS = Table(
    "edgekit_requests",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("time", Double, nullable=False, index=True),  # seconds since 1970, when the answer ended
    Column("tier", String(128), nullable=False),
    Column("code", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("degraded", Boolean, nullable=False),
    Column("finish", String(32), nullable=False),
    Column("seconds", Double, nullable=False),
    Column("seconds_to_first", Double),
    Column("device_seconds", Double, nullable=False),
    Column("joules", Double),
    Column("cost", Double, nullable=False),
    Column("spared", Double),
    Column("prompt_tokens", Integer, nullable=False),
    Column("new_tokens", Integer, nullable=False),
    Column("wrong", Double),
    Column("prompt", Text),
    Column("answer", Text),
)


@dataclass(frozen=True)
class Row:
    """One finished request. ``time``: seconds since 1970."""

    time: float
    request: Request
    routed: Routed


class History:
    """Writes rows to a database. Thread-safe.

    Args:
        url: an SQLAlchemy URL.
        store_prompts: store the prompt and the answer too.

    Raises:
        ConfigError: the database cannot be opened.
    """

    def __init__(self, url: str, *, store_prompts: bool = False) -> None:
        self.lost = 0
        self._store_prompts = store_prompts
        self._complained = False
        self._rows: queue.Queue[Row | None] = queue.Queue(_WAITING)
        self._engine, self.place = _open(url)
        self._thread = threading.Thread(target=self._write, name="edgekit-history", daemon=True)
        self._thread.start()

    def add(self, request: Request, routed: Routed) -> None:
        """Queue a request to be written."""
        try:
            self._rows.put_nowait(Row(time.time(), request, routed))
        except queue.Full:
            self._lose(1, "the database is too slow")

    def spent_since(self, moment: float) -> float:
        """Return the cost of the requests that ended since ``moment`` (seconds since 1970), in the policy's currency.

        Raises:
            ConfigError: the database cannot be read, so the budget cannot be enforced.
        """
        sum_up = select(func.coalesce(func.sum(REQUESTS.c.cost), 0.0)).where(REQUESTS.c.time >= moment)
        try:
            with self._engine.connect() as connection:
                return float(connection.execute(sum_up).scalar_one())
        except SQLAlchemyError as error:
            raise ConfigError(f"the history {self.place} cannot be read: {_say(error)}", _HINT) from error

    def close(self) -> None:
        """Write the remaining rows, and close the database."""
        with suppress(queue.Full):
            # None ends the thread; if the queue has no room for it, the database has failed anyway.
            self._rows.put(None, timeout=_SQLITE_BUSY)
        self._thread.join(timeout=2 * _SQLITE_BUSY)
        self._engine.dispose()

    def _write(self) -> None:
        while (row := self._rows.get()) is not None:
            rows, ended = [row], False
            with suppress(queue.Empty):
                while len(rows) < _BATCH:
                    another = self._rows.get_nowait()
                    if another is None:
                        ended = True
                        break
                    rows.append(another)
            self._insert(rows)
            if ended:
                break

    def _insert(self, rows: list[Row]) -> None:
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(REQUESTS), [self._values(row) for row in rows])
        except Exception as error:  # drivers raise any exception, which must not affect answers
            self._lose(len(rows), _say(error))

    def _values(self, row: Row) -> dict[str, object]:
        routed, verdict = row.routed, row.routed.verdict
        return {
            "time": row.time,
            "tier": verdict.tier,
            "code": verdict.code,
            "reason": verdict.reason if self._store_prompts or verdict.code not in _QUOTING else "",
            "degraded": verdict.degraded,
            "finish": routed.finish,
            "seconds": routed.seconds,
            "seconds_to_first": routed.seconds_to_first,
            "device_seconds": routed.device_seconds,
            "joules": routed.joules,
            "cost": routed.cost,
            "spared": routed.spared,
            "prompt_tokens": routed.prompt_tokens,
            "new_tokens": routed.new_tokens,
            "wrong": routed.wrong,
            "prompt": row.request.text if self._store_prompts else None,
            "answer": routed.text if self._store_prompts else None,
        }

    def _lose(self, rows: int, why: str) -> None:
        self.lost += rows
        if not self._complained:
            self._complained = True
            _LOG.warning("history %s: %s; rows are lost (answers are not affected)", self.place, why)


def default_url() -> str:
    """Return the URL of an SQLite file in the user's state folder."""
    from platformdirs import user_state_path

    return str(URL.create("sqlite", database=str(user_state_path("edgekit") / "history.sqlite")))


_QUOTING = frozenset({"schema"})
"""Codes whose reason may quote the answer, such as an error in its JSON."""

_HINT = "pass another SQLAlchemy URL as `history`, or `history=none`"


def _open(text: str) -> tuple[Engine, str]:
    """Open the database and create the table. Returns the engine, and the URL without its password."""
    try:
        url = make_url(text)
        place = url.render_as_string(hide_password=True)
    except SQLAlchemyError:
        # The text is not repeated, as it may contain a password.
        hint = "give one such as sqlite:////home/me/history.sqlite"
        raise ConfigError("`history` is not an SQLAlchemy URL", hint) from None
    try:
        local = url.get_backend_name() == "sqlite"
        if local and url.database and url.database != ":memory:":
            _make_private(Path(url.database))
        engine = create_engine(url, pool_pre_ping=not local)
        if local:
            event.listen(engine, "connect", _set_up_sqlite)
        REQUESTS.metadata.create_all(engine)
        with engine.connect() as connection:
            # Fails here, not at the first answer, if another edgekit's table lacks a column.
            connection.execute(select(REQUESTS).limit(1))
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise ConfigError(f"the history {place} cannot be opened: {_say(error)}", _HINT) from error
    return engine, place


def _make_private(path: Path) -> None:
    """Create the file and its folder readable only by their owner."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_private(path)


def _set_up_sqlite(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    pragmas = ("journal_mode=WAL", "synchronous=NORMAL", f"busy_timeout={int(1000 * _SQLITE_BUSY)}")
    for pragma in (*pragmas, f"cache_size=-{_SQLITE_CACHE}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _say(error: BaseException) -> str:
    """Describe an error without the statement and its values, which may contain a prompt."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else 'no message'}"
