"""What `attn list` prints: a line for each experiment, or all that is known of one."""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.table import Table

from attention_core.errors import UsageError, did_you_mean
from attention_core.escape import on_one_line, shell_word
from attention_core.packages import is_installed
from attention_core.training.compose import about, config_roots
from attention_core.training.console import rich_text

MISSING = "*"  # behind the name of an experiment that wants something installed


def list_experiments(config_dir: Path | None) -> None:
    """Print name and title of every experiment, each on a line, a block for each domain."""
    known = about(config_roots(config_dir))
    console = Console()
    names = {
        name: on_one_line(name) + MISSING * bool(missing(section))
        for name, section in known.items()
    }
    width = max(map(len, names.values())) + 1
    for _, block in groupby(names, lambda name: name.rpartition("/")[0]):
        for name in block:
            title = on_one_line(known[name].get("title", ""))
            title = shorten(title, max(console.width - width, 8), placeholder=" …")
            line = rich_text(f"{names[name]:<{width}}", "bold").append(title, "not bold")
            console.print(line, no_wrap=True, overflow="ellipsis")
        console.print()
    if any(map(missing, known.values())):
        console.print(f"{MISSING} needs a package that is not installed", style="yellow")
    console.print("more of one: attn list NAME; train it: attn train experiment=NAME")


def show_experiment(name: str, config_dir: Path | None) -> None:
    """Print all that is known of one experiment, with the commands that install and train it.

    Raises:
        UsageError: there is no such experiment; names the nearest.
    """
    known = about(config_roots(config_dir))
    if name not in known:
        raise UsageError(
            f"list: there is no experiment {name!r}.{did_you_mean(name, known)} "
            "`attn list` names them all."
        )
    section = known[name]
    rows = Table.grid(padding=(0, 2))
    for key in ("title", "data", "gives"):
        if section.get(key):
            rows.add_row(rich_text(key, "dim"), rich_text(section[key]))
    without = missing(section)
    if section.get("needs"):
        needs = [on_one_line(package) for package in section["needs"]]
        rows.add_row(rich_text("needs", "dim"), rich_text(", ".join(needs)))
    console = Console()
    console.print(rich_text(on_one_line(name), "bold"))
    console.print(rows)
    if without:
        console.print(rich_text(f"not installed: {', '.join(without)}", "yellow"))
        extra = shell_word(f"attention-core[{section.get('extra', 'data')}]")
        console.print(rich_text(f"  pip install {extra}"), soft_wrap=True)
    where = "" if config_dir is None else f" --config-dir {shell_word(config_dir)}"
    run = f"  attn train {shell_word(f'experiment={name}')}{where}"
    console.print(rich_text(run), soft_wrap=True)


def missing(section: Mapping[str, Any]) -> list[str]:
    """Return the packages that an experiment needs and that are not installed."""
    needs = (str(package) for package in section.get("needs") or [])
    return [on_one_line(package) for package in needs if not is_installed(package)]
