"""What weights were fitted to or trained on. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit import ranges


@dataclass(frozen=True)
class DataSource:
    """One source of text. Numbers cover both parts, the one trained on and the one held out.

    ``sha256`` is of the UTF-8 text that tokens came from, in the order of reading. ``share`` is that of all tokens;
    ``licence`` is "" if unknown. ``overlapping``: documents or sections left out because evaluation text has a run of
    their words, or because the held-out part has the same text. ``bad_lines``: lines left out because they hold no
    document.
    """

    name: str
    sha256: ranges.Digest
    documents: ranges.Count
    tokens: ranges.Count
    share: ranges.Share
    licence: str
    overlapping: ranges.Count
    bad_lines: ranges.Count

    @property
    def left_out(self) -> str:
        """What was left out, in words; "" for nothing."""
        told = [f"{self.bad_lines} bad line{'s' * (self.bad_lines > 1)}"] if self.bad_lines else []
        told += [f"what overlaps other text ({self.overlapping})"] if self.overlapping else []
        return " and ".join(told)


@dataclass(frozen=True)
class DataCard:
    """The data of a run: its sources, the tokens trained on and held out, tokens of a window, and the seed."""

    sources: tuple[DataSource, ...]
    tokens: ranges.Count
    held_out: ranges.Count
    window: ranges.Count
    seed: ranges.Count

    @property
    def names(self) -> str:
        """The sources, separated by commas."""
        return ", ".join(source.name for source in self.sources)
