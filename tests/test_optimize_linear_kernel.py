"""fastcv.optimize: linear layers on the kernel of 1x1 convolutions."""

import copy
import io
import logging
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from optimize_models import trained
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import fastcv
import fastcv.compiler  # makes the backend known where the package is not installed
from fastcv import _ext
from fastcv.optimizer import linear
from fastcv.optimizer.forwards import installed
from fastcv.optimizer.packed_weights import PackedWeights
from fastcv.testing import assert_close

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch):
    """The kernel takes layers of any size, with any instruction set, in the precision that torch begins with."""
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "none"
    linear.why_torch.cache_clear()
    for dtype in DTYPES:
        monkeypatch.setitem(linear._LEAST, dtype, 1)
    monkeypatch.setattr(linear, "_LEAST_OUTPUTS", 1)
    monkeypatch.setattr(linear, "_UNMEASURED", ())
    yield
    linear.why_torch.cache_clear()
    products.fp32_precision = before


pytestmark = pytest.mark.usefixtures("any_size")


def features(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def layer(inputs: int, outputs: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    return nn.Linear(inputs, outputs, bias, dtype=dtype).eval()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Linear(40, 70),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(70, 33, bias=False),
        nn.BatchNorm1d(33),
        nn.SiLU(),
        nn.Linear(33, 20),
    ]
    return trained(nn.Sequential(*layers)).eval()


def packs_of(model: nn.Module) -> list[PackedWeights]:
    forwards = [installed(m) for m in model.modules()]
    return [f.chain.packs if hasattr(f, "chain") else f.packs for f in forwards if getattr(f, "packs", None) is not None]


def kernel_calls(model: nn.Module, x: Tensor) -> int:
    """How many layers ran on the kernel."""
    with torch.no_grad():
        return sum(op == "conv" and reason == "" for op, _, reason in fastcv.why_not(model, x))


def rows_of(model: nn.Module) -> dict[str, tuple[str, list[str], str]]:
    return {row.name: (row.op, row.fused, row.reason) for row in model.fastcv_report.rows}


# ---- answers --------------------------------------------------------------------------------------------------------------------

SIZES = [(1, 16), (5, 3), (16, 1), (31, 100), (64, 64), (130, 257), (768, 80), (2500, 40)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@torch.no_grad()
def test_as_exact_as_torch(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    for bias in (True, False):
        model = layer(inputs, outputs, bias, dtype)
        ours = fastcv.optimize(nn.Sequential(model))
        for rows in (1, 7, 130):
            x = features(rows, inputs, dtype=dtype)
            assert_close(ours(x), copy.deepcopy(model).double()(x.double()), model(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@torch.no_grad()
def test_bits_do_not_depend_on_rows_strides_or_threads(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    ours = fastcv.optimize(nn.Sequential(layer(inputs, outputs, dtype=dtype)))
    x = features(150, inputs, dtype=dtype)
    y = ours(x)
    threads = torch.get_num_threads()
    assert torch.equal(torch.stack([ours(row) for row in x[:40]]), y[:40])  # one by one, of one dimension
    assert all(torch.equal(ours(x[:rows]), y[:rows]) for rows in (2, 3, 16, 33, 97))
    assert torch.equal(ours(x.view(5, 3, 10, inputs)), y.view(5, 3, 10, outputs))
    assert torch.equal(ours(x.t().contiguous().t()), y) and torch.equal(ours(x.repeat(1, 2)[:, :inputs]), y)
    assert torch.equal(ours(x[::3]), y[::3]) and torch.equal(ours(x[:1].expand(9, -1)), y[:1].expand(9, -1))
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            assert torch.equal(ours(x), y) and torch.equal(ours(x[5]), y[5])
        finally:
            torch.set_num_threads(threads)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of many rows go as convolutions of highest precision, on any processor."""
    monkeypatch.setattr(linear, "_has_tiles", lambda dtype: dtype is torch.float32)


@pytest.mark.parametrize(("inputs", "outputs"), [*SIZES, (96, 384), (1700, 64)])
@torch.no_grad()
def test_samples_of_many_rows(inputs: int, outputs: int, tiles: None) -> None:
    model = layer(inputs, outputs)
    ours = fastcv.optimize(nn.Sequential(model))
    for shape in ((3, 32), (3, 7, 7), (2, 200)):
        x = features(*shape, inputs)
        y = ours(x)
        assert y.shape == (*shape, outputs) and y.is_contiguous()
        assert_close(y, copy.deepcopy(model).double()(x.double()), model(x))
        assert torch.equal(torch.cat([ours(x[i : i + 1]) for i in range(x.shape[0])]), y)
        assert torch.equal(ours(x.repeat(5, *[1] * (x.dim() - 1)))[-1], y[-1])
        assert torch.equal(ours(x.transpose(0, 1).contiguous().transpose(0, 1)), y)
        threads = torch.get_num_threads()
        for count in (1, 3):
            torch.set_num_threads(count)
            try:
                assert torch.equal(ours(x), y)
            finally:
                torch.set_num_threads(threads)
        few = x[:, :1].flatten(0, -2)  # another arrangement of the same weight
        assert_close(ours(few), copy.deepcopy(model).double()(few.double()), model(few))
        assert torch.equal(ours(x), y)


@torch.no_grad()
def test_many_rows_keep_infinities_apart(tiles: None) -> None:
    ours = fastcv.optimize(nn.Sequential(layer(70, 64)))
    x = features(2, 50, 70)
    y = ours(x)
    x[0, 3, 3], x[1, 7, 0], x[1, 8, 69] = float("nan"), float("inf"), float("-inf")
    special = torch.zeros(2, 50, dtype=torch.bool)
    special[0, 3] = special[1, 7] = special[1, 8] = True
    assert torch.equal(ours(x)[~special], y[~special]) and torch.equal(ours(x)[special].isnan(), ours[0](x)[special].isnan())
    assert ours(x)[0, 3].isnan().all() and ours(x)[1, 7:9].isinf().all()


@torch.no_grad()
def test_torchs_ieee_keeps_small_numbers_in_many_rows(tiles: None) -> None:
    ours = fastcv.optimize(nn.Sequential(nn.Linear(64, 64, bias=False).eval()))
    ours[0].weight.copy_(torch.eye(64))
    x = torch.full((2, 50, 64), 1e-40)
    assert ours(x).eq(0).all()
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        assert torch.equal(ours(x), x)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.skipif(fastcv.cpu_isa() != "amx", reason="needs AMX")
@torch.no_grad()
def test_tiles_multiply_samples_of_many_rows() -> None:
    def variants_of(x: Tensor, *sizes: int) -> list[str]:
        found = fastcv.why_not(fastcv.optimize(nn.Sequential(layer(*sizes))), x)
        return [variant for op, variant, reason in found if op == "conv" and reason == ""]

    for shape, variant in {
        (1, 32): "igemm_bf16x6_amx",
        (9, 6, 6): "igemm_bf16x6_amx",
        (64,): "igemm_avx512",
        (9, 31): "igemm_avx512",
    }.items():
        assert variants_of(features(*shape, 768), 768, 80) == [variant]
    assert variants_of(features(1, 197, 3072), 3072, 768) == ["igemm_bf16x6_amx"]


@torch.no_grad()
def test_shapes_and_errors_are_torchs() -> None:
    model = layer(6, 4)
    ours = fastcv.optimize(nn.Sequential(model))
    for shape in ((6,), (0, 6), (2, 0, 6), (1, 1, 6), (3, 2, 2, 2, 6)):
        got = ours(features(*shape))
        assert got.shape == model(features(*shape)).shape and got.is_contiguous()
    for x in (features(2, 5), features(), features(2, 6, dtype=torch.bfloat16), torch.ones(2, 6, dtype=torch.int64)):
        with pytest.raises(RuntimeError) as torchs:
            model(x)
        with pytest.raises(RuntimeError) as mine:
            ours(x)
        assert str(mine.value) == str(torchs.value)


@torch.no_grad()
def test_infinities_stay_in_their_row_and_small_numbers_stay() -> None:
    ours = fastcv.optimize(nn.Sequential(layer(40, 8)))
    x = features(5, 40)
    y = ours(x)
    x[1, 3], x[3, 0] = float("nan"), float("inf")
    assert torch.equal(ours(x)[::2], y[::2]) and not ours(x)[1::2].isfinite().any()
    tiny = nn.Linear(4, 4, bias=False)
    tiny.weight.copy_(torch.eye(4))
    x = torch.full((2, 4), 1e-40)
    assert torch.equal(fastcv.optimize(nn.Sequential(tiny).eval())(x), x)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_result_is_a_tensor_of_its_own(mode: type) -> None:
    ours, scale = fastcv.optimize(nn.Sequential(layer(40, 8))), nn.Parameter(torch.ones(8))
    with mode():
        y = ours(features(3, 40))
    assert y.is_inference() == (mode is torch.inference_mode)
    if mode is torch.no_grad:
        y *= scale  # autograd refuses that of a view made without gradients
        y.sum().backward()
        assert scale.grad is not None


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.GELU()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_activations_are_fused(activation: nn.Module, dtype: torch.dtype) -> None:
    model = nn.Sequential(layer(40, 70, dtype=dtype), activation)
    ours = fastcv.optimize(model, example=features(9, 40, dtype=dtype))
    assert rows_of(ours) == {"0": ("linear", ["1"], "")}
    for shape in ((40,), (9, 40), (2, 3, 40)):
        x = features(*shape, dtype=dtype)
        assert_close(ours(x), copy.deepcopy(model).double()(x.double()), model(x))
    assert torch.equal(ours[0](x), fastcv.optimize(model, fuse=False)[0](x))  # by itself, outside the model's forward
    with torch.profiler.profile() as profile:
        ours(x)
    assert not {event.key for event in profile.key_averages()} & {
        f"aten::{n}" for n in ("relu", "relu_", "hardtanh", "silu", "hardswish", "gelu")
    }


@torch.no_grad()
def test_an_addition_is_torchs() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = layer(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(x) + x)

    ours = fastcv.optimize(Residual().eval())
    assert rows_of(ours) == {"fc": ("linear", [], "")}
    torch.testing.assert_close(ours(features(3, 16)), Residual().eval()(features(3, 16)))


def test_whole_and_verified() -> None:
    model, x = mlp(), features(12, 40)
    ours = fastcv.optimize(model, example=x, strict=True)
    assert rows_of(ours) == {
        "0": ("linear", ["1"], ""),
        "3": ("linear", ["4", "5"], ""),
        "4": ("folded into 3", [], ""),
        "6": ("linear", [], ""),
    }
    assert kernel_calls(ours, x) == 3
    with torch.no_grad():
        assert_close(ours(x), copy.deepcopy(model).double()(x.double()), model(x))
        assert torch.equal(ours(x)[2:3], ours(x[2:3]))
    assert ours.fastcv_report.errors["output"][0] <= ours.fastcv_report.errors["output"][1]


def test_what_errs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = linear._conv
    monkeypatch.setattr(linear, "_conv", lambda *args: exact(*args) * (1 + 1e-3 * (args[1].shape[0] == 20)))
    model = mlp()
    ours = fastcv.optimize(model, example=features(12, 40))
    rows = rows_of(ours)
    assert rows["6"][0] == "" and rows["6"][2].startswith("undone: error") and installed(ours[6]) is None
    assert rows["0"][0] == "linear" and rows["3"][0] == "linear"


# ---- the life of a model --------------------------------------------------------------------------------------------------------


def step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    with torch.enable_grad():
        model(features(4, 40, seed=3)).square().sum().backward()
    optimizer.step()


def through_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data.mul_(1.5)


def replace(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight * 2)


CHANGES = {
    "in place": lambda m: [p.mul_(1.5) for p in m.parameters()],
    "through data": through_data,
    "data": lambda m: [setattr(p, "data", p.data * 1.5) for p in m.parameters()],
    "load": lambda m: m.load_state_dict({k: v * 1.5 if v.is_floating_point() else v for k, v in m.state_dict().items()}),
    "new": replace,
    "optimizer": step,
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_changed_weights_are_packed_again(change: str) -> None:
    model, x = mlp(), features(5, 40)
    ours = fastcv.optimize(model)
    before = ours(x)
    assert torch.equal(before, ours(x))
    CHANGES[change](ours)
    after = ours(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, fastcv.optimize(fastcv.restore(copy.deepcopy(ours)))(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@torch.no_grad()
def test_copies_are_independent(duplicate) -> None:
    ours, x = fastcv.optimize(mlp()), features(5, 40)
    y = ours(x)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    clone = duplicate(ours)
    assert all(p.packed is None for p in packs_of(clone)) and all(p.packed is not None for p in packs_of(ours))
    ours[0].weight.mul_(2)
    assert torch.equal(clone(x), y) and not torch.equal(ours(x), y)
    file.seek(0)
    ours.load_state_dict(torch.load(file))
    assert torch.equal(ours(x), y)


@torch.no_grad()
def test_packed_once_and_freed() -> None:
    ours, x = fastcv.optimize(mlp()), features(5, 40)
    assert ours.fastcv_report.rows[0].packed_bytes == 40 * 70 * (6 if fastcv.cpu_isa() == "amx" else 4)
    assert "packed weights of linear layers" in str(ours.fastcv_report)
    ours(x)
    kept = [p.packed.data_ptr() for p in packs_of(ours)]
    assert len(kept) == 3
    ours(features(40)[None]), ours(features(64, 40))
    assert kept == [p.packed.data_ptr() for p in packs_of(ours)]
    ours.train()
    ours(x)
    assert all(p.packed is None for p in packs_of(ours)[1:])  # the first is of a chain without a batch norm: see the next call
    fastcv.restore(ours)
    assert packs_of(ours) == []


def test_gradients_are_torchs() -> None:
    model, x = nn.Sequential(layer(40, 70), nn.ReLU(), layer(70, 20)).eval(), features(6, 40).requires_grad_()
    ours = fastcv.optimize(model)
    assert torch.equal(ours(x), model(x))
    results = [torch.autograd.grad(m(x).square().sum(), [x, *m.parameters()]) for m in (ours, model)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    frozen = fastcv.optimize(model.requires_grad_(False))
    with torch.no_grad():
        expected = frozen(features(6, 40))
    assert torch.equal(frozen(features(6, 40)), expected)  # nothing needs a gradient


@torch.no_grad()
def test_training_mode_runs_on_torch() -> None:
    model = layer(40, 30)
    ours = fastcv.optimize(nn.Sequential(model)).train()
    assert kernel_calls(ours, features(6, 40)) == 0 and torch.equal(ours(features(6, 40)), model(features(6, 40)))
    assert kernel_calls(ours.eval(), features(6, 40)) == 1


@torch.no_grad()
def test_other_dtypes() -> None:
    model, x = mlp(), features(6, 40)
    ours = fastcv.optimize(model)
    for dtype in (torch.float64, torch.float16):
        assert kernel_calls(ours.to(dtype), x.to(dtype)) == 0
        assert torch.equal(ours[0](x.to(dtype)), copy.deepcopy(model).to(dtype)[0](x.to(dtype)))
    ours = fastcv.optimize(model)
    assert kernel_calls(ours.bfloat16(), x.bfloat16()) == 3 and ours(x.bfloat16()).dtype is torch.bfloat16


@torch.no_grad()
def test_autocast() -> None:
    model, x = nn.Sequential(layer(40, 64), nn.ReLU(), layer(64, 20, bias=False)).eval(), features(6, 40)
    ours = fastcv.optimize(model)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
        kept = [p.packed.data_ptr() for p in packs_of(ours)]
        assert torch.equal(ours(x.bfloat16()), y) and kept == [p.packed.data_ptr() for p in packs_of(ours)]
        assert y.dtype is model(x).dtype is torch.bfloat16
    assert torch.equal(y, fastcv.optimize(copy.deepcopy(model).bfloat16())(x.bfloat16()))
    ours[0].weight.mul_(2), model[0].weight.mul_(2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(x), model(x))
        for m in (ours, model):  # autocast leaves float64 alone
            with pytest.raises(RuntimeError, match="got Double and BFloat16"):
                m(x.double())
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(ours(x), model(x))
    assert ours(x).dtype is torch.float32


@torch.no_grad()
def test_a_lower_precision_is_torchs() -> None:
    model, x = layer(64, 64), features(6, 64)
    ours = fastcv.optimize(nn.Sequential(model))
    torch.set_float32_matmul_precision("medium")
    try:
        assert kernel_calls(ours, x) == 0 and torch.equal(ours(x), model(x))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert kernel_calls(ours, x) == 1


def test_hooks_parametrisations_and_pruning_set_later() -> None:
    model, x = nn.Sequential(layer(40, 30)).eval(), features(6, 40)
    for change in (
        lambda m: m.register_forward_hook(lambda module, args, output: output + 1),
        lambda m: parametrizations.orthogonal(m),
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
    ):
        theirs, ours = copy.deepcopy(model), fastcv.optimize(model)
        with torch.no_grad():
            ours(x)
            torch.manual_seed(0)
            change(theirs[0])
            torch.manual_seed(0)
            change(ours[0])
            torch.testing.assert_close(ours(x), theirs(x))


@torch.no_grad()
def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.twice = layer(24, 24), layer(24, 24), layer(24, 24)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(F.relu(self.twice(self.b(F.relu(self.a(x))))))

    torch.manual_seed(0)
    model, x = Tied().eval(), features(4, 24)
    ours = fastcv.optimize(model)
    for _ in range(2):
        torch.testing.assert_close(ours(x), model(x))
        ours.a.weight.mul_(1.1), model.b.weight.mul_(1.1)
    assert ours.a.weight is ours.b.weight


def test_threads_share_a_model() -> None:
    model, x = mlp(), features(5, 40)
    expected, ours, results = None, fastcv.optimize(model), []
    with torch.no_grad():
        expected = fastcv.optimize(model)(x)

    def work() -> None:
        with torch.no_grad():
            results.extend(ours(x) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 20 and all(torch.equal(r, expected) for r in results)


@torch.no_grad()
def test_transforms_and_export() -> None:
    model, x = mlp(), features(5, 40)
    ours = fastcv.optimize(model)
    torch.testing.assert_close(torch.func.vmap(ours)(x[:, None])[:, 0], model(x))
    torch.testing.assert_close(torch.export.export(ours, (x,)).module()(x), model(x))
    traced = torch.compile(ours, backend="eager")
    torch.testing.assert_close(traced(x), model(x))


# ---- what the report says -------------------------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def hooked() -> nn.Module:
    module = nn.Linear(8, 8)
    module.register_forward_hook(lambda m, args, output: output + 1)
    return module


def transposed() -> nn.Module:
    module = nn.Linear(8, 8)
    module.weight = nn.Parameter(module.weight.detach().t())
    return module


LEFT = {
    "subclass": (lambda: Doubled(8, 8), "Doubled is a subclass of nn.Linear", True),
    "hooks": (hooked, "hooks", True),
    "parametrised": (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), "parametrised", True),
    "lazy": (lambda: nn.LazyLinear(8), "lazy", True),
    "quantised": (lambda: torch.ao.nn.quantized.dynamic.Linear(8, 8), "quantised", True),
    "meta": (lambda: nn.Linear(8, 8, device="meta"), "meta device", True),
    "transposed": (transposed, "runs on torch: its weight is not contiguous", False),
    "float64": (lambda: nn.Linear(8, 8, dtype=torch.float64), "runs on torch: fastcv multiplies float32 and bfloat16, not float64", False),
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_left_alone_and_said_why(name: str) -> None:
    build, text, strict_raises = LEFT[name]
    model = nn.Sequential(build()).eval()
    ours = fastcv.optimize(model)
    assert text in rows_of(ours)["0"][2] and text in str(ours.fastcv_report) and installed(ours[0]) is None
    if strict_raises:
        with pytest.raises(RuntimeError, match="not everything"):
            fastcv.optimize(model, strict=True)
    else:
        fastcv.optimize(model, strict=True)
    if name in ("subclass", "hooks", "parametrised", "transposed"):
        with torch.no_grad():
            assert torch.equal(ours(features(3, 8)), model(features(3, 8)))


def test_modes_and_ops() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 4, 5)).eval()
    assert rows_of(fastcv.optimize(model, mode="training"))["2"] == ("", [], "runs on torch: its gradients are torch's")
    without = fastcv.optimize(model, ops=["conv2d"])
    assert list(rows_of(without)) == ["0"] and without.fastcv_report.left_to_torch == {"Flatten": 1, "Linear": 1}
    assert installed(without[2]) is None
    only = fastcv.optimize(model, ops="linear")
    assert rows_of(only) == {"2": ("linear", [], "")} and kernel_calls(only, features(2, 3, 2, 2)) == 1
    folded = fastcv.optimize(mlp(), ops=["batch_norm"])
    assert rows_of(folded)["3"] == ("", ["4"], "") and kernel_calls(folded, features(3, 40)) == 0


@torch.no_grad()
def test_multi_head_attention() -> None:
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), features(2, 5, 16)
    ours = fastcv.optimize(model, example=x)
    rows = rows_of(ours)
    assert rows["self_attn"][0] == "linear" and "self_attn.out_proj" not in rows
    assert rows["linear1"][0] == rows["linear2"][0] == "linear"
    torch.testing.assert_close(ours(x), model(x))


@torch.no_grad()
def test_a_vision_transformer_of_others() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"image_size": 32, "patch_size": 8}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_labels=50)).eval()
    x = features(2, 3, 32, 32)
    ours = fastcv.optimize(model)
    linears = [name for name, m in model.named_modules() if type(m) is nn.Linear]
    assert len(linears) == 13 and all(rows_of(ours)[name][0] == "linear" for name in linears)
    assert kernel_calls(ours, x) == 14  # with the patches' convolution
    assert_close(ours(x).logits, copy.deepcopy(model).double()(x.double()).logits, model(x).logits)


# ---- torch.compile --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, backend="fastcv", fullgraph=True)
    torch._dynamo.reset()


def test_compiled_models_keep_packed_weights(compiled, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastcv.compiler")
    model = mlp()
    ours, prepared = compiled(model), fastcv.optimize(model)
    with torch.no_grad():
        for shape in ((5, 40), (5, 40), (1, 40), (9, 40)):
            x = features(*shape)
            assert torch.equal(ours(x), prepared(x))
        assert all(record.message == "inference: folded x1, linear x2" for record in caplog.records)
        graphs = len(caplog.records)
        model[0].weight.mul_(2), prepared[0].weight.mul_(2)
        model[3].weight.mul_(2), prepared[3].weight.mul_(2)
        assert torch.equal(ours(x), prepared(x)) and len(caplog.records) == graphs
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(ours(x), prepared(x))
    caplog.clear()
    ours(x).sum().backward()
    assert caplog.text and "linear" not in caplog.text


def test_compiled_sequences_and_weights_that_are_computed(compiled, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fastcv.compiler")
    model, x = nn.Sequential(layer(24, 30), nn.Hardswish(), nn.LayerNorm(30), layer(30, 24)).eval(), features(2, 5, 24)
    with torch.no_grad():
        assert torch.equal(compiled(model)(x), fastcv.optimize(model)(x))
        assert caplog.records[-1].message == "inference: layer_norm x1, linear x2"
        function, w = compiled(lambda x, w: F.linear(x, w * 2)), features(7, 24)
        torch.testing.assert_close(function(x, w), F.linear(x, w * 2))
        assert caplog.records[-1].message == "inference: nothing"


# ---- the rule -------------------------------------------------------------------------------------------------------------------


def test_the_rule_is_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    linear.why_torch.cache_clear()
    monkeypatch.setattr(_ext, "cpu_isa", lambda: "avx512")
    assert linear.why_torch(3072, 768, torch.float32) == ""
    assert "too small to gain" in linear.why_torch(64, 64, torch.float32)
    assert "too few" in linear.why_torch(2, 1 << 16, torch.float32)
    assert linear.why_torch(64, 64, torch.bfloat16) == "" and "too small" in linear.why_torch(10, 64, torch.bfloat16)
    linear.why_torch.cache_clear()
    monkeypatch.setattr(_ext, "cpu_isa", lambda: "portable")
    assert "portable kernels are for any processor" in linear.why_torch(3072, 768, torch.float32)
    linear.why_torch.cache_clear()
