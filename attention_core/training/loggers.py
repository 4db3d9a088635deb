"""The loggers beside `metrics.csv`: built, told the configuration, and ended with the run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.utilities import rank_zero_only

from attention_core.errors import UsageError
from attention_core.escape import shell_word
from attention_core.files import replace_file
from attention_core.training.instantiate import build
from attention_core.training.processes import joins_another


def build_loggers(config: Mapping[str, Any], folder: Path) -> list[Logger]:
    """Build the loggers that `config` names, writing to the run folder where they write files.

    Only the process that leads a run has any.

    Raises:
        UsageError: the package of a logger is not installed.
    """
    loggers = []
    for name, part in ({} if joins_another() else config.get("logger") or {}).items():
        if part is None:
            continue
        try:
            logger = build(part, "logger", allow=config.get("allow") or (), save_dir=folder)
        except ModuleNotFoundError as error:
            raise UsageError(
                f"logger: {name!r} needs a package that is not installed. Install it with: "
                f"pip install {shell_word(f'attention-core[{name}]')}"
            ) from error
        if isinstance(logger, CSVLogger | TensorBoardLogger):
            place = Path(logger.log_dir).resolve()
            if not place.is_relative_to(folder.resolve()):
                raise UsageError(
                    f"logger.{name}: it would write to {str(place)!r}, which is not in the run "
                    "folder: name, version and sub_dir must stay inside it."
                )
        loggers.append(logger)
    return loggers


@contextmanager
def logged(trainer: Trainer, config: Mapping[str, Any]) -> Iterator[None]:
    """Tell the loggers of `trainer` the configuration, and at the end that the run has ended."""
    for logger in trainer.loggers:
        logger.log_hyperparams(dict(config))
    code = 1
    try:
        yield
        code = 0
    finally:
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # Else the next job of a sweep would log into the same run
                logger.experiment.finish(exit_code=code)


class MLFlow(MLFlowLogger):
    """Lightning's logger, which without a server writes a database into the run folder, and which
    goes on in the same MLflow run when the run is resumed.

    Args:
        save_dir: the run folder.
        tracking_uri: of the server; None: the folder `mlflow` of the run.
    """

    def __init__(
        self,
        *,
        save_dir: Path,
        experiment_name: str = "attention-core",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
    ) -> None:
        folder = Path(save_dir) / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        self._id_file = folder / "run_id"
        super().__init__(
            experiment_name=experiment_name,
            run_name=run_name,
            # MLflow refuses its plain file store since 3.0
            tracking_uri=tracking_uri or f"sqlite:///{folder / 'mlflow.db'}",
            tags=tags,
            artifact_location=None if tracking_uri else (folder / "artifacts").as_uri(),
            run_id=self._id_file.read_text() if self._id_file.exists() else None,
        )

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)
        with replace_file(self._id_file, "w") as file:
            file.write(str(self.run_id))
