"""Documents in the columns ``text`` or ``messages`` of a Parquet file or of a data set of the hub (extra ``learn``)."""

from __future__ import annotations

from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgekit.corpus.documents import SKIP_HINT, Messages, cut_text, take_document
from edgekit.errors import ConfigError
from edgekit.strangers import open_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgekit.types import Progress

INSTALL = "pip install 'edgekit[learn]'"
COLUMNS = ("text", "messages")

_ROWS = 256
"""Rows that are decoded at once."""


class Table:
    """Rows with a document each.

    Raises:
        ConfigError: there is no such column, or a row holds no document and bad rows are not skipped.
    """

    def __init__(self, name: str, columns: Iterable[str], *, skip_bad: bool) -> None:
        known = list(columns)
        self.name, self._skip_bad, self.bad_lines = name, skip_bad, 0
        self.sizes, self._rows = array("q"), array("q")
        self._last: tuple[int, bytes | Messages] = (-1, b"")
        chosen = next((column for column in COLUMNS if column in known), None)
        if chosen is None:
            have = ", ".join(f"'{column[:40]}'" for column in known[:12])
            raise ConfigError(f"{name}: no column 'text' or 'messages', but {have}", "rename one of its columns")
        self.column = chosen

    def index(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Note the size of every row."""
        for row, found in enumerate(rows):
            try:
                document = take_document(found, f"{self.name}, row {row + 1}")
            except ConfigError:
                if not self._skip_bad:
                    raise
                self.bad_lines += 1
                continue
            self.sizes.append(len(document) if isinstance(document, bytes) else 0)
            self._rows.append(row)

    def place(self, document: int) -> str:
        """Name and row, counted from 1."""
        return f"{self.name}, row {self._rows[document] + 1}"

    def part(self, document: int, section: int, sections: int) -> str | Messages:
        """A section of a row's text, or its conversation. The last row is kept, as its sections are read in turn."""
        if self._last[0] != document:
            self._last = document, take_document(self.row(self._rows[document]), self.place(document))
        found = self._last[1]
        return cut_text(found, section, sections) if isinstance(found, bytes) else found

    def row(self, row: int) -> Mapping[str, Any]:
        """A row."""
        raise ConfigError(f"{self.name}: no row {row + 1}", SKIP_HINT)


class ParquetFile(Table):
    """A .parquet file. Some hundred rows are in memory at a time; rows are cheap to read in ascending order."""

    def __init__(self, path: Path, progress: Progress, *, skip_bad: bool) -> None:
        self._path = path
        with self._open() as file:
            super().__init__(str(path), file.schema_arrow.names, skip_bad=skip_bad)
            self._groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self.index(self._all(file, progress))
        self._ahead: Iterator[tuple[int, list[Mapping[str, Any]]]] = iter(())
        self._held: tuple[int, list[Mapping[str, Any]]] = (0, [])

    def row(self, row: int) -> Mapping[str, Any]:
        """A row; going back means reading its row group from the start."""
        start, rows = self._held
        if row < start or row >= start + len(rows):
            if not rows or row < start or row >= self._group_end(start):
                self._ahead = self._from_group_of(row)
            for start, rows in self._ahead:
                if row < start + len(rows):
                    break
            self._held = start, rows
        return rows[row - start]

    def _all(self, file: Any, progress: Progress) -> Iterator[Mapping[str, Any]]:
        done, total = 0, sum(self._groups)
        for batch in file.iter_batches(_ROWS, columns=[self.column]):
            yield from batch.to_pylist()
            done += batch.num_rows
            progress(f"read {self._path.name}", done, total, "rows")

    def _group_end(self, row: int) -> int:
        end = 0
        for count in self._groups:
            end += count
            if row < end:
                break
        return end

    def _from_group_of(self, row: int) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
        group, start = 0, 0
        while start + self._groups[group] <= row:
            start, group = start + self._groups[group], group + 1
        with self._open() as file:
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[self.column]):
                yield start, batch.to_pylist()
                start += batch.num_rows

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise ConfigError(f"{self._path}: Parquet files need pyarrow", INSTALL) from error
        with open_plain(self._path, error=ConfigError) as file:
            try:
                with parquet.ParquetFile(file, pre_buffer=False, memory_map=False) as opened:
                    yield opened
            except (pyarrow.ArrowException, OSError) as error:
                said = str(error).strip().partition("\n")[0][:200]
                raise ConfigError(f"{self._path}: not a Parquet file: {said}", "download the file again") from error


class HubRows(Table):
    """A split of a data set of the hub, which ``datasets`` keeps in its cache and maps into memory.

    ``name`` is ``owner/name``, ``owner/name/configuration``, each with ``:split``, or without for ``train``.
    """

    def __init__(self, name: str, *, offline: bool, skip_bad: bool) -> None:
        path, _, split = name.partition(":")
        owner, repository, *configuration = path.split("/")
        self._data = _load(f"{owner}/{repository}", configuration, split or "train", offline=offline)
        super().__init__(f"hub:{name}", self._data.column_names, skip_bad=skip_bad)
        self._data = self._data.select_columns([self.column])
        self.licence = _licence(f"{owner}/{repository}")
        self.index(self._data)

    def row(self, row: int) -> Mapping[str, Any]:
        """A row."""
        found: Mapping[str, Any] = self._data[row]
        return found


def _load(name: str, configuration: Sequence[str], split: str, *, offline: bool) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"hub:{name}: data sets of the hub need {error.name or 'datasets'}", INSTALL) from error
    with _quiet(datasets, offline=offline):
        try:
            # With this prefix, a folder of the same name is never taken for it.
            return datasets.load_dataset(f"hf://datasets/{name}", *configuration, split=split)
        except Exception as error:
            said = " ".join(str(error).split())[:300] or type(error).__name__
            hint = "check the name, configuration and split: hub:owner/name/configuration:split"
            if isinstance(error, ConnectionError):
                said = "it is not in the cache of data sets, and the hub cannot be reached"
                hint = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or set HF_HOME to a cache that has it"
            if isinstance(error, ConnectionError) and offline:
                said = "it is not in the cache of data sets, and `offline` forbids downloading it"
                hint = "run once without `offline`, or set HF_HOME to a cache that has it"
            raise ConfigError(f"hub:{name}: {said}", hint) from error


@contextmanager
def _quiet(datasets: Any, *, offline: bool) -> Iterator[None]:
    """Without progress bars and warnings, since only the command line prints; without network if ``offline``."""
    shown, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    online = datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    datasets.config.HF_HUB_OFFLINE = online or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = online
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


def _licence(name: str) -> str:
    """The licence that the card of a data set names, "" without one; the card is in the cache since the data is."""
    from huggingface_hub import DatasetCard, try_to_load_from_cache

    card = try_to_load_from_cache(name, "README.md", repo_type="dataset")
    if not isinstance(card, str):
        return ""
    try:
        said = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("license")
    except Exception:  # a stranger's YAML
        return ""
    return ", ".join(map(str, said if isinstance(said, list) else [said or ""]))[:200]
