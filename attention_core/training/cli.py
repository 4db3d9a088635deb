"""The command line `attn`. Torch and Lightning are imported only where a command needs them."""

import argparse
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from attention_core.errors import UsageError, did_you_mean
from attention_core.escape import for_terminal, on_one_line

if "ATTENTION_CORE_SERVES" in os.environ:  # in a process of a command's
    from attention_core.training.own import serve_as_parent

    serve_as_parent()

HELP = """\
usage: attn COMMAND [...]

  attn train [key=value ...]         train an experiment; the default is vision/digits
  attn train run=FOLDER              continue an interrupted run, exactly; with
                                     trainer.max_epochs=N a finished one, to N epochs in all
  attn prepare [key=value ...]       write a run folder and train nothing, for torchrun and SLURM
  attn find-lr [key=value ...]       try rising learning rates and suggest one
  attn evaluate run=FOLDER           test the best checkpoint of a run again
  attn predict run=FOLDER input=...  classify the files, folders or records at a path
  attn export run=FOLDER format=...  write the model as safetensors, torch_export or onnx
  attn list                          the experiments, in a line each
  attn list NAME                     what one needs and gives, and how to train it
  attn new-domain NAME [--task TASK] write the files that a domain of your own begins with
  attn check [--device cuda]         whether attention is right on this machine, and how fast

examples:
  attn train experiment=graph/mutag trainer.max_epochs=20
  attn train -m seed=1,2,3 optimizer.lr=1e-3,3e-4          one run per combination
  attn train experiment=audio --config-dir my_conf         a domain of your own
  attn train experiment=graph/mutag --cfg job              show the configuration, train nothing

Every run writes one folder under outputs/: its configuration, metrics.csv, checkpoints, figures,
results.json. A run folder is data: other code than attention-core's runs only where you say
allow=[PACKAGE], or give --config-dir with experiments that do. `attn COMMAND --help` tells more.
HYDRA_FULL_ERROR=1 shows tracebacks.
"""


def main(argv: list[str] | None = None) -> None:
    """Run one command; exit with 2 and one line on a mistake of the user's."""
    if argv is None:
        _leave_current_folder()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    commands = {
        "train": _train,
        "prepare": _prepare,
        "find-lr": _find_lr,
        "evaluate": _evaluate,
        "predict": _predict,
        "export": _export,
        "list": _list,
        "new-domain": _new_domain,
        "check": _check,
    }
    name, *rest = arguments
    sys.excepthook = _print_traceback
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
        print(f"\ninterrupted. {for_terminal(interrupt)}", file=sys.stderr)
        sys.exit(130)


def _train(arguments: list[str]) -> None:
    parser = _parser(
        "train",
        "Train an experiment, or continue the run in a folder (run=FOLDER, with allow=[PACKAGE] "
        "where it uses a package of your own, and trainer.max_epochs=N to train longer).",
    )
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
        from attention_core.training.longer import read_limits

        more = [o for o in given.overrides if not o.startswith(("run=", "allow="))]
        limits, rest = read_limits(more), [o for o in given.overrides if o not in more]
        if len(rest) > 2 or given.multirun or given.cfg:
            raise UsageError(
                "run=FOLDER continues one run exactly as it was configured; beside it and "
                "allow=[...], the packages that you trust, there is trainer.max_epochs=N alone."
            )
        values = dict(o.split("=", 1) for o in rest)
        allow = _allowed(values, given.config_dir)
        from attention_core.training.run import resume
        from attention_core.training.sweep import refuse_sweep

        refuse_sweep(folder)
        resume(folder, allow, **limits)
        return
    from attention_core.training.compose import run_hydra

    flags = ["--multirun"] if given.multirun else []
    flags += ["--cfg", given.cfg, "--resolve"] if given.cfg else []
    failed = run_hydra(_job, given.overrides, flags=flags, config_dir=given.config_dir, sweeps=True)
    if failed:
        sys.exit(1)


