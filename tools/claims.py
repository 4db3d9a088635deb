"""What the experiments state, read from their files, and README's table of it.

`about.states` of an experiment is a list of claims, see `Claim`. `about.table`, where it is in
README, has its `data` there and what stands `beside` the first claim; {1} in it is the second.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from attention_core.errors import UsageError, did_you_mean
from attention_core.training.compose import about

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- experiments: begin -->\n", "<!-- experiments: end -->\n"
#: How a metric is written: times what, with how many decimals, in what words.
UNITS = {
    "test/accuracy": (100, 1, "{}%"),
    "test/bits_per_byte": (1, 2, "{} bits per byte"),
    "test/chrf": (1, 1, "chrF {}"),
    "test/hits_at_10": (1, 3, "filtered Hits@10 {}"),
    "test/mrr": (1, 3, "filtered MRR {}"),
    "test/r2": (1, 3, "R² {}"),
}


@dataclass(frozen=True)
class Claim:
    """The figures that an experiment states of one metric.

    Args:
        metric: its name in `results.json`.
        values: of the seeds 1, 2, and so on, each to be compared. Or:
        mean: over the first so many `seeds`, or over so many `folds`; it alone is compared.
        deviation: the standard one, of a sample where these are seeds; folds are all there are.
        tolerance: how far a value or a mean may be from it, either way, in the metric's unit.
        least, most: what every seed keeps, one without a stated value too; or the mean, if stated.
        overrides: given to every run.
        after: the experiment that is trained first, and whose weights every run starts from.
    """

    metric: str
    values: tuple[float, ...] = ()
    mean: float = math.nan
    deviation: float = math.nan
    tolerance: float = math.nan
    seeds: int = 0
    folds: int = 0
    least: float = -math.inf
    most: float = math.inf
    overrides: tuple[str, ...] = ()
    after: str = ""

    def __post_init__(self) -> None:
        if self.metric not in UNITS:
            raise UsageError(f"metric: one of {', '.join(UNITS)} is needed, got {self.metric!r}.")
        if [bool(self.values), self.seeds > 0, self.folds > 0].count(True) != 1:
            raise UsageError("one of values, seeds and folds is needed.")
        if self.averaged == math.isnan(self.deviation) or (self.averaged and self.values):
            raise UsageError("mean and deviation go together, and in place of values.")
        figures = bool(self.values) or self.averaged
        if not figures and not self.bounded:
            raise UsageError("one of values, mean, least and most is needed.")
        if figures and not self.tolerance > 0:
            raise UsageError(f"tolerance: more than 0 is needed, got {self.tolerance}.")

    @property
    def averaged(self) -> bool:
        return not math.isnan(self.mean)

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.least) or math.isfinite(self.most)

    @property
    def runs(self) -> list[str]:
        """The override of each run that gave a figure."""
        if self.folds:
            return [f"data.fold={fold}" for fold in range(self.folds)]
        return [f"seed={seed}" for seed in range(1, 1 + (self.seeds or len(self.values)))]

    def asked(self, seeds: Iterable[int] | None) -> list[str]:
        """Return `runs`, or those of other `seeds`; of folds always all."""
        return self.runs if self.folds or not seeds else [f"seed={seed}" for seed in seeds]

    def cell(self, measured: Mapping[str, float | None] | None = None) -> str | None:
        """The figures as README has them: as stated, or as `measured` by run, if all are."""
        figures = [self.mean, self.deviation] if self.averaged else list(self.values)
        if measured is not None:
            known = [measured.get(run) for run in self.runs]
            figures = [value for value in known if value is not None]
            if len(figures) < len(known):
                return None
            if self.averaged:
                spread = statistics.pstdev if self.folds else statistics.stdev
                figures = [statistics.mean(figures), spread(figures)]
        factor, decimals, words = UNITS[self.metric]
        between = " ± " if self.averaged else ", "
        cell = words.format(between.join(f"{factor * each:.{decimals}f}" for each in figures))
        cell += ", one seed" if len(self.values) == 1 else ""
        cell += f", {self.folds} folds" if self.folds else ""
        return cell + (f" after `{self.after}`" if self.after else "")


@dataclass(frozen=True)
class Run:
    """One training, in a folder of its name."""

    experiment: str
    overrides: tuple[str, ...] = ()
    after: str = ""
    config_dir: Path | None = None

    @property
    def name(self) -> str:
        parts = [self.experiment, *self.overrides, *(["after", self.after] if self.after else [])]
        return re.sub(r"[^\w.]+", "-", " ".join(parts))


@dataclass(frozen=True)
class Experiment:
    """An experiment that states something; of an example, with its `config_dir`."""

    name: str
    about: dict[str, Any]
    claims: list[Claim]
    config_dir: Path | None

    def run(self, claim: Claim, override: str) -> Run:
        return Run(self.name, (override, *claim.overrides), claim.after, self.config_dir)

    def row(self, measured: Sequence[Mapping[str, float | None]] | None = None) -> str | None:
        """Its row of README, as stated, or as `measured` for each claim.

        None where it has none, or where not all that it states has been measured.
        """
        given = [None] * len(self.claims) if measured is None else measured
        cells = [claim.cell(of) for claim, of in zip(self.claims, given, strict=True)]
        if "table" not in self.about or None in cells:
            return None
        table = self.about["table"]
        beside = table.get("beside", "").format(*cells)
        return f"| `{self.name}` | {table['data']} | {cells[0]} | {beside + ' ' if beside else ''}|"


def experiments() -> list[Experiment]:
    """All that state something: those of conf/, and those of the examples.

    Raises:
        UsageError: a claim is not understood.
    """
    homes = [None, *sorted(path.parent for path in ROOT.glob("examples/*/experiment"))]
    return [
        Experiment(name, section, claims(name, section["states"]), home)
        for home in homes
        for name, section in about([home or ROOT / "conf"]).items()
        if "states" in section
    ]


def claims(name: str, states: list[dict[str, Any]]) -> list[Claim]:
    known = [field.name for field in fields(Claim)]
    found = []
    for given in states:
        entry: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        where = f"experiment/{name}.yaml: about.states: "
        for key in entry:
            if key not in known:
                raise UsageError(f"{where}there is no key {key!r}.{did_you_mean(key, known)}")
        try:
            found.append(Claim(**entry))
        except (UsageError, TypeError) as error:
            raise UsageError(f"{where}{error}") from error
    return found


def rewrite(text: str, rows: Mapping[str, str]) -> str:
    """The text of README with these rows of its table, by experiment; new ones come last.

    Raises:
        UsageError: the lines that mark the table are missing.
    """
    if BEGIN not in text or END not in text:
        raise UsageError(f"README.md: the lines {BEGIN.strip()} and {END.strip()} are needed.")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    title, rule, *body = table.splitlines()
    kept = {row.split("`")[1]: row for row in body} | dict(rows)
    return before + BEGIN + "\n".join([title, rule, *kept.values()]) + "\n" + END + after
