"""Token merging: fewer tokens from layer to layer, without training (ToMe)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attention_core import Bias, DenseBias, Grid, Mask
from attention_core.checks import check_kind, is_whole
from attention_core.layers import Block
from attention_core.layers.residual import unit
from vision.models import VisionTransformer


class TokenMerging(nn.Module):
    """A vision transformer that merges similar tokens as it goes (Bolya et al., ToMe, 2023).

    Between attention and feed-forward network of each block, the `count` most similar pairs of
    tokens of an image become their mean. Tokens that stand for several get that much attention, and
    count that much where the model pools. Class token and registers are never merged. It needs no
    training, but can be trained through.

    Args:
        model: the vision transformer; its weights are shared, not copied.
        count: tokens that each block merges away, or a list with the number of each block. At most
            half of the patches that a block gets go.

    Raises:
        ValueError: a number is negative or not whole, or there are not as many as blocks.

    Example::

        faster = TokenMerging(model, 8).eval()
        logits = faster(images)
    """

    def __init__(self, model: VisionTransformer, count: int | Sequence[int]) -> None:
        super().__init__()
        check_kind(VisionTransformer, or_none=False, model=model)
        depth = len(model.encoder.masks)
        self.model = model
        self.counts = list(count) if isinstance(count, Sequence) else [count] * depth
        if len(self.counts) != depth or any(
            isinstance(n, bool) or not is_whole(n) or n < 0 for n in self.counts
        ):
            raise ValueError(
                f"count must be at least 0, or a list with one such number for each of {depth} "
                f"blocks; got {count!r}"
            )

    def forward(self, image: Tensor, *, backend: str | None = None) -> Tensor:
        """Compute the outputs (B, num_classes) of images (B, C, H, W) of one size.

        Args:
            backend: a name to override the plan's choice.

        Raises:
            TypeError, ValueError: as in `VisionTransformer.forward`; or it is a list of images.
        """
        tokens, space, source = self.merged(image, backend=backend)
        whole = tokens.gather(1, source[..., None].expand(-1, -1, tokens.shape[-1]))
        return self.model.read(whole, space)

    def merged(self, image: Tensor, *, backend: str | None = None) -> tuple[Tensor, Grid, Tensor]:
        """Return the merged tokens, and what has become of each token.

        Args:
            image: (B, C, H, W).
            backend: a name to override the plan's choice.

        Returns: tokens (B, K, D); the space of the L tokens before merging; and (B, L), which of
        the K tokens each of these is a part of.
        """
        if not isinstance(image, Tensor):
            raise ValueError(
                f"image must be a tensor (B, C, H, W), got {type(image).__name__}: images of "
                "different sizes lose different numbers of tokens, so give them to TokenMerging "
                "one size at a time, as (B, C, H, W)"
            )
        encoder, special = self.model.encoder, self.model.num_special
        each = len(self.counts) // len(encoder.blocks)  # layers that share a block, see `Encoder`
        x, whole = self.model.embed(image)
        source = torch.arange(whole.length, device=x.device).expand(len(x), -1)
        size, space = x.new_ones(*x.shape[:2], 1), whole
        for layer, count in enumerate(self.counts):
            block = encoder.blocks[layer // each]
            bias = encoder.biases[layer % len(encoder.biases)] if len(encoder.biases) else None
            if space is not whole:
                weight = DenseBias(size.mT[:, None].log())
                bias = weight if bias is None else bias + weight
            x, keys = _attend(block, x, space, encoder.masks[layer], bias, backend)
            count = min(count, (space.length - special) // 2)
            if count:
                kept, into = _match(keys, special, count)
                total = _sums(size, into, kept.shape[1])
                x = _sums(x * size, into, kept.shape[1]) / total
                size, space, source = total, space.keep(kept), into.gather(1, source)
            x = block.feed_forward_residual(x, block.feed_forward, space)
        return encoder.norm(x), whole, source


def _attend(
    block: Block, x: Tensor, space: Grid, mask: Mask | None, bias: Bias | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """x after the attention of a block, and each token's key, the mean of the heads' (B, L, d)."""
    attention, projected = block.attention, []
    plan = attention.plan(x, space, mask, bias, backend)
    hook = attention.key_value.register_forward_hook(lambda *call: projected.append(call[-1]))
    try:
        x = block.attention_residual(x, lambda y: attention(y, plan=plan, bias=bias), space)
    finally:
        hook.remove()
    keys = projected[0].chunk(2, dim=-1)[0].unflatten(-1, (attention.kv_heads, -1))
    if attention.key_norm is not None:
        keys = attention.key_norm(keys)
    return x, keys.mean(-2)


def _match(keys: Tensor, special: int, count: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: of every other token the `count` that are most like one between.

    Args:
        keys: (B, L, d), what is compared, by the cosine of the angle.
        special: tokens in front that stay out of it.
        count: how many tokens go.

    Returns: (B, L - count), the tokens that stay, special tokens first, then what is left of the
    tokens that were compared, then those that they were compared with; and (B, L), which of these
    each token is now a part of.
    """
    device, (batch, length, _) = keys.device, keys.shape
    keys = unit(keys.detach())
    # Counted from the class token, as published, which is the first of those compared
    start = special + special % 2
    compared = torch.arange(start, length, 2, device=device)
    others = torch.arange(special + (special + 1) % 2, length, 2, device=device)
    likeness, partner = (keys[:, compared] @ keys[:, others].mT).max(-1)
    order = likeness.argsort(dim=-1, descending=True)
    stay, go = order[:, count:].sort().values, order[:, :count]
    front = torch.arange(special, device=device)
    kept = torch.cat([front.expand(batch, -1), compared[stay], others.expand(batch, -1)], dim=-1)
    into = kept.new_empty(batch, length)
    into.scatter_(1, kept, torch.arange(kept.shape[1], device=device).expand(batch, -1))
    into.scatter_(1, compared[go], partner.gather(1, go) + special + stay.shape[1])
    return kept, into


def _sums(values: Tensor, into: Tensor, count: int) -> Tensor:
    """(B, count, D): the sums of the rows of values (B, L, D) that go into each token."""
    sums = values.new_zeros(len(values), count, values.shape[-1])
    return sums.scatter_add(1, into[..., None].expand_as(values), values)
