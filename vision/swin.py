"""Swin transformers: stages of `attention_core.Encoder` whose masks are windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor, nn

from attention_core import Bias, ContinuousBias, Encoder, Grid, RelativeTable, Window
from attention_core.annotated import Unchecked, checked
from attention_core.checks import check_whole
from attention_core.layers import BlockOptions, Pool
from attention_core.layers.residual import make_norm
from attention_core.models import Model
from attention_core.pretrained import names
from vision.embeddings import PatchEmbedding, pair
from vision.pretrained import SWIN_TRANSFORMERS
from vision.windows import WindowAttention, pad_grid

#: Swin-T, S, B and L, alike in both versions.
SWIN_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "small": {"dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "base": {"dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
    "large": {"dim": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)},
}


#: Options of `Encoder` that are no options here.
_ITS_OWN = {
    "mask": "its masks are the windows of `window`",
    "bias": "version 1 learns a table for each layer, version 2 a network",
    "final_norm": "it normalises what the last stage gives",
}

#: Of the normalisations, where no other `eps` is given.
_EPS = 1e-5


class PatchMerging(nn.Module):
    """Each 2×2 tokens as one of twice the size (Liu et al., Swin, 2021).

    Odd rows and columns are completed by zeros.

    Args:
        dim: size D of a token.
        norm_order: "pre" normalises the four tokens (v1), "post" what becomes of them (v2).
        eps: of the normalisation.
    """

    def __init__(
        self, dim: int, *, norm_order: Literal["pre", "post"] = "pre", eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm_order = norm_order
        self.norm = make_norm("layer", 4 * dim if norm_order == "pre" else 2 * dim, eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        nn.init.xavier_uniform_(self.reduction.weight)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """Merge (B, h·w, D) to (B, ⌈h/2⌉·⌈w/2⌉, 2D); return them and their grid."""
        assert grid.size is not None
        height, width = (n + n % 2 for n in grid.size)
        x = pad_grid(x.unflatten(-2, grid.size), (height, width))
        # The published order: down first, then to the right
        x = torch.cat([x[..., i::2, j::2, :] for j in (0, 1) for i in (0, 1)], dim=-1)
        x = x.flatten(-3, -2)
        x = (
            self.reduction(self.norm(x))
            if self.norm_order == "pre"
            else self.norm(self.reduction(x))
        )
        return x, Grid(height // 2, width // 2, device=x.device)


class SwinStage(Encoder):
    """Blocks that attend inside windows; every other one shifts them by half a window.

    Args:
        dim: size D of a token.
        depth: number of blocks.
        heads: number of heads.
        window: height and width of a window in tokens, or one number for both.
        version: 1, with a table of relative positions for each block; or 2, with a network for it,
            cosine attention, and the normalisation at the end of each residual branch.
        merging: halve height and width after the stage: the module `merging` is for the caller.
        drop_path: as in `Encoder`.
        block: options of `Block` and `MultiheadAttention`; `eps` is 1e-5 by default.
    """

    @checked(**_ITS_OWN)
    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        window: int | tuple[int, int],
        version: Literal[1, 2] = 1,
        merging: bool = False,
        drop_path: float | Sequence[float] = 0.0,
        **block: Unpack[BlockOptions],
    ) -> None:
        block.setdefault("eps", _EPS)
        block["attention_type"] = WindowAttention
        size = pair("window", window)
        shifted = Window(size, shift=(size[0] // 2, size[1] // 2))
        bias: list[Bias]
        if version == 1:
            bias = [RelativeTable.swin(heads, size) for _ in range(depth)]
        else:
            extent = (size[0] - 1, size[1] - 1)
            bias = [ContinuousBias(heads, extent) for _ in range(depth)]
            second: BlockOptions = {
                "norm_order": "res-post",
                "qk_norm": "cosine",
                "key_bias": False,
            }
            block = {**second, **block}
        super().__init__(
            dim,
            depth,
            heads,
            mask=[Window(size), shifted][:depth],
            bias=bias,
            drop_path=drop_path,
            final_norm=False,
            **block,
        )
        self.merging: PatchMerging | None = None
        if merging:
            self.merging = PatchMerging(
                dim, norm_order="pre" if version == 1 else "post", eps=block["eps"]
            )


def _windows(window: Any, stages: int) -> list[tuple[int, int]]:
    """The size of each stage's windows, from one for all, or a list of pairs."""
    if not isinstance(window, Sequence) or not all(isinstance(one, Sequence) for one in window):
        return [pair("window", window)] * stages
    if len(window) != stages:
        raise ValueError(f"window must be one size, or one for each of {stages} stages: {window}")
    return [pair("window", one) for one in window]


