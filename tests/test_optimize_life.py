"""fastcv.optimize: a model's life afterwards: state, copies, dtypes, transforms, threads."""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from optimize_models import (
    Block,
    chains,
    check,
    check_gradients,
    images,
    make,
    ops_run,
    reload,
    trained,
)
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import fastcv
from fastcv.testing import assert_close


def test_state_dict_is_untouched() -> None:
    model = make("resnet").eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ours = fastcv.optimize(model)
    with torch.no_grad():
        ours(images())
    for state in (model.state_dict(), ours.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[k], before[k]) for k in before)
    assert repr(ours) == repr(model) and [n for n, _ in ours.named_modules()] == [n for n, _ in model.named_modules()]
    assert not any("forward" in vars(m) for m in model.modules())


def assign(model):
    torch.manual_seed(5)
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def through_data(model):
    for p in model.parameters():
        p.data.mul_(0.5)


def statistics(model):
    model.bn1.running_var.mul_(3)


def new_parameter(model):
    model.conv1.weight = nn.Parameter(model.conv1.weight.detach() * 2)


def new_eps(model):
    model.bn1.eps = 0.5


def train_a_step(model):
    model.train()
    model(images()).square().mean().backward()
    with torch.no_grad():
        for p in model.parameters():
            p.data.sub_(p.grad)
    model.eval()


def without_affine(model):
    model.bn1.weight = model.bn1.bias = None


CHANGES = [reload, assign, through_data, statistics, new_parameter, new_eps, train_a_step, without_affine]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_folds_again_after_a_change(change) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    check(ours, model)
    change(ours)
    check(ours, fastcv.restore(copy.deepcopy(ours)))
    assert ops_run(ours) == ["conv", "conv", "conv"]


def weight_norm(model):
    torch.nn.utils.parametrizations.weight_norm(model.conv1)


def old_weight_norm(model):
    torch.nn.utils.weight_norm(model.conv1)


def pruning(model):
    prune.l1_unstructured(model.conv2, "weight", 0.5)


def pruned_bias(model):
    prune.l1_unstructured(model.downsample[0], "bias", 0.5)


def scaled_norm(model):
    parametrize.register_parametrization(model.bn1, "weight", nn.Softplus())


LATER = [weight_norm, old_weight_norm, pruning, pruned_bias, scaled_norm]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("change", LATER, ids=lambda f: f.__name__)
def test_parameters_that_are_computed_from_now_on(change, mode: str) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model, mode=mode)
    check(ours, model)
    change(model), change(ours)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(ours(images()), model(images()))
        for m in (model, ours):
            m.train()
            m(images()).sum().backward()
            m.eval()
            with torch.no_grad():
                for p in m.parameters():
                    p.sub_(0.01 * p.grad)
                    p.grad = None


def test_train_and_eval_flips() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    for train in (True, False, True, True, False):
        model.train(train), ours.train(train)
        check_gradients(ours, model)
        check(ours, model)
    torch.testing.assert_close(ours.state_dict(), model.state_dict())
    assert ops_run(ours) == ["conv", "conv", "conv"]


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model).module


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved, averaged])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_copies_are_optimised_and_independent(duplicate, mode: str) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model, mode=mode)
    check(ours, model)
    clone = duplicate(ours)
    assert chains(clone) == chains(ours)
    run = ops_run(ours)
    reload(ours)
    check(clone, model)
    assert ops_run(clone) == run
    own = {id(m) for m in clone.modules()}
    assert all(id(m.forward.module) in own for m in clone.modules() if "forward" in vars(m))
    reload(model)
    check(ours, model)


