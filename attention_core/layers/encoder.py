"""Stacks of blocks."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from typing import Any, Unpack

from torch import Tensor, nn
from torch.compiler import is_compiling

from attention_core.annotated import checked
from attention_core.biases import Bias
from attention_core.cache import KVCache
from attention_core.checks import (
    check_chance,
    check_kind,
    check_tokens,
    check_whole,
)
from attention_core.job import Plan, is_ours
from attention_core.layers.attention import MultiheadAttention
from attention_core.layers.block import Block, BlockOptions
from attention_core.layers.needed import Needed, check_positions
from attention_core.layers.recorded import around, recorders
from attention_core.layers.residual import make_norm
from attention_core.layers.tokens import taken_in
from attention_core.masks import Mask
from attention_core.masks.algebra import as_mask
from attention_core.positions import Rotary
from attention_core.precision import product_dtype
from attention_core.score_mods import has_score_mod
from attention_core.spaces import Sequence, Space
from attention_core.transfer import moved


class EncoderOptions(BlockOptions, total=False):
    """Options of `Encoder`, which models pass on."""

    mask: Mask | Listing[Mask | None] | None
    bias: Bias | Listing[Bias] | None
    rotary: Rotary | Listing[Rotary | None] | None
    num_groups: int | None
    drop_path: float | Listing[float]
    final_norm: bool | None


class Encoder(nn.Module):
    """A stack of blocks over tokens in any space.

    Args:
        dim: size of a token.
        depth: number of blocks.
        heads: number of query heads.
        mask: for every layer, or a list of masks (or None) that the layers take in turn:
            ``[None, Neighborhood(64)]`` alternates full and local layers.
        bias: relative positions: one module, shared by all layers (T5), or a list that the layers
            take in turn; with `depth` entries each layer has its own (Swin).
        rotary: rotary positions: one for all layers, or a list of them (or None) that the layers
            take in turn, as masks: ModernBERT's local layers have a base of their own.
        num_groups: how many different blocks there are, where they are shared: each serves
            depth / num_groups layers on end (Lan et al., ALBERT, 2020, has 1).
        drop_path: chance that a sample skips a sublayer of the last block; it grows linearly from
            0 at the first. Or a list with the chance of each block.
        final_norm: normalise the output; by default unless `norm_order` is "post", which has done
            so.
        block: options of `Block` and `MultiheadAttention`, alike for every layer.
    """

    #: Added to every layer's mask.
    _always: Mask | None = None

    @checked(cross="a Decoder has a context", context_dim="a Decoder has a context")
    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        mask: Mask | Listing[Mask | None] | None = None,
        bias: Bias | Listing[Bias] | None = None,
        rotary: Rotary | Listing[Rotary | None] | None = None,
        num_groups: int | None = None,
        drop_path: float | Listing[float] = 0.0,
        final_norm: bool | None = None,
        **block: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        self.dim = dim
        check_whole(depth=depth)
        check_whole(num_groups=num_groups, or_none=True)
        if isinstance(drop_path, Listing):
            rates = list(drop_path)
        else:
            check_chance(drop_path=drop_path)
            rates = [drop_path * layer / max(depth - 1, 1) for layer in range(depth)]
        if len(rates) != depth:
            raise ValueError(f"drop_path lists {len(rates)} entries for {depth} layers")
        groups = depth if num_groups is None else num_groups
        if groups < 1 or depth % groups:
            raise ValueError(f"depth={depth} must be a multiple of num_groups={groups}")
        rotaries = list(rotary) if isinstance(rotary, Listing) else [rotary]
        if not 0 < len(rotaries) <= groups:
            raise ValueError(f"rotary lists {len(rotaries)} entries for {groups} different layers")
        each = depth // groups
        self.blocks: Listing[Block] = nn.ModuleList(  # type: ignore[assignment]
            self._block(
                dim, heads, drop_path=rates[n * each], rotary=rotaries[n % len(rotaries)], **block
            )
            for n in range(groups)
        )
        self._block_of_layer = [layer // each for layer in range(depth)]
        masks = [as_mask(m) for m in (mask if isinstance(mask, Listing) else [mask])]
        biases = list(bias) if isinstance(bias, Listing) else [] if bias is None else [bias]
        for name, values in (("mask", masks), ("bias", biases)):
            if len(values) > depth or (not values and (name == "mask" or bias is not None)):
                raise ValueError(f"{name} lists {len(values)} entries for {depth} layers")
        self.masks = [_both(self._always, masks[layer % len(masks)]) for layer in range(depth)]
        self.biases: Listing[Bias] = nn.ModuleList(biases)  # type: ignore[assignment]
        if final_norm is None:
            final_norm = block.get("norm_order", "pre") != "post"
        norm = make_norm(block.get("norm", "layer"), dim, block.get("eps", 1e-6))
        self.norm = norm if final_norm else nn.Identity()

    def _block(self, dim: int, heads: int, **options: Any) -> Block:
        return Block(dim, heads, **options)

    def forward(
        self,
        x: Tensor,
        space: Space | None = None,
        *,
        mask: Mask | Tensor | None = None,
        keep: Tensor | None = None,
        backend: str | None = None,
    ) -> Tensor:
        """Encode x.

        Args:
            x: (B, L, D), or (T, D) packed.
            space: where the tokens sit; a Sequence by default.
            mask: of this call, joined to each layer's own with `&`.
            keep: (K,) different positions of the tokens whose outputs are wanted, the same for
                every sample; None for all. A layer then computes the tokens alone that theirs
                depend on, where its mask tells (`Mask.candidates`, as those of graphs and points
                do): the last one, theirs. Hooks on blocks see these tokens.
            backend: a name to override the plan's choice.

        Returns: the shape of x, or of its tokens at `keep`; zeros on padding.
        """
        space = self._space(x, space)
        if keep is None:
            return self._run(x, (space, space), mask, backend)
        keep = check_positions(keep, space)
        extra = as_mask(mask)
        masks = [
            self.blocks[index].attention.masks(_both(own, extra))
            for own, index in zip(self.masks, self._block_of_layer, strict=True)
        ]
        # Maps are of all tokens, and a compiled program has one size
        whole = is_compiling() or bool(recorders.get()) or around.get() is not None
        terms: list[Mask | Bias] = [
            *self.biases,
            *(m for own in masks for m in own if m is not None),
        ]
        whole = whole or any(term.depends_on_others for term in terms)
        if whole or not len(keep):
            found = self._run(x, (space, space), mask, backend)
            return found.index_select(-2, moved(keep, x.device))
        return self._run(x, (space, space), mask, backend, needed=Needed(keep, space, masks))

    @checked
    def intermediates(
        self,
        x: Tensor,
        space: Space | None = None,
        *,
        layers: Listing[int],
        norm: bool = True,
        mask: Mask | Tensor | None = None,
        backend: str | None = None,
    ) -> list[Tensor]:
        """Return the tokens after some of the blocks, each in the shape of x; zeros on padding.

        Args:
            x, space, mask, backend: as in `forward`.
            layers: which blocks, in the order wanted; negative numbers count from the last.
            norm: normalise them as `forward` does its output.

        Raises:
            ValueError: there is no such layer.
        """
        depth = len(self.masks)
        for layer in layers:
            check_whole(-depth, layers=layer)
            if not -depth <= layer < depth:
                raise ValueError(f"there are {depth} layers, no layer {layer}")
        space = self._space(x, space)
        taken: dict[int, Tensor | None] = dict.fromkeys(layer % depth for layer in layers)
        self._run(x, (space, space), mask, backend, taken=taken)
        outputs = (taken[layer % depth] for layer in layers)
        return [space.zero_padding(self.norm(y) if norm else y) for y in outputs if y is not None]

    def _check_tokens(self, x: Tensor) -> None:
        check_tokens(self.blocks[0].attention.query, "(B, L, D), or (T, D) packed", x=x)
        if x.ndim not in (2, 3):
            raise ValueError(f"x must be (B, L, D), or (T, D) packed, got {tuple(x.shape)}")

    def _space(self, x: Tensor, space: Space | None) -> Space:
        """Where the tokens of a call sit: what is given, or a Sequence."""
        self._check_tokens(x)
        check_kind(Space, space=space)
        return (Sequence(x.shape[-2]) if space is None else space).to(x.device)

    def _run(
        self,
        x: Tensor,
        spaces: tuple[Space, Space],
        mask: Mask | Tensor | None,
        backend: str | None,
        context: Tensor | None = None,
        context_plan: Plan | None = None,
        cache: KVCache | None = None,
        taken: dict[int, Tensor | None] | None = None,
        needed: Needed | None = None,
        of_layer: Listing[Plan] = (),
    ) -> Tensor:
        """x after all blocks; `taken` is filled with the outputs of the blocks that it names. Of
        the tokens that are `needed`, where that is given; by the plans `of_layer`, if there are."""
        if x.shape[-2] != spaces[0].length:
            raise ValueError(f"x is {tuple(x.shape)}, but its space is {spaces[0].describe()}")
        if x.ndim == 2 and spaces[0].batch is not None:
            raise ValueError(
                f"x is packed, {tuple(x.shape)}, but its space is {spaces[0].describe()}: give "
                "x as (B, L, D), or a packed space"
            )
        extra = as_mask(mask)
        plans: dict[tuple[Mask | None, type, bool, tuple[int, ...]], Plan] = {}
        blocks = list(self.blocks)
        back: Tensor | None = None  # from the order that a plan computes in
        reorders = cache is None and context is None and needed is None and self._may_reorder(extra)
        for layer, index in enumerate(self._block_of_layer):
            block = blocks[index]
            bias = self.biases[layer % len(self.biases)] if len(self.biases) else None
            sizes: tuple[int, ...] = ()
            if needed is not None:
                x, spaces = needed.enter(x, layer), needed.spaces(layer)
                sizes = spaces[0].length, spaces[1].length
            # Layers whose masks are equal and whose biases are alike share a plan
            kind = (self.masks[layer], type(bias), has_score_mod(bias), sizes)
            if of_layer:
                plan = of_layer[layer]
            else:
                if kind not in plans:
                    joined = _both(self.masks[layer], extra)
                    plans[kind] = block.attention.plan(x, spaces, joined, bias, backend)
                    if reorders and back is None and plans[kind].order is not None:
                        # Once for all layers: what else they do, they do to each token alone
                        order, made = plans[kind].order, plans[kind].in_order()
                        assert order is not None
                        x, spaces, plans = taken_in(x, order), made.job.spaces, {kind: made}
                        back = order.argsort(-1)
                plan = plans[kind]
            if block._compiled_call_impl is not None and not is_compiling():
                block.attention.share(plan, bias, product_dtype(x))
            x = block(
                x,
                context,
                plan=plan,
                context_plan=context_plan,
                bias=bias,
                cache=None if cache is None else cache[layer],
            )
            if taken is not None and layer in taken:
                taken[layer] = x if back is None else taken_in(x, back)
        x = spaces[0].zero_padding(self.norm(x))
        if back is not None:
            x = taken_in(x, back)
        return x if needed is None else needed.leave(x)

    def _may_reorder(self, extra: Mask | None) -> bool:
        """Whether nobody would see that the tokens are in another order while blocks run."""
        if is_compiling() or recorders.get() or around.get() is not None:
            return False
        biases = [leaf for bias in self.biases for leaf in bias.leaves()]
        masks = [mask for mask in (*self.masks, extra) if mask is not None]
        terms: list[Mask | Bias] = [*masks, *biases]
        # Those of a user's own may speak of tokens by their number
        if not all(is_ours(term) and not term.depends_on_others for term in terms):
            return False
        return all(
            type(block) is Block
            and type(block.attention) is MultiheadAttention
            and not block._forward_hooks
            and not block._forward_pre_hooks
            for block in self.blocks
        )


def _both(first: Mask | None, second: Mask | None) -> Mask | None:
    if first is None or second is None:
        return second if first is None else first
    return first & second
