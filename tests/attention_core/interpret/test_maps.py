"""What all domains record and compute from it, by definition; and that they call it alike."""

import inspect
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_core import Encoder, Graph, Neighborhood, Sequence
from attention_core.interpret.maps import (
    all_layers,
    attention_layers,
    check_eval,
    mean_distance,
    occlusion,
    pooled_shares,
    received,
    record,
    rollout,
)

DOMAINS = ("vision", "nlp", "graph")


def encoder(**options: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(16, 3, 2, **options).eval()


def seen(model: Encoder, x: Tensor, space: Any = None, **options: Any) -> list[Any]:
    return record(model, lambda: model(x, space), **options)


@pytest.mark.parametrize("mask", [None, Neighborhood(1)])
def test_pairs_and_tables_tell_the_same(mask: Any) -> None:
    model, x = encoder(mask=mask), torch.randn(1, 7, 16)
    tables, pairs = seen(model, x), seen(model, x, pairs=True)
    shares = torch.rand(7)
    for table, pair in zip(tables, pairs, strict=True):
        torch.testing.assert_close(pair.table, table.table)
        torch.testing.assert_close(table.table.sum(-1), torch.ones(2, 7))
        torch.testing.assert_close(received(pair), table.table.sum(1))
        expected = (shares[:, None] * table.table).sum(1)
        torch.testing.assert_close(received(table, shares), expected)
        torch.testing.assert_close(received(pair, shares), expected)
    torch.testing.assert_close(rollout(pairs, shares), rollout(tables, shares))
    (distance, *_) = [mean_distance(one, lambda p: p.distance) for one in pairs]
    apart = (torch.arange(7)[:, None] - torch.arange(7)).abs()
    expected = (tables[0].table * apart).sum((1, 2)) / tables[0].table.sum((1, 2))
    torch.testing.assert_close(distance, expected)
    torch.testing.assert_close(mean_distance(tables[0], lambda p: p.distance), expected)


def test_weights_are_wide_and_of_the_heads_asked_for() -> None:
    model, x = encoder().bfloat16(), torch.randn(1, 5, 16).bfloat16()
    whole = seen(model, x)
    assert whole[0].table.dtype == torch.float32 and whole[0].heads == [0, 1]
    for pairs in (False, True):
        (one, *_) = seen(model, x, heads=[-1], pairs=pairs)
        assert one.heads == [1]
        torch.testing.assert_close(one.table, whole[0].table[1:])
    with pytest.raises(ValueError, match="there are 2 heads, no head 2"):
        seen(model, x, heads=[2])
    with pytest.raises(ValueError, match="eval mode"):
        check_eval(model.train())


def test_layers_are_counted_through_all_stacks_and_shared_blocks_by_their_last_use() -> None:
    first, second = encoder(), encoder(num_groups=1)
    layers = attention_layers(first, second)
    assert list(layers) == [0, 1, 2, 5]
    assert layers[1] is first.blocks[1].attention and layers[5] is second.blocks[0].attention
    assert list(attention_layers(first, second, wanted=[-1, 0])) == [5, 0]
    assert list(all_layers(first)) == [0, 1, 2]
    with pytest.raises(ValueError, match="blocks that serve several layers"):
        all_layers(first, second)
    with pytest.raises(ValueError, match="layer 4 shares its block .* give some of 0, 1, 2, 5"):
        attention_layers(first, second, wanted=[4])


def test_shares_in_what_is_pooled() -> None:
    """Two graphs in one row, each with two special tokens in front; and a text without any."""
    graphs = Graph(torch.empty(2, 0).long(), 5, segments=torch.tensor([0, 0, 0, 1, 1]), special=2)
    nodes = [[0, 0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 1 / 2, 1 / 2]]
    for pooling, expected in (
        ("mean", nodes),
        ("max", nodes),
        ("class", [[1, 0, 0, 0, 0], [1, 0, 0, 0]]),
        ("special", [[0.5, 0.5, 0, 0, 0], [0.5, 0.5, 0, 0]]),
    ):
        flat = torch.tensor([float(share) for graph in expected for share in graph])
        torch.testing.assert_close(pooled_shares(pooling, graphs), flat)
    assert pooled_shares("class", Sequence(3)).tolist() == [1, 0, 0]
    torch.testing.assert_close(pooled_shares("mean", Sequence(3)), torch.full((3,), 1 / 3))


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_occlusion_leaves_out_each_part_alone(batch_size: int) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(6, 4)
    sizes: list[int] = []

    def score(rows: list[Tensor]) -> Tensor:
        sizes.append(len(rows))
        return torch.stack([row.pow(2).sum().sqrt() + len(row) ** 2 for row in rows])

    parts = [[0], [1, 4], [2, 3, 5], [0, 1, 2, 3, 4, 5], []]
    found = occlusion(score, tokens, parts, batch_size=batch_size)
    for change, part in zip(found, parts, strict=True):
        kept = tokens[[place for place in range(6) if place not in part]]
        if len(kept):
            torch.testing.assert_close(change, (score([kept]) - score([tokens]))[0])
        else:
            assert change.isnan()
    assert found[4] == 0  # nothing is left out
    assert max(sizes) <= batch_size


# ---------------------------------------------------------------------- the same in three domains


@pytest.mark.parametrize(
    "name",
    [
        "attention_maps",
        "pooling_attention",
        "attention_rollout",
        "mean_attention_distance",
        "attention_figures",
    ],
)
def test_who_knows_one_domain_knows_the_others(name: str) -> None:
    """A function has the same name, and arguments of the same names, order and defaults."""
    signatures = []
    for domain in DOMAINS:
        package = import_module(f"{domain}.interpret")
        assert name in package.__all__
        signatures.append(inspect.signature(getattr(package, name)).parameters)
    wanted = ["model", "inputs"] + (["shown"] if name == "attention_figures" else [])
    for parameters in signatures:
        kinds = {each.name: each.kind for each in parameters.values()}
        positional = [n for n, kind in kinds.items() if kind.name.startswith("POSITIONAL")]
        assert positional == wanted
    shared = set.intersection(*map(set, signatures))
    orders = [[each for each in parameters if each in shared] for parameters in signatures]
    assert orders[0] == orders[1] == orders[2]
    for each in shared:
        assert len({str(parameters[each].default) for parameters in signatures}) == 1, each
    of_all = {
        "attention_maps": {"layers", "heads"},
        "attention_rollout": {"options"},
    }
    assert shared == {*wanted, *of_all.get(name, set())}
