"""`make bench`, or `python -m benchmarks [FILE]`: measures everything, prints it, writes JSON."""

from __future__ import annotations

import datetime
import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from attention_core import Neighborhood
from benchmarks import edges
from benchmarks.measure import in_turn, machine, peak
from benchmarks.patterns import (
    DEVICE,
    PATTERNS,
    Pattern,
    dense_mask,
    density,
    flex,
    our_graphs,
    our_swin,
    ours,
    padded_graphs,
    planned,
    their_swin,
    unmasked,
    window,
)

PACKAGES = ("torch", "torchvision", "torch-geometric", "attention-core")
REPETITIONS = 5


def by_pattern(pattern: Pattern) -> dict[str, Any]:
    """Ours, SDPA with a dense mask and FlexAttention beside SDPA without a mask."""
    setting = pattern.setting
    share = density(setting)
    makers = [unmasked, ours, dense_mask] + [flex] * pattern.flex
    backward = [True, True, True] + [DEVICE != "cpu"] * pattern.flex
    large = setting()[0].length > 10_000  # where the peers take ten seconds
    whole, own, masked, *flexible = in_turn(
        [make(setting) for make in makers], 1 if large else REPETITIONS, backward=backward
    )
    return {
        "pattern": pattern.name,
        "density": share,
        "target efficiency": pattern.target,
        "efficiency": share * whole.both / own.both,
        "ours": own._asdict(),
        "sdpa unmasked": whole._asdict(),
        "sdpa dense mask": masked._asdict(),
        "flex": flexible[0]._asdict() if flexible else None,
        "peak MiB": peak(ours, setting),
        "peak MiB of sdpa dense mask": peak(dense_mask, setting),
    }


def by_peer(name: str, target: float, own: Any, peer: Any) -> dict[str, Any]:
    """Ours beside a peer that does the same work."""
    mine, theirs = in_turn([own(), peer()], REPETITIONS)
    return {
        "pattern": name,
        "target times faster": target,
        "times faster": theirs.both / mine.both,
        "ours": mine._asdict(),
        "peer": theirs._asdict(),
        "peak MiB": peak(own),
        "peak MiB of the peer": peak(peer),
    }


def main() -> None:
    console = Console()
    table = partial(window, 4096, table=True)
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {package: version(package) for package in PACKAGES},
        "patterns": [_told(console, by_pattern, pattern) for pattern in PATTERNS],
        "peers": [
            _told(console, by_peer, *row)
            for row in (
                ("window ±128 + learned T5 table, L = 4,096: SDPA with a dense bias", 10.0,
                 partial(ours, table), partial(dense_mask, table)),
                ("Swin windows 7, shifted, 56 × 56, batch 4: torchvision's layer", 1 / 1.1,
                 our_swin, their_swin),
                ("56 × 56 grid, radius 3, with its plan: border='shift', and 'cut'", 1 / 1.3,
                 partial(planned, Neighborhood(3, border="shift")),
                 partial(planned, Neighborhood(3))),
                ("512 graphs of 12 to 38 nodes, hop bias: padded SDPA", 3.0,
                 our_graphs, padded_graphs),
            )
        ],
        "edges": [{**row._asdict(), "times faster": row.times_faster} for row in edges.rows()],
        "peak MiB of a window on 65,536 tokens": peak(ours, partial(window, 65536)),
    }  # fmt: skip
    show(console, results)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(results, indent=2) + "\n")
        console.print(f"written to {sys.argv[1]}", highlight=False)


def _told(console: Console, measure: Any, *arguments: Any) -> dict[str, Any]:
    row: dict[str, Any] = measure(*arguments)
    console.print(f"measured {row['pattern']}", highlight=False)
    return row


def show(console: Console, results: dict[str, Any]) -> None:
    """The results as tables; milliseconds are of forward and backward, where not said otherwise."""
    console.print(f"{results['machine']}, {results['date']}, {results['versions']}")
    table = _table("pattern", "density", "efficiency", "aim", "ms", "forward", "dense SDPA",
                   "masked SDPA", "flex, forward", "MiB", "masked SDPA's MiB")  # fmt: skip
    for row in results["patterns"]:
        table.add_row(
            row["pattern"], f"{100 * row['density']:.2g}%", f"{row['efficiency']:.2f}",
            "" if row["target efficiency"] is None else f"{row['target efficiency']:.2f}",
            _ms(row["ours"], "both"), _ms(row["ours"], "forward"),
            _ms(row["sdpa unmasked"], "both"), _ms(row["sdpa dense mask"], "both"),
            _ms(row["flex"], "forward"),
            f"{row['peak MiB']:,.0f}", f"{row['peak MiB of sdpa dense mask']:,.0f}",
        )  # fmt: skip
    console.print(table)
    table = _table("ours and a peer", "times faster", "aim", "ms", "peer's", "MiB", "peer's MiB")
    for row in results["peers"]:
        table.add_row(
            row["pattern"], f"{row['times faster']:.1f}", f"{row['target times faster']:.1f}",
            _ms(row["ours"], "both"), _ms(row["peer"], "both"),
            f"{row['peak MiB']:,.0f}", f"{row['peak MiB of the peer']:,.0f}",
        )  # fmt: skip
    for row in results["edges"]:
        table.add_row(
            row["pattern"], f"{row['times faster']:.1f}", "", f"{row['both']:,.0f}",
            f"{row['peer_both']:,.0f}", f"{row['peak']:,.0f}", f"{row['peer_peak']:,.0f}",
        )  # fmt: skip
    console.print(table)
    long = results["peak MiB of a window on 65,536 tokens"]
    console.print(f"A window of ±128 on 65,536 tokens trains in {long:,.0f} MiB.")


def _table(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _ms(times: dict[str, Any] | None, which: str) -> str:
    return "" if times is None or times[which] is None else f"{times[which]:,.0f}"


if __name__ == "__main__":
    main()
