"""What is made on the host goes over in one copy, and what is asked of it is asked there."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch

from attention_core import Graph, Grid, Neighborhood, Points, Sequence, Space, attend, plan
from attention_core.spaces.edge_list import EdgeList
from attention_core.transfer import constant, indexed, moved
from tests.devices.counting import CUDA, CountingDevice

SPACES = [
    lambda: Sequence.packed([3, 0, 5], special=1),
    lambda: Sequence.padded([3, 5], 6),
    lambda: Grid.packed([(2, 3), (4, 1)]),
    lambda: Points(torch.randn(2, 5, 3), valid=torch.rand(2, 5) > 0.3, special=1),
    lambda: Graph(torch.tensor([[0, 1, 2], [1, 2, 0]]), 4, special=1, edge_attr=torch.randn(3, 2)),
    lambda: Space(4, tokenwise={"a": torch.arange(4)}, segments=torch.tensor([0, 0, 1, 1])),
]


def held(space: Space):
    found = {name: tensor for name, tensor, _ in space.tensors()}
    if space.edges is not None:
        found |= {"source": space.edges.source, "attr": space.edges.attr}
    return {name: x.cpu() for name, x in found.items() if x is not None}


@pytest.mark.parametrize("make", SPACES)
def test_a_space_is_moved_in_one_copy_that_nobody_waits_for(make):
    space = make()
    with CountingDevice() as device:
        with device.counting() as counts:
            there = space.to("cuda")
        assert counts.totals == (0, 1, 0), counts
        assert there.device == CUDA and all(x.device == CUDA for _, x, _ in there.tensors())
        assert there.host is space and there.to("cpu") is space and there.to(CUDA) is there
        assert type(there) is type(space) and there.length == space.length
        assert there.num_segments == space.num_segments and there.size == space.size
        wanted, found = held(space), held(there)
        assert wanted.keys() == found.keys()
        for name, x in found.items():
            assert torch.equal(x, wanted[name]) and x.dtype == wanted[name].dtype
    assert space.host is space and space.has_host


def test_what_is_no_longer_the_same_has_no_original():
    space = Sequence.padded([3, 5], 6)
    with CountingDevice():
        for change in (
            lambda x: setattr(x, "valid", ~x.valid),
            lambda x: setattr(x, "length", 7),
            lambda x: x.coordinates.add_(1),
            lambda x: setattr(x, "segments", torch.zeros(6, device="cuda").long()),
        ):
            there = space.to("cuda")
            assert there.has_host
            change(there)
            assert not there.has_host
        there = space.to("cuda")
        there.coordinates.add_(1)
        copied = there.host
        assert torch.equal(copied.coordinates, space.coordinates + 1)
        assert there.host is copied and there.has_host  # copied once
        assert not copy.copy(space.to("cuda")).has_host


def test_spaces_are_pickled_without_an_original():
    space = Sequence.packed([3, 5])
    again = pickle.loads(pickle.dumps(space))
    assert type(again) is Sequence and torch.equal(again.segments, space.segments)
    assert again.num_segments == 2 and "_origin" not in vars(again)


def test_a_job_has_one_on_the_host():
    query, key = Sequence.packed([3, 5]), Sequence.packed([4, 4])
    here = plan((query, key), Neighborhood(2)).job
    assert here.host is here
    with CountingDevice():
        there = plan((query, key), Neighborhood(2), device="cuda", backend="reference").job
        assert there.device == CUDA and there.spaces[0].device == CUDA
        assert there.host.spaces == (query, key) and there.host.device.type == "cpu"
        assert there.host.host is there.host and there.host.notes is not there.notes
        same = plan(query, device=CUDA, backend="reference").job
        assert same.host.spaces[0] is same.host.spaces[1]


class Hiding(Space):
    """A space of a user's own, which holds a tensor where nobody looks for one."""

    def __init__(self, table):
        at = torch.arange(len(table), device=table.device)
        super().__init__(len(table), tokenwise={"at": at})
        self.held = SimpleNamespace(table=table)

    def to(self, device):
        new = super().to(device)
        new.held = SimpleNamespace(table=self.held.table.to(device))
        return new

    def distance(self, pairs):
        return self.held.table[pairs.take("at", "query"), pairs.take("at", "key")]


@pytest.mark.parametrize("backend", ["reference", "dense", "blocks"])
def test_spaces_with_a_way_of_their_own_to_move_are_planned_right(backend):
    table = torch.rand(40, 40)
    space, q = Hiding(table), torch.randn(1, 2, 40, 8)
    wanted = attend(q, q, q, space=space, mask=Neighborhood(0.5), backend="reference")
    with CountingDevice() as device:
        x = device.moved(q)
        for given in (space, Hiding(device.moved(table)), space.to("cuda")):
            out = attend(x, x, x, space=given, mask=Neighborhood(0.5), backend=backend)
            torch.testing.assert_close(out.cpu(), wanted)


def test_edges_that_are_shared_stay_shared():
    edges = EdgeList(torch.tensor([[0, 1], [1, 0]]), 3, num_targets=2)
    target, source = Graph.over(edges)
    with CountingDevice() as device, device.counting() as counts:
        job = plan((target, source), device="cuda", backend="reference").job
        assert job.spaces[0].edges is job.spaces[1].edges is not edges
        assert job.host.spaces[0].edges is job.host.spaces[1].edges is edges
    assert counts.copies.total() == 1


def test_moved_trees():
    class Held:  # not of the package: it stays as it is
        x = torch.ones(2)

    one, view = torch.arange(6).view(2, 3), torch.tensor([[1.5]]).expand(4, 3)
    tree = {"a": [one, (one, None, 3)], "b": view, "c": Held(), "flag": torch.tensor(True)}
    tree["empty"] = torch.zeros(0, 3)
    with CountingDevice() as device:
        with device.counting() as counts:
            there = moved(tree, "cuda")
        assert counts.totals == (0, 1, 0), counts
        assert there["a"][0] is there["a"][1][0] and there["c"] is tree["c"]
        assert torch.equal(there["a"][0].cpu(), one) and there["flag"].item() is True
        assert there["b"].shape == (4, 3) and there["b"].stride() == (0, 0)
        assert torch.equal(there["b"].cpu(), view) and there["empty"].shape == (0, 3)
        assert there["empty"].device == CUDA
        assert moved(there, "cuda") is there
    assert moved(tree, "cpu") is tree


def test_constants_are_made_once_and_keep_their_dtype():
    with CountingDevice() as device, device.counting() as counts:
        for _ in range(3):
            made = [
                constant(x, CUDA) for x in ((1, 0, 91), (1.0, 0.0, 91.0), (True, False, True, True))
            ]
    assert [x.dtype for x in made] == [torch.int64, torch.float32, torch.bool]
    assert counts.copies.total() == 3
    assert constant((1, 2), torch.device("cpu")).tolist() == [1, 2]


def test_devices_have_their_index():
    assert indexed("cuda") == CUDA and indexed("cpu") == torch.device("cpu")
    assert indexed("cuda:1") == torch.device("cuda:1") and indexed("meta").index is None


def test_a_number_of_python_goes_over_once_and_nobody_waits():
    values = (3.75, 41), ((True, False),), (0.5,)
    with CountingDevice() as device:
        with device.counting() as first:
            made = [constant(x, CUDA) for x in values]
        with device.counting() as again:
            assert all(constant(x, CUDA) is y for x, y in zip(values, made, strict=True))
    assert first.totals == (0, len(values), 0) and again.totals == (0, 0, 0), (first, again)
    assert all(torch.equal(y.inner, torch.tensor(x)) for x, y in zip(values, made, strict=True))
