"""Token merging against a reference written from the paper (Bolya et al., 2023), and its laws."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attention_core import Neighborhood, RelativeTable
from vision import CenteredRotary, TokenMerging, VisionTransformer

POOLING = ["class", "mean", "attention", "map"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def vit(**changes: Any) -> VisionTransformer:
    settings: dict[str, Any] = {"patch_size": 2, "num_classes": 5, "channels": 1, "image_size": 12}
    return VisionTransformer(32, heads=2, **{"depth": 3, **settings, **changes}).eval()


def reference(model: VisionTransformer, image: Tensor, r: int) -> Tensor:
    """Section 3 of the paper, one image and one token at a time; pre-norm, class token pooled."""
    outputs = []
    for one in image:
        x = list(model.embed(one[None])[0][0])
        size = [1.0] * len(x)
        for block in model.encoder.blocks:
            y = block.attention_residual.norm(torch.stack(x))
            attention = block.attention
            k, v = attention.key_value(y).chunk(2, -1)
            q, k, v = (t.unflatten(-1, (2, 16)).transpose(0, 1) for t in (attention.query(y), k, v))
            score = q @ k.mT / 4 + torch.tensor(size).log()  # proportional attention
            y = attention.out((score.softmax(-1) @ v).transpose(0, 1).flatten(1))
            x = list(torch.stack(x) + y)
            key = k.mean(0)
            a, b = list(range(0, len(x), 2)), list(range(1, len(x), 2))
            edges = []
            for i in a[1:]:  # the class token, first in A, is not merged
                similar = [float(F.cosine_similarity(key[i], key[j], dim=0)) for j in b]
                best = max(range(len(b)), key=similar.__getitem__)
                edges.append((similar[best], i, b[best]))
            gone = sorted(edges, reverse=True)[: min(r, (len(x) - 1) // 2)]
            for j in b:
                group = [j, *(i for _, i, into in gone if into == j)]
                total = sum(size[i] for i in group)
                x[j] = sum((x[i] * size[i] for i in group), torch.zeros(32)) / total
                size[j] = total
            order = [i for i in a if i not in {i for _, i, _ in gone}] + b
            x, size = [x[i] for i in order], [size[i] for i in order]
            y = torch.stack(x)
            x = list(y + block.feed_forward(block.feed_forward_residual.norm(y)))
        outputs.append(model.head(model.encoder.norm(x[0])))
    return torch.stack(outputs)


@pytest.mark.parametrize("count", [1, 5, 100])
def test_it_is_the_papers(count: int) -> None:
    model, image = vit(), torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        merged = TokenMerging(model, count)(image)
        torch.testing.assert_close(merged, reference(model, image, count), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(merged, model(image), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLING)
def test_merging_nothing_is_the_model_itself(pooling: Any) -> None:
    model, image = vit(pooling=pooling, registers=2), torch.randn(2, 1, 12, 12)
    assert torch.equal(TokenMerging(model, 0)(image), model(image))


@pytest.mark.parametrize("registers", [0, 1, 4])
@pytest.mark.parametrize("pooling", POOLING)
@pytest.mark.parametrize("qk_norm", [False, "layer"])
def test_merging_equal_tokens_changes_nothing(pooling: Any, registers: int, qk_norm: Any) -> None:
    """Each patch twice, next to its twin: half of them can go, wherever the model pools."""
    model = vit(
        pooling=pooling, registers=registers, positions=None, pool_norm=True, qk_norm=qk_norm
    )
    image = torch.randn(2, 1, 12, 6).unflatten(-1, (3, 2)).repeat_interleave(2, 3).flatten(3)
    merging = TokenMerging(model, [18, 0, 0])
    tokens, whole, source = merging.merged(image)
    assert tokens.shape[1] == whole.length - 18
    assert all(source[0, model.num_special :].bincount()[model.num_special :] == 2)
    torch.testing.assert_close(merging(image), model(image), atol=1e-5, rtol=1e-4)


def test_a_backend_is_passed_on() -> None:
    merging, image = TokenMerging(vit(), 4), torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(merging(image, backend="reference"), merging(image))
    with pytest.raises(ValueError, match="got 'refrence'"):
        merging(image, backend="refrence")


@pytest.mark.parametrize("registers", [0, 1, 4])
def test_tokens_go_by_the_count_and_special_ones_stay(registers: int) -> None:
    model = vit(registers=registers, mask=[None, Neighborhood(2)], bias=RelativeTable.swin(2, 6))
    special = registers + 1
    for counts, left in (([4, 0, 7], 36 - 11), (10, 36 - 10 - 10 - 8), ([18, 9, 4], 5)):
        tokens, whole, source = TokenMerging(model, counts).merged(torch.randn(2, 1, 12, 12))
        assert tokens.shape == (2, special + left, 32)
        assert whole.length == special + 36 and source.shape == (2, whole.length)
        for row in source:
            assert row[:special].tolist() == list(range(special))
            assert sorted(set(row[special:].tolist())) == list(range(special, special + left))


def test_a_batch_is_its_images_and_positions_follow() -> None:
    model = vit(
        positions=None, rotary=CenteredRotary(), mask=Neighborhood(2), bias=RelativeTable.swin(2, 6)
    )
    merging, image = TokenMerging(model, 6), torch.randn(3, 1, 12, 8)
    alone = torch.cat([merging(one[None]) for one in image])
    torch.testing.assert_close(merging(image), alone, atol=1e-5, rtol=1e-4)


def test_a_gradient_goes_through() -> None:
    model = vit(pooling="mean")
    TokenMerging(model, 6)(torch.randn(2, 1, 12, 12)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_blocks_that_serve_several_layers() -> None:
    model, image = vit(depth=4, num_groups=2), torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(TokenMerging(model, 0)(image), model(image))
    tokens, whole, _ = TokenMerging(model, [1, 2, 3, 4]).merged(image)
    assert tokens.shape[1] == whole.length - 10


def test_autocast() -> None:
    merging, image = TokenMerging(vit(), 6), torch.randn(2, 1, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert merging(image).shape == (2, 5)


def test_what_does_not_fit_is_named() -> None:
    model = vit()
    for count in (-1, [1, 2], [1, 2, -3], 1.5, None):
        with pytest.raises(ValueError, match=r"count must be at least 0, .* each of 3 blocks; got"):
            TokenMerging(model, count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"one size at a time, as \(B, C, H, W\)"):
        TokenMerging(model, 1)([torch.randn(1, 4, 4)])  # type: ignore[arg-type]
