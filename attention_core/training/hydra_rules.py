"""What a configuration may say to Hydra itself: how a run is started, and nothing that is called.

Hydra calls what its part of a configuration names, before any code of ours has seen it: callbacks,
handlers of logs, launchers, sweepers. An experiment can set all of that.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from attention_core.errors import UsageError
from attention_core.training.instantiate import nodes, targets

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What may be named in Hydra's own part of a configuration, by where it is named
HYDRAS_OWN = {
    "hydra.launcher": {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
        "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    },
    "hydra.sweeper": {
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
        "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    },
    "hydra.sweeper.sampler": {
        f"optuna.samplers.{name}"
        for name in (
            *("BruteForceSampler", "CmaEsSampler", "GridSampler", "MOTPESampler", "NSGAIISampler"),
            *("QMCSampler", "RandomSampler", "TPESampler"),
        )
    },
}
# Of launchers and sweepers: they run what they are given
COMMANDS = (
    *("setup", "srun_args", "runtime_env", "custom_search_space"),
    "additional_parameters",  # of SLURM, such as `export`, which sets variables
)


def check_jobs() -> None:
    """Let `check_calls` see the configuration of every job before Hydra applies any of it: what a
    sweep chooses, such as another experiment, nobody has seen before."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.set_config
    if given.__module__ == __name__:
        return  # done already in this process

    def set_config(self: Any, cfg: "DictConfig") -> None:
        check_calls(cfg)
        given(self, cfg)

    HydraConfig.set_config = set_config  # type: ignore[method-assign]


def check_calls(config: "DictConfig") -> None:
    """Refuse what Hydra would call by its name, or tell every program that a run starts. An
    experiment can set it, too, and no `allow` counts for it.

    Raises:
        UsageError: a callback of Hydra's, a handler of logs, or a variable of the environment.
    """
    from omegaconf import OmegaConf

    hydra: Any = OmegaConf.to_container(config.hydra, resolve=False)
    callbacks, variables = hydra.get("callbacks"), (hydra.get("job") or {}).get("env_set")
    for place, node in targets(callbacks, "hydra.callbacks"):
        raise UsageError(
            f"{place}._target_: {node['_target_']!r} is refused: a run starts no code but what its "
            "own configuration shows."
        )
    if callbacks and callbacks != {}:
        raise UsageError(f"hydra.callbacks: {callbacks!r} is refused; callbacks=... has a run's.")
    if variables:
        raise UsageError(
            f"hydra.job.env_set: {variables!r} is refused: variables are set in the shell."
        )
    for key in ("hydra_logging", "job_logging"):
        for place, value in nodes(hydra.get(key), f"hydra.{key}"):
            called = place.endswith((".()", ".class"))
            if called or (isinstance(value, str) and ("://" in value or "${" in value)):
                raise UsageError(
                    f"{place}: {value!r} is refused: logging would call what it names. What a run "
                    "logs is in metrics.csv, and goes where logger=... says."
                )


def check_plugins(config: "DictConfig", overrides: Iterable[str]) -> None:
    """Refuse launchers, sweepers and samplers that are none of Hydra's and optuna's, and commands
    for them that the user has not given.

    Raises:
        UsageError: naming the place and what came.
    """
    from omegaconf import OmegaConf

    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    for key in ("hydra.launcher", "hydra.sweeper"):
        part: Any = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
        for place, node in targets(part, key):
            target = str(node["_target_"])
            if target not in HYDRAS_OWN.get(place, ()):
                raise UsageError(f"{place}._target_: {target!r} is refused: it is none of Hydra's.")
        for place, value in nodes(part, key):
            commands = place.rpartition(".")[2] in COMMANDS and value
            # A line of its own in the script of a job would be a command
            if (commands or (isinstance(value, str) and "\n" in value)) and place not in given:
                raise UsageError(
                    f"{place}: {value!r} is refused in a file: it can run commands. Give it on the "
                    "command line."
                )
