"""What a measurement says, and the table and file that show it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: a yardstick from the same run, our figure, and the goal it is held to.

    `holds` is None where the line only informs. Texts carry their unit; `figures` hold the plain numbers.
    """

    measure: str
    yardstick: str = ""
    ours: str = ""
    comparison: str = ""  # ratio or difference
    goal: str = ""
    holds: bool | None = None
    figures: dict[str, Any]

    @classmethod
    def load(cls, stored: dict[str, Any]) -> Row:
        """The counterpart of `dump`."""
        return cls(**stored)

    def dump(self) -> dict[str, Any]:
        """A form for JSON."""
        return asdict(self)


_VERDICTS = {True: "[green]yes[/]", False: "[red]NO[/]", None: ""}


def show(rows: Iterable[Row], caption: str) -> None:
    """Print the table; in a pipe it is as wide as it needs to be."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    title = "Benchmarks: medians of one run, yardstick and ours interleaved"
    table = Table(title=title, caption=caption)
    for column in ("measure", "yardstick", "ours", "ratio / difference", "goal", "holds?"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(row.measure, row.yardstick, row.ours, row.comparison, row.goal, _VERDICTS[row.holds])
    console.print(table)


def store(path: Path, rows: Iterable[Row], context: dict[str, Any]) -> None:
    """Write everything as JSON, so that runs can be compared."""
    document = {**context, "rows": [row.dump() for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")