def _job(config: dict[str, Any], folder: Path) -> None:
    # A function of this module, because launchers send it to other processes
    from attention_core.training.run import train

    train(config, folder)


def _prepare(arguments: list[str]) -> None:
    given = _of_experiment("prepare", "Write the folder of a run, and train nothing.", arguments)
    from attention_core.training.compose import run_hydra
    from attention_core.training.run import prepare

    run_hydra(prepare, given.overrides, flags=[], config_dir=given.config_dir)


def _find_lr(arguments: list[str]) -> None:
    given = _of_experiment("find-lr", "Try rising learning rates and suggest one.", arguments)
    from attention_core.training.compose import run_hydra
    from attention_core.training.find_lr import find_lr

    run_hydra(find_lr, given.overrides, flags=[], config_dir=given.config_dir)


def _evaluate(arguments: list[str]) -> None:
    given = _of_run("evaluate", "Test the best checkpoint of a run again.", arguments, ["run"])
    from attention_core.training.run import evaluate

    evaluate(Path(given["run"]), given["allow"])


def _predict(arguments: list[str]) -> None:
    given = _of_run(
        "predict",
        "Predict what a file or folder holds with the best checkpoint of a run. Writes CSV, or "
        "JSON lines where output ends in .jsonl; without output, CSV to the terminal.",
        arguments,
        ["run", "input", "output"],
        optional=["output"],
    )
    from attention_core.training.predict import predict

    output = Path(given["output"]) if "output" in given else None
    if predict(Path(given["run"]), Path(given["input"]), output, given["allow"]) > 0:
        sys.exit(1)


def _export(arguments: list[str]) -> None:
    given = _of_run(
        "export",
        "Write the model of a run, with the weights of its best checkpoint, as one file.",
        arguments,
        ["run", "format", "output"],
        optional=["output"],
    )
    from attention_core.training.export import export

    output = Path(given["output"]) if "output" in given else None
    export(Path(given["run"]), given["format"], output, given["allow"])


def _list(arguments: list[str]) -> None:
    parser = _parser("list", "The experiments in a line each, or all that is known of one.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="an experiment")
    given = parser.parse_intermixed_args(arguments)
    from attention_core.training.listing import list_experiments, show_experiment

    if given.name is None:
        list_experiments(given.config_dir)
    else:
        show_experiment(given.name, given.config_dir)


def _new_domain(arguments: list[str]) -> None:
    parser = _Parser(
        "attn new-domain", description="Write a Python file and a YAML file that train as written."
    )
    parser.add_argument("name", metavar="NAME", help="a Python name, such as audio")
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="the folder to write; default: NAME"
    )
    parser.add_argument(
        "--task",
        default="classification",
        metavar="TASK",
        help="classification (the default), regression, forecasting or segmentation",
    )
    given = parser.parse_args(arguments)
    from attention_core.training.new_domain import new_domain

    new_domain(given.name, given.into or Path(given.name), given.task)


def _check(arguments: list[str]) -> None:
    parser = _Parser(
        "attn check",
        description="Compare every backend with the reference on a device, time them beside what "
        "else there is, and keep the costs that follow, for plans on this machine.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N; default: a GPU where there is one"
    )
    parser.add_argument(
        "--minutes", type=float, default=5.0, metavar="M", help="for all of it; default: 5"
    )
    given = parser.parse_args(arguments)
    if not 0 < given.minutes <= 1440:
        raise UsageError(f"--minutes must be above 0 and at most 1440, got {given.minutes:g}")
    from attention_core.check.run import check, device_of

    if check(device_of(given.device), given.minutes, Path("outputs")):
        sys.exit(1)


def _of_experiment(command: str, description: str, arguments: list[str]) -> argparse.Namespace:
    """The overrides of a command that composes one configuration, as `attn train` does."""
    parser = _parser(command, description)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for attn train")
    given = parser.parse_intermixed_args(arguments)
    _make_importable(given.config_dir)
    return given


