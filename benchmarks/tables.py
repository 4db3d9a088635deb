"""Measurements as tables of Markdown, and how they get into a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table, whose first column holds words and the others numbers."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio(row: Mapping[str, Any], who: str, clock: str) -> float:
    """Return a row's efficiency or times faster, on the clock "wall" or "cpu"."""
    name = ("both" if row["backward"] else "forward") + ("" if clock == "wall" else "_cpu")
    return float(row["factor"] * row["peer"][name] / row[who][name])


def ratios(row: Mapping[str, Any]) -> str:
    """Say both ratios of a row on both clocks, in a line."""
    return ", ".join(
        f"{who} {ratio(row, who, 'wall'):.2f} (CPU {ratio(row, who, 'cpu'):.2f})"
        for who in ("kernels", "plain")
    )


def speed(results: Mapping[str, Any]) -> str:
    """Return the targets and what was reached, and below it the times and memory behind it."""
    one, *others = results["runs"]
    machines = "; ".join(run["machine"] for run in results["runs"])
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    said = f"Measured on {results['date']}: {machines}; {versions}."
    by_work = [{row["work"]: row for row in run["rows"]} for run in others]
    reached, behind = [], []
    for row in one["rows"]:
        rows = [row, *(run[row["work"]] for run in by_work)]
        cells = []
        for nth, who in enumerate(("kernels", "plain")):
            target = row["target"][nth]
            cells.append("" if target is None else f"{target:.2g}")
            cells += [
                f"{ratio(found, who, 'wall'):.2f} / {ratio(found, who, 'cpu'):.2f}"
                for found in rows
            ]
        reached.append([f"{row['work']}; {row['peer name']}", *cells])
        name = "both" if row["backward"] else "forward"
        peaks = row.get("peak MiB", {})
        behind.append(
            [
                row["work"],
                *(f"{row[who][name]:,.1f}" for who in ("kernels", "plain", "peer")),
                " / ".join(f"{peak:,.0f}" for peak in peaks.values()),
                str(row["rounds"]),
            ]
        )
    head = ["work; peer"]
    for who in ("kernels", "plain torch"):
        head.append(f"target, {who}")
        head += [
            f"{who}, {run['threads']} thread{'s' * (run['threads'] > 1)}" for run in results["runs"]
        ]
    times = ["work", "kernels, ms", "plain, ms", "peer, ms", "peak MiB of the three", "rounds"]
    return "\n\n".join([said, table(head, reached), table(times, behind)])


def rewrite(page: Path, parts: Mapping[str, str]) -> None:
    """Put each part of a page between the comments `<!-- NAME -->` and `<!-- end of NAME -->`.

    Raises:
        ValueError: the page has no such comments.
    """
    text = page.read_text()
    for name, part in parts.items():
        first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, begun, rest = text.partition(first)
        _, ended, after = rest.partition(last)
        if not (begun and ended):
            raise ValueError(f"{page} has no part between {first!r} and {last!r}")
        text = f"{before}{first}\n\n{part}\n\n{last}{after}"
    page.write_text(text)
