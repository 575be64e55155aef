"""fastcv.optimize(mode="training"): outputs of fused batch norms are computed again in the backward pass, to the same bits."""

import copy
import gc
import json
import weakref

import pytest
import torch
import torch.nn.functional as F
from optimize_models import ZOO, Block, chains, images, make, trained
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastcv


class Watched(nn.Module):
    """Holds weak references to the values between its layers."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), activation or nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.seen: list[weakref.ref] = []
        self.change = None

    def forward(self, x):
        y = self.act(self.bn1(self.conv1(x)))
        self.seen.append(weakref.ref(y))
        z = self.conv2(y)
        if self.change is not None:
            self.change(self, x, y)
        return self.bn2(z)


def keeping(model: nn.Module) -> nn.Module:
    """A copy that does not recompute."""
    return fastcv.optimize(model, mode="training", recompute=False)


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    model.zero_grad()
    model(x).square().sum().backward()
    return [x.grad, *[p.grad for p in model.parameters()]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()])
def test_the_output_is_not_kept_and_the_gradients_have_the_same_bits(activation: nn.Module, layout: torch.memory_format) -> None:
    model = fastcv.optimize(trained(Watched(activation)).train(), mode="training")
    other, x = keeping(model), images().to(memory_format=layout)
    loss = model(x).sum()
    gc.collect()
    assert model.seen[0]() is None
    loss.backward()
    loss = other(x).sum()
    gc.collect()
    assert other.seen[0]().shape == x.shape
    del loss
    for mine, theirs in zip(gradients(model, x), gradients(other, x), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ZOO)
def test_same_bits_on_all_models(name: str) -> None:
    model = fastcv.optimize(make(name).train(), mode="training")
    other = keeping(model)
    for _ in range(2):
        for mine, theirs in zip(gradients(model, images()), gradients(other, images()), strict=True):
            assert torch.equal(mine, theirs)
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_report_counts_what_is_saved() -> None:
    model = fastcv.optimize(Block().train(), mode="training", example=images())
    rows = {row.name: row for row in model.fastcv_report.rows}
    assert rows["bn1"].saved_bytes == 4 * 8 * 6 * 5 * 4 and rows["bn2"].saved_bytes == 0
    assert model.fastcv_report.saved_bytes == rows["bn1"].saved_bytes == json.loads(model.fastcv_report.to_json())["saved_bytes"]
    assert "saved for one batch" in str(model.fastcv_report)
    assert fastcv.optimize(Block().eval(), example=images()).fastcv_report.saved_bytes == 0


def test_only_where_convolutions_alone_read_the_output() -> None:
    class Both(Watched):
        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)))
            return self.bn2(self.conv2(y)) + y

    model = fastcv.optimize(Both().train(), mode="training", example=images())
    assert chains(model)["bn1"] == ["relu"] and model.fastcv_report.saved_bytes == 0


def test_a_change_in_place_is_noticed_as_torch_notices_it() -> None:
    def change_weight(model, x, y):
        with torch.no_grad():
            model.conv2.weight.mul_(2)

    def change_norm(model, x, y):
        with torch.no_grad():
            model.bn1.weight.mul_(2)

    for change in (change_weight, change_norm):
        for optimise in (False, True):
            model = Watched().train()
            model.change = change
            model = fastcv.optimize(model, mode="training") if optimise else model
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                model(images().requires_grad_()).sum().backward()


def test_a_change_of_the_output_afterwards_does_no_harm() -> None:
    def change(model, x, y):
        with torch.no_grad():
            y.mul_(3)

    plain = fastcv.optimize(trained(Watched()).train(), mode="training")
    changed = copy.deepcopy(plain)
    changed.change = change
    for mine, theirs in zip(gradients(changed, images()), gradients(plain, images()), strict=True):
        assert torch.equal(mine, theirs)


def test_other_hooks_on_saved_tensors_go_first() -> None:
    model = fastcv.optimize(trained(Watched()).train(), mode="training")
    expected = gradients(model, images())
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        mine = gradients(model, images())
    assert packed and all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(mine, expected, strict=True))

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(model)

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    for mine, theirs in zip(gradients(Checkpointed(), images()), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_second_derivatives_and_retained_graphs() -> None:
    model = trained(Watched()).double().train()
    ours = fastcv.optimize(model, mode="training")
    results = []
    for m in (model, ours):
        x = images(2, 8, 4, 4).double().requires_grad_()
        (grad,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), [x, *m.parameters()], allow_unused=True))
        loss = m(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
    for mine, torchs in zip(*results, strict=True):
        assert (mine is None) == (torchs is None)
        if mine is not None:
            torch.testing.assert_close(mine, torchs)


def test_modes_copies_and_no_grad() -> None:
    model = trained(Watched()).train()
    ours = copy.deepcopy(fastcv.optimize(model, mode="training"))
    for train in (True, False, True):
        model.train(train), ours.train(train)
        with torch.no_grad():
            torch.testing.assert_close(ours(images()), model(images()), rtol=1e-4, atol=1e-4)
        for mine, torchs in zip(gradients(ours, images()), gradients(model, images()), strict=True):
            torch.testing.assert_close(mine, torchs, rtol=1e-3, atol=1e-2)
