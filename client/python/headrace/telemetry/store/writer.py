"""Fills the local store: any thread puts, one thread writes.

Putting never waits. What does not fit between two writes is dropped and counted, and a store that
cannot be written, on a full disk say, costs its records and nothing else.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from headrace.telemetry.records import LogLine
from headrace.telemetry.store import schema
from headrace.telemetry.store.schema import Record

logger = logging.getLogger(__name__)

QUEUE: Final = 8192
"""Records that may wait to be written."""
_GATHER: Final = 0.05
"""Seconds to gather what follows a first record: one transaction costs less than many."""
_BATCH: Final = 1024
"""Records that wait no longer for others."""
_BUSY: Final = 5.0
"""Seconds to wait for another controller of the same home to have written."""
_BROKEN: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class StoreWriter:
    """Writes records into the store of a home. Close it, or its thread goes on."""

    def __init__(
        self,
        path: Path,
        limit: int,
        *,
        queue: int = QUEUE,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """`path`: of the file, which is made where it is missing. `limit`: bytes on disk, with what
        SQLite keeps beside the file. `queue`: records that may wait. `clock`: nanoseconds since
        1970."""
        self._path = path
        self._limit = limit
        self._queue = queue
        self._clock = clock
        self._state = threading.Condition()
        self._records: list[Record] = []
        self._writing = False
        self._closed = False
        self._dropped = 0
        self._untold = 0
        """Of the dropped ones, those that no line tells of yet."""
        self._failing = False
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._thread = threading.Thread(target=self._run, name="headrace-telemetry", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that came and are not in the store."""
        return self._dropped

    def put(self, record: Record) -> None:
        """Have a record written soon, or drop it if too many wait."""
        with self._state:
            if self._closed or len(self._records) >= self._queue:
                self._drop(1)
                return
            self._records.append(record)
            if len(self._records) in (1, _BATCH):
                self._state.notify_all()

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until what was put is written or dropped; gives whether it is within the timeout
        (seconds)."""
        with self._state:
            return self._state.wait_for(lambda: not (self._records or self._writing), timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Write what was put, for `timeout` seconds at most, and end the thread."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._thread.join(timeout)

    def _drop(self, count: int) -> None:
        self._dropped += count
        self._untold += count

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._write(batch)
                with self._state:
                    self._writing = False
                    self._state.notify_all()
        finally:
            self._disconnect()

    def _next_batch(self) -> list[Record]:
        """What has gathered; nothing when all is written and this is closed."""
        with self._state:
            self._state.wait_for(lambda: self._records or self._closed)
            self._state.wait_for(lambda: len(self._records) >= _BATCH or self._closed, _GATHER)
            batch, self._records = self._records, []
            self._writing = bool(batch)
            untold, self._untold = self._untold, 0
        if untold:
            batch.append(self._note(untold))
        return batch

    def _note(self, count: int) -> LogLine:
        """A line in the place of those that are missing."""
        fields = {
            "level": "WARNING",
            "message": f"{count} records of telemetry were dropped here: they came too fast, or "
            "could not be written",
            "logger": __name__,
            "service": "headrace-controller",
        }
        return LogLine(self._clock(), logging.WARNING, fields)

    def _write(self, batch: Sequence[Record]) -> None:
        written = 0
        try:
            connection = self._connected()
            for rows in schema.transactions(map(schema.row_of, batch), self._limit):
                with connection:
                    connection.executemany(schema.INSERT, rows)
                written += len(rows)
                self._make_room(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is costs these records alone
            with self._state:
                self._drop(len(batch) - written)
            self._disconnect()
            self._tell(error)
        else:
            self._failing = False

    def _tell(self, error: Exception) -> None:
        # Once, until it works again: this line comes back here to be written.
        if not self._failing:
            self._failing = True
            logger.warning("telemetry cannot be kept in %s: %s", self._path, error)
        if getattr(error, "sqlite_errorcode", None) in _BROKEN:
            with suppress(OSError):
                self._path.replace(self._path.with_suffix(".broken"))
            for beside in ("-wal", "-shm"):
                self._path.with_name(self._path.name + beside).unlink(missing_ok=True)

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None:
            # Somebody may have removed the file to be rid of what it has.
            with suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    return self._connection
            self._disconnect()
        folder = self._path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Log lines are for the user's eyes; what SQLite puts beside the file gets its mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(self._path, timeout=_BUSY)
        try:
            self._set_up(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._inode = self._path.stat().st_ino
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # A crash of the machine may cost the last lines; nothing else can.
        connection.execute("PRAGMA synchronous = NORMAL")
        page_size = _number(connection, "page_size")
        log = schema.pages_for_log(self._limit, page_size)
        connection.execute(f"PRAGMA wal_autocheckpoint = {log}")
        connection.execute(f"PRAGMA journal_size_limit = {log * page_size}")
        connection.executescript(schema.TABLES)
        self._make_room(connection)
        if _number(connection, "page_count") * page_size > self._limit:
            # It was larger once. This cannot be done while somebody reads; then the next start may.
            with suppress(sqlite3.OperationalError):
                connection.execute("VACUUM")

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Delete the oldest rows while there are too many; later ones take their pages."""
        allowed = schema.pages_for_rows(self._limit, _number(connection, "page_size"))
        while True:
            used = _number(connection, "page_count") - _number(connection, "freelist_count")
            with closing(connection.execute(schema.ENDS)) as ends:
                first, last = ends.fetchone()
            goes = schema.last_to_go(first or 0, last or 0, used, allowed)
            if goes is None:
                return
            with connection:
                connection.execute("DELETE FROM records WHERE id <= ?", (goes,))

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    with closing(connection.execute(f"PRAGMA {pragma}")) as cursor:
        return int(cursor.fetchone()[0])