def test_moving_averages() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    averages = [torch.optim.swa_utils.AveragedModel(m, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)) for m in (model, ours)]
    for _ in range(2):
        check(averages[1], averages[0])
        for m, average in zip((model, ours), averages, strict=True):
            reload(m)
            average.update_parameters(m)
    check(averages[1], averages[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_moving_to_another_dtype_and_layout(dtype: torch.dtype) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    check(ours, model)
    for m in (model, ours):
        m.to(dtype=dtype, memory_format=torch.channels_last)
    x = images().to(dtype=dtype, memory_format=torch.channels_last)
    check(ours, model, x)
    assert ops_run(ours, x) == ["conv", "conv", "conv"]
    with pytest.raises(RuntimeError), torch.no_grad():
        ours(images() if dtype is not torch.float32 else images().double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        reference = copy.deepcopy(model).double()(images().double())
        with torch.autocast("cpu", dtype=dtype):
            mine, torchs = ours(images()), model(images())
    assert_close(mine, reference, torchs)


def test_inference_mode_and_no_grad_give_the_same_bits() -> None:
    ours = fastcv.optimize(make("block").eval())
    with torch.no_grad():
        first = ours(images())
    with torch.inference_mode():
        assert torch.equal(ours(images()), first)
    with torch.no_grad():
        assert torch.equal(ours(images()), first)


def test_empty_batches_and_wrong_inputs_are_torchs() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        assert ours(images()[:0]).shape == model(images()[:0]).shape
        for wrong in (images(2, 7, 8, 8), images(2, 8, 8), images().double(), images().long()):
            errors = []
            for m in (model, ours):
                with pytest.raises((RuntimeError, ValueError)) as caught:
                    m(wrong)
                errors.append(caught.type)
            assert errors[0] is errors[1]


def test_functional_call_and_tracing() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    check(ours, model)
    other = {k: v * 2 for k, v in model.named_parameters()}
    with torch.no_grad():
        expected = torch.func.functional_call(model, other, images())
        torch.testing.assert_close(torch.func.functional_call(ours, other, images()), expected)
        check(ours, model)
        expected = model(images())
        torch.testing.assert_close(torch.fx.symbolic_trace(ours)(images()), expected)
        torch.testing.assert_close(torch.vmap(ours)(images()[:, None])[:, 0], expected)
        torch.testing.assert_close(torch.jit.trace(ours, images())(images()), expected)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_compile_and_export(mode: str) -> None:
    model = make("block").train(mode == "training")
    ours = fastcv.optimize(model, mode=mode)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    expected = model(images())
    torch.testing.assert_close(compiled(images()), expected)
    if mode == "inference":
        with torch.no_grad():
            torch.testing.assert_close(compiled(images()), expected)
            program = torch.export.export(ours, (images(),))
        torch.testing.assert_close(program.module()(images()), expected)
        assert any("fastcv" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), Block()

        def body(self, x):
            return F.relu(self.block.bn1(self.block.conv1(x))) + self.block.bn2(self.block.conv2(x))[:, :, ::2, ::2]

        def forward(self, x):
            return self.block(checkpoint(self.body, self.stem(x), use_reentrant=reentrant).repeat(1, 1, 2, 2))

    model = trained(Checkpointed()).train()
    ours = fastcv.optimize(model, mode="training")
    for _ in range(2):
        results = []
        for m in (ours, model):
            m.zero_grad()
            m(images()).square().sum().backward()
            results.append(torch.cat([p.grad.flatten() for p in m.parameters()]))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def test_threads_do_not_see_each_other() -> None:
    model = make("block").eval()
    ours = fastcv.optimize(model)
    with torch.no_grad():
        expected = ours(images())
    results: list[torch.Tensor] = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(5):
                results.append(ours(images()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20 and all(torch.equal(r, expected) for r in results)


class Cached(nn.Module):
    """Keeps what it computed from a parameter, within a dict, and with it the parameter's graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bias = nn.Conv2d(8, 8, 3), nn.Parameter(torch.randn(8))
        self.cache: dict[str, torch.Tensor] = {}

    def forward(self, x):
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias.exp()[:, None, None]
        return F.relu(self.conv(x)) + self.cache["bias"]


def test_a_model_that_keeps_computed_tensors_is_copied() -> None:
    model = Cached()
    model(images())
    ours = fastcv.optimize(model)
    assert model.cache["bias"].requires_grad
    assert not ours.cache["bias"].requires_grad
    torch.testing.assert_close(ours(images()), model(images()))
