"""The counting device counts what it says, raises for mixed devices, and leaves torch as it was."""

import pytest
import torch
from torch import Tensor, nn

from tests.devices.counting import CUDA, CountedTensor, CountingDevice


def counted(function, *tensors: Tensor):
    with CountingDevice() as device:
        given = device.moved(tensors)
        with device.counting() as counts:
            function(*given)
    return counts


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[0].item(),
        lambda x: int(x[0]),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.unique(),
        lambda x: x.unique_consecutive(),
        lambda x: torch.bincount(x),
        lambda x: torch.equal(x, x + 0),
        lambda x: torch.repeat_interleave(x),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: x.new_tensor([1, 2]),
        lambda x: torch.as_tensor([1, 2], device="cuda"),
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.ones(3).pin_memory().to("cuda"),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[[0, 1]],
    ],
)
def test_one_wait(function):
    counts = counted(function, torch.tensor([1, 2, 3]))
    assert counts.waits.total() == 1, counts


@pytest.mark.parametrize(
    ("function", "copies", "kernels"),
    [
        (lambda x: x + 1, 0, 1),
        (lambda x: x.view(3, 1).expand(3, 2).transpose(0, 1)[0], 0, 0),
        (lambda x: torch.arange(3, device=x.device), 0, 1),
        (lambda x: x.new_zeros(3), 0, 1),
        (lambda x: torch.zeros_like(x), 0, 1),
        (lambda x: torch.empty(3, device=x.device), 0, 0),
        (lambda x: torch.empty_like(x), 0, 0),
        (lambda x: x[torch.arange(2, device=x.device)], 0, 2),
        (lambda x: x[1:] * 2.5, 0, 1),
        (lambda x: x.to("cuda"), 0, 0),
        (lambda x: x.to(torch.float64), 0, 1),
        (lambda x: torch.repeat_interleave(x, output_size=6), 0, 1),
        (lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True), 1, 0),
        (lambda x: torch.nn.functional.embedding(x, torch.ones(4, 2, device=x.device)), 0, 2),
    ],
)
def test_no_wait(function, copies, kernels):
    counts = counted(function, torch.tensor([1, 2, 3]))
    assert counts.totals == (0, copies, kernels), counts


def test_operators_of_ours_are_looked_into_and_modes_change_nothing():
    from attention_core import Neighborhood, Sequence, attend

    q = torch.randn(1, 2, 40, 8)
    seen = []
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with CountingDevice() as device, mode():
            x, space = device.moved(q), Sequence(40, device="cuda")
            mask = Neighborhood(3)
            with device.counting() as counts:
                out = attend(x, x, x, space=space, mask=mask, backend="blocks")
            wanted = attend(q, q, q, mask=mask, backend="reference")
            torch.testing.assert_close(out.cpu(), wanted)
        seen.append(sum(n for (_, at), n in counts.kernels.items() if "/chunks.py:" in at))
    assert seen[0] > 20 and seen == [seen[0]] * 3


def test_tensors_say_cuda_and_have_the_numbers_of_the_cpu():
    x = torch.randn(3, 4)
    with CountingDevice() as device:
        y = device.moved(x)
        assert y.device == CUDA and y.is_cuda and not y.is_cpu and y.get_device() == 0
        made = torch.ones(4, 2, device=y.device)
        assert isinstance(made, CountedTensor) and (y @ made).device == CUDA
        assert torch.equal((y @ made).cpu(), x @ torch.ones(4, 2))
        with pytest.raises(TypeError, match="numpy"):
            y.numpy()


def test_devices_do_not_mix():
    with CountingDevice() as device:
        x = device.moved(torch.ones(3))
        assert (x * torch.tensor(2.0)).tolist() == [2, 2, 2]  # a number without axes may
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            torch.cat([x, torch.ones(3)])


def test_backward_is_counted_and_right():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)), torch.randn(5, 4)
    model(x).sum().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    with CountingDevice() as device:
        model, x = device.moved(model), device.moved(x)
        with device.counting() as forward:
            loss = model(x).sum()
        with device.counting() as backward:
            loss.backward()
        found = [p.grad.cpu() for p in model.parameters()]
    assert forward.totals == (0, 0, 4) and backward.waits.total() == 0
    assert backward.totals[2] > 4
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_it_says_where():
    from attention_core.spaces.packing import unravel

    counts = counted(lambda x: unravel(x, x), torch.tensor([1, 2]))
    assert all(at.startswith("attention_core/spaces/packing.py:") for _, at in counts.kernels)


def test_all_is_put_back():
    def now():
        return torch.Generator, torch.cuda.current_device, torch.tensor, Tensor.to, Tensor.tolist

    before = now()
    with pytest.raises(ZeroDivisionError), CountingDevice():
        assert torch.Generator("cuda").device.type == "cpu"
        assert isinstance(torch.Generator(), torch.Generator)
        raise ZeroDivisionError
    assert now() == before
    assert not torch.overrides._get_current_function_mode_stack()
    with CountingDevice():  # and it may be entered again
        assert torch.ones(2, device="cuda").tolist() == [1, 1]
