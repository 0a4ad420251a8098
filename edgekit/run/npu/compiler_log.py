"""Parse the log of Qualcomm's provider and compiler: which provider runs each node, and the DRAM traffic.

The traffic is only logged at the most verbose level. Lines of interest::

    ... LogNodeSupport] Validation FAILED for 1 nodes in OrtNodeUnit (Erf) :
        Operator type: Erf Node name: erf Node index: 4
        REASON : ...
    ... read_total_bytes=148248576 ...
"""

from __future__ import annotations

import re

from edgekit.types.npu import Placed, Traffic

_VERDICT = re.compile(r"Validation (PASSED|FAILED) for \d+ nodes? in OrtNodeUnit")
_NODE = re.compile(r"^\s*Operator type: (\S+) Node name: (.*?) Node index: \d+")
_REASON = re.compile(r"^\s*REASON : (.*)")
_BYTES = re.compile(r"\b(spill|fill|write_total|read_total)_bytes=(\d+)")


class CompilerLog:
    """Parses a log line by line. ``placed`` and ``traffic`` reflect the lines read so far."""

    def __init__(self, provider: str, elsewhere: str) -> None:
        """``elsewhere`` is the provider for nodes that ``provider`` rejects."""
        self._providers = {"PASSED": provider, "FAILED": elsewhere}
        self._verdict = ""
        self._unit: list[str] = []
        self._nodes: dict[str, Placed] = {}
        self._bytes: dict[str, int] = {}

    def read(self, line: str) -> None:
        """Parse one line."""
        if found := _VERDICT.search(line):
            self._verdict, self._unit = found[1], []
        elif self._verdict and (found := _NODE.match(line)):
            operator, name = found.groups()
            self._nodes[name] = Placed(name, operator, self._providers[self._verdict])
            self._unit.append(name)
        elif self._verdict and (found := _REASON.match(line)):
            for name in self._unit:
                node = self._nodes[name]
                self._nodes[name] = Placed(node.node, node.operator, node.provider, found[1].strip())
        else:
            if not line.startswith(("\t", " ")):
                self._verdict = ""
            for kind, count in _BYTES.findall(line):
                self._bytes[kind] = int(count)

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The nodes that the provider was asked about, in order, each with its last verdict."""
        return tuple(self._nodes.values())

    @property
    def traffic(self) -> Traffic | None:
        """DRAM bytes of a run; None if the compiler did not log them."""
        if "read_total" not in self._bytes:
            return None
        kinds = ("read_total", "write_total", "spill", "fill")
        return Traffic(*(self._bytes.get(kind, 0) for kind in kinds))