def _of_run(
    command: str,
    description: str,
    arguments: list[str],
    names: list[str],
    *,
    optional: Iterable[str] = (),
) -> dict[str, Any]:
    """The arguments `name=value` of a command that works on a finished run, and `allow`, the
    packages that the user trusts, as a list."""
    names, optional = [*names, "allow"], [*optional, "allow"]
    parser = _parser(command, description)
    parser.add_argument("values", nargs="*", metavar="name=value", help=", ".join(names))
    parsed = parser.parse_intermixed_args(arguments)
    _make_importable(parsed.config_dir)
    usage = " ".join(
        "[allow=[PACKAGE]]"
        if name == "allow"
        else f"[{name}=...]"
        if name in optional
        else f"{name}=FOLDER"
        if name == "run"
        else f"{name}=..."
        for name in names
    )
    given: dict[str, Any] = {}
    for argument in parsed.values:
        name, equals, value = argument.partition("=")
        if not equals or name not in names or name in given:
            near = did_you_mean(name, names) if equals and name not in names else ""
            raise UsageError(f"{command}: {argument!r} is not understood.{near} It takes {usage}.")
        given[name] = value
    missing = [name for name in names if name not in given and name not in optional]
    if missing:
        raise UsageError(f"{command} needs {missing[0]}=...: attn {command} {usage}")
    return {**given, "allow": _allowed(given, parsed.config_dir)}


def _allowed(given: dict[str, str], config_dir: Path | None) -> list[str]:
    """The packages that the user trusts: by allow=[...], and by pointing at experiments that do."""
    names = given.get("allow", "").strip().removeprefix("[").removesuffix("]").split(",")
    said = [name.strip().strip("'\"") for name in names if name.strip()]
    if config_dir is None:
        return said
    from attention_core.training.installed import allowed_by

    return list(dict.fromkeys([*said, *allowed_by([config_dir])]))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _, unknown, given = message.partition("unrecognized arguments: ")
        if unknown:
            message += self._meant(given.split()[0])
        super().error(on_one_line(message))  # the shell may have put names of files there

    def _meant(self, given: str) -> str:
        """ " Did you mean ...?" for an option that there is not, or that lacks its dashes."""
        name, equals, value = given.partition("=")
        options = [one for one in self._option_string_actions if one.startswith("--")]
        if equals and f"--{name}" in options:
            return f". Did you mean --{name} {value}?"
        near = did_you_mean(name, options) if name.startswith("-") else ""
        return f".{near}" if near else ""


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = _Parser(f"attn {command}", description=description, allow_abbrev=False)
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="a folder of your own experiments"
    )
    return parser


def _run_folder(overrides: list[str]) -> Path | None:
    runs = [override[4:] for override in overrides if override.startswith("run=")]
    return Path(runs[0]) if runs else None


def _make_importable(config_dir: Path | None) -> None:
    if config_dir is not None and not config_dir.is_dir():
        raise UsageError(f"--config-dir: {str(config_dir)!r} is not a folder.")
    from attention_core.training.own import serve

    serve([*([config_dir] if config_dir is not None else []), Path.cwd()])


def _leave_current_folder() -> None:
    """Imports nothing from the current folder by its mere name, here and in processes of ours."""
    sys.path[:] = [place for place in sys.path if place]
    for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)[:-1]:
        if not place and os.getcwd() in sys.path:
            sys.path.remove(os.getcwd())  # as of PYTHONPATH=$PYTHONPATH:more where it was not set
    os.environ["PYTHONSAFEPATH"] = "1"


def _fail(message: str) -> NoReturn:
    # Indented, or a text in the message could pass for another message
    print(f"attn: {for_terminal(message)}".replace("\n", "\n  "), file=sys.stderr)
    sys.exit(2)


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    text = "".join(traceback.format_exception(kind, error, trace))
    print(for_terminal(text), end="", file=sys.stderr)
