"""What `make bench` measures: each piece of work, who else does it, and the ratio aimed at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from attention_core import Encoder, Neighborhood, attend
from benchmarks import graph, patterns, sampling
from benchmarks.measure import Forward
from benchmarks.patterns import Setting
from nlp import TextDecoder
from vision import VisionTransformer


class Comparison(NamedTuple):
    """A piece of work, ours and a peer's.

    Attributes:
        target: the least ratio aimed at, with the kernels and in plain torch.
        ours, peer: make a forward pass; what they need beforehand is not measured.
        setting: of a pattern, whose ratio is its efficiency: density × time of the peer, which is
            unmasked SDPA, ÷ our time, so that 1 is SDPA's own speed on the allowed pairs alone. The
            ratio of others is time of the peer ÷ our time.
        backward: whether the backward pass belongs to it.
    """

    work: str
    peer_name: str
    target: tuple[float | None, float | None]
    ours: Callable[[], Forward]
    peer: Callable[[], Forward]
    setting: Callable[[], Setting] | None = None
    backward: bool = True

    @property
    def factor(self) -> float:
        """By what the time of the peer ÷ our time is multiplied."""
        return 1.0 if self.setting is None else patterns.density(self.setting)


# -- patterns --------------------------------------------------------------------------------------


def pattern(
    work: str, setting: Callable[[], Setting], *target: float | None, planned: bool = True
) -> Comparison:
    ours = patterns.ours if planned else unplanned
    return Comparison(
        work,
        "SDPA, unmasked",
        target,  # type: ignore[arg-type]
        partial(ours, setting),
        partial(patterns.unmasked, setting),
        setting,
    )


def unplanned(setting: Callable[[], Setting]) -> Forward:
    """Return attention as a user calls it: space and mask are new objects every time."""
    q, k, v = patterns.tokens(setting()[0].length)

    def forward() -> Tensor:
        space, mask, bias = setting()
        return attend(q, k, v, space=space, mask=mask, bias=bias)  # type: ignore[no-any-return]

    return forward


# -- sampled batches -------------------------------------------------------------------------------


# -- models ----------------------------------------------------------------------------------------


def of_model(model: nn.Module, inputs: Tensor, *, training: bool = False) -> Forward:
    model.train(training)
    return lambda: model(inputs)


def vit_tiny(ours: bool, batch: int) -> Forward:
    model = (
        VisionTransformer(192, 12, 3, patch_size=16, num_classes=1000, image_size=224)
        if ours
        else timm.create_model("vit_tiny_patch16_224")
    )
    return of_model(model, torch.rand(batch, 3, 224, 224))


def small_encoder(ours: bool) -> Forward:
    model: nn.Module
    if ours:
        model = Encoder(64, 2, 4)
    else:
        layer = nn.TransformerEncoderLayer(
            64, 4, 256, 0.0, "gelu", batch_first=True, norm_first=True
        )
        model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(64), enable_nested_tensor=False)
    return of_model(model, torch.randn(1, 16, 64))


def decoding(ours: bool, lengths: list[int]) -> Forward:
    """64 tokens after 8 prompts, greedily, by a GPT-2 of 6 layers of 384 and 8,192 ids."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=384, n_layer=6, n_head=6, vocab_size=8192,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    ids = torch.randint(1, 8192, (len(lengths), max(lengths)))
    if ours:
        model = TextDecoder.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
        sizes = torch.tensor(lengths)
        return lambda: model.generate(ids, sizes, side="left", max_tokens=64)  # type: ignore[return-value]
    mask = (torch.arange(ids.shape[1], 0, -1) <= torch.tensor(lengths)[:, None]).long()
    given: Any = {"attention_mask": mask, "max_new_tokens": 64, "do_sample": False}
    return lambda: theirs.generate(ids, **given)


# -- all -------------------------------------------------------------------------------------------


def comparisons() -> list[Comparison]:
    window, grid = partial(patterns.window, 8192), patterns.grid
    table = partial(patterns.window, 8192, table=True)
    graphs = Comparison(
        "512 graphs of 12 to 38 nodes, hop bias", "SDPA, padded, with a dense bias", (3.0, None),
        patterns.our_graphs, patterns.padded_graphs,
    )  # fmt: skip
    forward_alone = {"work": f"{graphs.work}, inference", "target": (1.0, 1.0), "backward": False}
    found = [
        pattern("window ±128, L = 8,192", window, 0.7, 0.5),
        pattern("the same, `attend` without a plan", window, 0.7, 0.5, planned=False),
        pattern("causal window 256, L = 8,192", patterns.causal_window, 0.7, 0.5),
        pattern("window ±128 + learned T5 table", table, 0.6, 0.45),
        pattern("32 ragged documents of 64 to 1,024", patterns.documents, 0.9, None),
        pattern("64 × 64 grid, radius 3", grid, 0.25, 0.15),
        pattern("the same + learned table of offsets", partial(grid, table=True), None, None),
        graphs,
        graphs._replace(**forward_alone),
        Comparison(
            "Swin windows of 7, shifted, 56 × 56, batch 4", "torchvision's layer", (1.0, 1.0),
            patterns.our_swin, patterns.their_swin,
        ),
        Comparison(
            "56 × 56 grid, radius 3, border='shift'", "border='cut'", (1 / 1.3, 1 / 1.3),
            partial(patterns.planned, Neighborhood(3, border="shift")),
            partial(patterns.planned, Neighborhood(3)),
        ),
    ]  # fmt: skip
    for name, features, head_dim, *target in (
        ("TransformerConv", None, 8, 8.0, 3.5),
        ("TransformerConv", 16, 8, 5.0, 2.0),
        ("GATv2Conv", None, 8, 12.0, 2.8),
        ("GATv2Conv", 16, 8, 5.0, None),
        ("GATConv", None, 8, 8.0, 2.8),
        ("GATConv", 16, 8, None, None),
        ("TransformerConv", None, 64, None, None),
        ("TransformerConv", 16, 64, None, None),
        ("GATv2Conv", None, 64, None, None),
    ):
        size = (50_000, 800_000) if head_dim == 8 else (10_000, 160_000)
        made = [partial(graph.conv, name, own, head_dim, features, size) for own in (True, False)]
        work = f"{name}, 8 heads of {head_dim}" + (f", {features} features" * bool(features))
        found.append(Comparison(work, "PyG", (target[0], target[1]), *made))
    for name in sampling.LAYERS:
        made = [partial(sampling.step, name, own) for own in (True, False)]
        work = f"sampled batches, two {name}, a step, both trimmed"
        found.append(Comparison(work, "PyG", (1.5, 1.0), *made))
    for batch in (1, 8):
        made = [partial(vit_tiny, own, batch) for own in (True, False)]
        work = f"ViT-Ti, inference, batch {batch}"
        found.append(Comparison(work, "timm", (1.0, 1.0), *made, backward=False))
    made = [partial(small_encoder, own) for own in (True, False)]
    work = "encoder of 2 layers of 64, inference, batch 1, 16 tokens"
    found.append(Comparison(work, "nn.TransformerEncoder", (1.0, 1.0), *made, backward=False))
    for what, lengths in (("one length", [16] * 8), ("all lengths", [16, 4, 9, 12, 6, 14, 5, 11])):
        made = [partial(decoding, own, lengths) for own in (True, False)]
        work = f"decoding with a cache, small GPT-2, prompts of {what}"
        found.append(Comparison(work, "transformers", (1.1, 1.1), *made, backward=False))
    return found