class SwinTransformer(Model):
    """A pyramid of stages that attend inside shifted windows (Liu et al., Swin, 2021; Swin v2,
    2022).

    Each stage but the last halves height and width and doubles the size of a token.

    Args:
        dim: size D of a token of the first stage.
        depths: number of blocks of each stage.
        heads: number of heads of each stage.
        window: height and width of a window in tokens, or one number for both; or a list of pairs,
            one for each stage.
        patch_size: height and width of a patch in pixels, or one number for both.
        num_classes: number of outputs per image; None returns the pooled image itself.
        channels: number of channels of an image.
        version: 1 or 2; see `SwinStage`.
        drop_path: chance that a sample skips a sublayer of the last block in training; it grows
            linearly from 0 at the first, over all stages.
        block: further options of `Block` and `MultiheadAttention`, for every stage; `eps` is 1e-5
            by default.

    Raises:
        ValueError: arguments that do not fit; the message names them.

    Example::

        model = SwinTransformer(96, (2, 2, 6, 2), (3, 6, 12, 24), window=7, num_classes=1000)
        logits = model(torch.rand(8, 3, 224, 224))
        maps = model.features(torch.rand(1, 3, 256, 320))  # 64×80, 32×40, 16×20, 8×10
    """

    presets = SWIN_PRESETS
    families = SWIN_TRANSFORMERS
    parts = {names.CLASSIFIER: "head"}

    @checked(merging="all stages but the last have it", **_ITS_OWN)
    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        *,
        window: int | tuple[int, int] | Sequence[tuple[int, int]],
        patch_size: int | tuple[int, int] = 4,
        num_classes: int | None,
        channels: int = 3,
        version: Literal[1, 2] = 1,
        drop_path: float = 0.0,
        **block: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        eps = block.setdefault("eps", _EPS)
        if version not in (1, 2):
            raise ValueError(f"version must be 1 or 2, got {version!r}")
        for depth in depths:
            check_whole(depths=depth)
        if not depths or len(depths) != len(heads):
            raise ValueError(
                f"depths and heads must have a number for each stage, got {list(depths)} and "
                f"{list(heads)}"
            )
        windows = _windows(window, len(depths))
        self.embedding = PatchEmbedding(patch_size, dim, channels=channels)
        self.embedding_norm = make_norm("layer", dim, eps)
        last = max(sum(depths) - 1, 1)
        rates = [drop_path * number / last for number in range(sum(depths))]
        self.stages: Sequence[SwinStage] = nn.ModuleList(  # type: ignore[assignment]
            SwinStage(
                dim * 2**stage,
                depth,
                heads[stage],
                window=windows[stage],
                version=version,
                merging=stage + 1 < len(depths),
                drop_path=rates[sum(depths[:stage]) : sum(depths[: stage + 1])],
                **block,
            )
            for stage, depth in enumerate(depths)
        )
        width = dim * 2 ** (len(depths) - 1)
        self.norm = make_norm("layer", width, eps)
        self.pool = Pool("mean")
        self.reset_head(num_classes)

    @classmethod
    def preset(cls, name: str, **options: object) -> Self:
        """Make a model of the sizes that the literature calls `name`, see `SWIN_PRESETS`.

        Args:
            name: "tiny", "small", "base" or "large".
            options: all other arguments; they may replace those of the preset. Windows are of 7×7
                by default, in version 2 of 8×8.

        Raises:
            ValueError: there is no such preset.
        """
        window = 8 if options.get("version") == 2 else 7
        return super().preset(name, **{"window": window, **options})

    def embed(self, image: Tensor) -> tuple[Tensor, Grid]:
        """Return what the first stage gets, tokens (B, L, D), and where they sit.

        Args, Raises: as of `forward`.
        """
        if not isinstance(image, Tensor):
            raise TypeError(
                f"image must be a tensor (B, C, H, W), got {type(image).__name__}: windows need "
                "images of one size"
            )
        tokens, grid = self.embedding(image)
        return self.embedding_norm(tokens), grid

    def _run(self, image: Tensor, backend: str | None) -> list[tuple[Tensor, Grid]]:
        """The tokens of each stage, and where they sit."""
        tokens, grid = self.embed(image)
        stages = []
        for stage in self.stages:
            tokens = stage(tokens, grid, backend=backend)
            stages.append((tokens, grid))
            if stage.merging is not None:
                tokens, grid = stage.merging(tokens, grid)
        return stages

    def encode(self, image: Tensor, *, backend: str | None = None) -> tuple[Tensor, Grid]:  # type: ignore[override]
        """Return the tokens of the last stage, (B, L, D) normalised, and where they sit.

        Args, Raises: as of `forward`.
        """
        tokens, grid = self._run(image, backend)[-1]
        return self.norm(tokens), grid

    @checked
    def features(  # type: ignore[override]
        self,
        image: Unchecked[Tensor],
        *,
        layers: Sequence[int] | None = None,
        norm: bool = False,
        backend: str | None = None,
    ) -> list[Tensor]:
        """Return the maps of stages: (B, D, H/patch_size, W/patch_size) of the first, and of each
        further one half as high and wide with twice as many features.

        Args:
            image, backend: as of `forward`.
            layers: which stages, in the order wanted; negative numbers count from the last. All of
                them by default.
            norm: normalise that of the last stage as the head gets it. The others have no norm.

        Raises:
            ValueError: there is no such stage; or as of `forward`.
        """
        count = len(self.stages)
        chosen = range(count) if layers is None else layers
        for stage in chosen:
            check_whole(-count, layers=stage)
            if stage >= count:
                raise ValueError(f"layers: there are {count} stages, no stage {stage}")
        maps = self._run(image, backend)
        if norm:
            maps[-1] = self.norm(maps[-1][0]), maps[-1][1]
        return [tokens.mT.unflatten(-1, grid.size) for tokens, grid in (maps[n] for n in chosen)]

    def forward(self, image: Tensor, *, backend: str | None = None) -> Tensor:  # type: ignore[override]
        """Return the outputs (B, num_classes) of B images.

        Args:
            image: (B, C, H, W) float, H and W any multiples of the patch.
            backend: a name to override the plan's choice.

        Raises:
            TypeError, ValueError: an image of another kind or shape; the message names it.
        """
        return self.read(*self.encode(image, backend=backend))

    def _new_head(self, num_classes: int | None) -> nn.Module:
        width = self.stages[-1].dim
        return nn.Identity() if num_classes is None else nn.Linear(width, num_classes)
