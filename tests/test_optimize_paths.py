"""fastcv.optimize: paths through a forward that tracing has not seen."""

import pytest
import torch
from optimize_models import chains, check, check_gradients, flat, images, make
from torch import nn

import fastcv


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("path", ["shape", "skip", "before", "after", "add", "alias", "list"])
def test_unseen_paths_get_torchs_answer(path: str, mode: str) -> None:
    model = make("options").train(mode == "training")
    ours = fastcv.optimize(model, mode=mode)
    assert len(chains(ours)) == 1
    model.path = ours.path = path
    if mode == "training":
        check_gradients(ours, model)
    else:
        check(ours, model)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], msg=key)
    model.path = ours.path = ""
    check(ours.eval(), model.eval())


def test_unseen_uses_of_a_value_get_a_tensor() -> None:
    model = make("options").eval()
    ours = fastcv.optimize(model)
    model.path = ours.path = "numpy"
    check(ours, model)
    ours.path = "changed"
    with torch.no_grad(), pytest.raises(RuntimeError, match="changed in place"):
        ours(images())


def test_parts_called_by_themselves_compute_what_they_say() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        ours(images())
        for name in ("conv1", "bn1", "conv2", "bn2", "downsample"):
            mine, torchs = (getattr(m, name)(images()) for m in (ours, model))
            assert type(mine) is torch.Tensor
            torch.testing.assert_close(mine, torchs)


def test_hooks_added_later_see_what_torch_shows() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    for where in ("conv1", "bn1", "relu", "bn2", "downsample"):
        seen = []
        for m in (ours, model):
            handle = getattr(m, where).register_forward_hook(lambda module, args, output, seen=seen: seen.append((*args, output.clone())))
            with torch.no_grad():
                m(images())
            handle.remove()
        half = len(seen) // 2
        for mine, torchs in zip(flat(seen[:half]), flat(seen[half:]), strict=True):
            torch.testing.assert_close(mine, torchs)
    with torch.no_grad():
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(type(output)))
        seen.clear()
        ours(images())
        handle.remove()
    assert set(seen) == {torch.Tensor}
