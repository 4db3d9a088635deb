"""What a check has found: one JSON file, written after each section, and a table at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attention_core.escape import for_terminal, on_one_line
from attention_core.files import replace_file


class Report:
    """Results by section, each with a status: "done", "cut short", "skipped" or "failed".

    Args:
        path: of the JSON file.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.about = about
        self.sections: dict[str, dict[str, Any]] = {}

    def write(self) -> None:
        """Write all that is known so far, whole or not at all."""
        with replace_file(self.path, "w") as file:
            json.dump({**self.about, "sections": self.sections}, file, indent=1, default=str)
            file.write("\n")

    def failed(self) -> list[str]:
        """Return what is wrong, a line each: cases that failed, sections that raised."""
        lines = [
            f"{name}: {section['error'].splitlines()[-1]}"
            for name, section in self.sections.items()
            if section["status"] == "failed"
        ]
        for name in ("conformance", "structures"):
            for case in self.sections.get(name, {}).get("results", []):
                if case["status"] == "failed":
                    off = f"{case['worst']} is off by {case['difference']:.2g}"
                    about = f"{case['case']!r} by {case['backend']} in {case['dtype']}"
                    lines.append(f"{name}: {about}: {case['said'] or off}")
        return lines

    def show(self, console: Console) -> None:
        """Print tables of the sections and of times, and where the file is."""
        table = Table(title=_text(self.about["device"]), title_justify="left")
        for column in ("section", "status", "found", "seconds"):
            table.add_column(column, justify="right" if column == "seconds" else "left")
        for name, section in self.sections.items():
            cells = name, section["status"], section["said"], f"{section['seconds']:.1f}"
            table.add_row(*map(_text, cells))
        console.print(table)
        timed = self.sections.get("times", {}).get("results", [])
        if timed:
            console.print(_times(timed))
        for line in self.failed():
            console.print(_text(on_one_line(line)[:500], "red"), soft_wrap=True)
        console.print(_text(f"All of it is in {on_one_line(self.path)}"), soft_wrap=True)


def _times(timed: list[dict[str, Any]]) -> Table:
    """Milliseconds forward, and forward and backward, of each work; what plan chooses is marked."""
    title = "milliseconds: forward, forward and backward; * by default"
    table = Table(title=title, title_justify="left")
    for column in ("work", "dtype", "by", "forward", "and backward"):
        table.add_column(column, justify="right" if "ward" in column else "left")
    before = None
    for one in timed:
        about = one["work"], one["dtype"]
        if before is not None and before != about:
            table.add_section()
        by = one["contestant"] + (" *" if one["chosen"] else "")
        numbers = (f"{one[name]:.3g}" for name in ("forward", "both"))
        table.add_row(*map(_text, ("", "") if before == about else about), _text(by), *numbers)
        before = about
    return table


def _text(text: object, style: str = "") -> Text:
    return Text(for_terminal(text), style)
