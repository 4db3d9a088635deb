"""The command line `attn`. Torch and Lightning are imported only where a command needs them."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from attention_core.training.errors import UsageError, did_you_mean

HELP = """\
usage: attn COMMAND [...]

  attn train [key=value ...]         train an experiment; the default is vision/digits
  attn train run=FOLDER              continue an interrupted run, exactly
  attn evaluate run=FOLDER           test the best checkpoint of a run again
  attn list                          the experiments, what each needs and gives

examples:
  attn train experiment=graph/mutag trainer.max_epochs=20
  attn train -m seed=1,2,3 optimizer.lr=1e-3,3e-4          one run per combination
  attn train experiment=audio --config-dir my_conf         a domain of your own
  attn train experiment=graph/mutag --cfg job              show the configuration, train nothing

Every run writes one folder under outputs/: its configuration, metrics.csv, checkpoints, figures,
results.json. `attn COMMAND --help` tells more. HYDRA_FULL_ERROR=1 shows tracebacks.
"""


def main(argv: list[str] | None = None) -> None:
    """Runs one command; exits with 2 and one line on a mistake of the user's."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    commands = {"train": _train, "evaluate": _evaluate, "list": _list}
    name, *rest = arguments
    show_traceback = "HYDRA_FULL_ERROR" in os.environ
    try:
        if name not in commands:
            raise UsageError(
                f"{name!r} is not a command.{did_you_mean(name, commands)} "
                f"The commands are {', '.join(commands)}."
            )
        commands[name](rest)
    except UsageError as error:
        if show_traceback:
            raise
        _fail(str(error))
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted. {interrupt}", file=sys.stderr)
        sys.exit(130)


def _train(arguments: list[str]) -> None:
    parser = _parser("train", "Train an experiment, or continue the run in a folder (run=FOLDER).")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="experiment=..., seed=..."
    )
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="sweep: values separated by commas"
    )
    parser.add_argument(
        "--cfg", choices=["job", "hydra", "all"], help="print the configuration and stop"
    )
    given = parser.parse_intermixed_args(arguments)
    _make_importable(given.config_dir)
    folder = _run_folder(given.overrides)
    if folder is not None:
        if len(given.overrides) > 1 or given.multirun or given.cfg:
            raise UsageError(
                "run=FOLDER continues a run exactly as it was configured; nothing "
                "else can be given with it."
            )
        from attention_core.training.run import resume

        resume(folder)
        return
    from attention_core.training.compose import run_hydra

    flags = ["--multirun"] if given.multirun else []
    flags += ["--cfg", given.cfg, "--resolve"] if given.cfg else []
    run_hydra(_job, given.overrides, flags=flags, config_dir=given.config_dir)


def _job(config: dict[str, Any], folder: Path) -> float | None:
    from attention_core.training.run import train

    train(config, folder)
    return None


def _evaluate(arguments: list[str]) -> None:
    parser = _parser("evaluate", "Test the best checkpoint of a run again.")
    parser.add_argument("overrides", nargs="*", metavar="run=FOLDER")
    given = parser.parse_intermixed_args(arguments)
    _make_importable(given.config_dir)
    folder = _run_folder(given.overrides)
    if folder is None or len(given.overrides) > 1:
        raise UsageError("evaluate takes one argument: run=FOLDER, the folder of a run.")
    from attention_core.training.run import evaluate

    evaluate(folder)


def _list(arguments: list[str]) -> None:
    parser = _parser("list", "The experiments, what each needs and gives.")
    given = parser.parse_args(arguments)
    from rich.console import Console
    from rich.table import Table

    from attention_core.training.compose import about, config_roots

    table = Table(header_style="bold", row_styles=["", "dim"])
    table.add_column("experiment", no_wrap=True)  # to be copied
    for column in ("what it does", "data it needs", "what it gives"):
        table.add_column(column, overflow="fold")
    for name, section in about(config_roots(given.config_dir)).items():
        needs = [str(section.get("data", ""))]
        missing = [p for p in section.get("needs", []) if importlib.util.find_spec(p) is None]
        if missing:
            extra = section.get("extra", "data")
            needs.append(f"[yellow]pip install 'attention-core\\[{extra}]'[/]")
        table.add_row(name, section.get("title", ""), "\n".join(needs), section.get("gives", ""))
    console = Console()
    console.print(table)
    console.print("train one with: attn train experiment=NAME", highlight=False)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"attn {command}", description=description, allow_abbrev=False)
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="a folder of your own experiments"
    )
    return parser


def _run_folder(overrides: list[str]) -> Path | None:
    runs = [override[4:] for override in overrides if override.startswith("run=")]
    return Path(runs[0]) if runs else None


def _make_importable(config_dir: Path | None) -> None:
    # At the end of the path: a graph.py in the current folder must not replace our package.
    for folder in (config_dir, Path.cwd()):
        if folder is not None and str(folder.resolve()) not in sys.path:
            sys.path.append(str(folder.resolve()))


def _fail(message: str) -> NoReturn:
    print(f"attn: {message}", file=sys.stderr)
    sys.exit(2)
