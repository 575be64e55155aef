"""fastcv.optimize: nn.MultiheadAttention, whose projections run on the kernel of linear layers."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastcv
from fastcv.optimizer import attention, linear
from fastcv.optimizer.forwards import AttentionForward, installed
from fastcv.testing import assert_close


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch):
    """The kernel takes layers of any size, with any instruction set, in the precision that torch begins with."""
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "none"
    linear.why_torch.cache_clear()
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setitem(linear._LEAST, dtype, 1)
    monkeypatch.setattr(linear, "_LEAST_OUTPUTS", 1)
    monkeypatch.setattr(linear, "_UNMEASURED", ())
    yield
    linear.why_torch.cache_clear()
    products.fp32_precision = before


def tokens(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class SelfAttention(nn.Module):
    """Attends over its input; options: of the call."""

    def __init__(self, width: int = 24, heads: int = 4, call: dict | None = None, **options) -> None:
        super().__init__()
        torch.manual_seed(width + heads)
        self.attention = nn.MultiheadAttention(width, heads, **options)
        if self.attention.in_proj_bias is not None:  # torch begins with zeros
            nn.init.normal_(self.attention.in_proj_bias)
            nn.init.normal_(self.attention.out_proj.bias)
        self.call = {"need_weights": False} if call is None else call

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, **self.call)[0]


def row_of(model: nn.Module) -> tuple[str, str]:
    (row,) = [row for row in model.fastcv_report.rows if row.name == "attention"]
    return row.op, row.reason


def products(model: nn.Module, x: Tensor) -> int:
    """How many projections ran on the kernel."""
    with torch.no_grad():
        return sum(op == "conv" and reason == "" for op, _, reason in fastcv.why_not(model, x))


# ---- answers --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("width", "heads"), [(24, 4), (7, 7), (33, 3), (64, 1)])
@torch.no_grad()
def test_as_exact_as_torch(width: int, heads: int, batch_first: bool, bias: bool, dtype: torch.dtype) -> None:
    model = SelfAttention(width, heads, batch_first=batch_first, bias=bias, dtype=dtype).eval()
    ours = fastcv.optimize(model)
    assert row_of(ours) == ("linear", "")
    for shape in ((3, 40), (1, 1), (40,), (2, 200), (5, 0), (0, 4)):
        x = tokens(*shape, width, dtype=dtype)
        y, expected = ours(x), model(x)
        assert y.shape == expected.shape and y.dtype is dtype
        if x.numel():
            assert products(ours, x) == 2
            assert_close(y, copy.deepcopy(model).double()(x.double()), expected)


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_bits_of_a_sample(batch_first: bool, tiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_has_tiles", lambda dtype: tiles and dtype is torch.float32)
    ours = fastcv.optimize(SelfAttention(batch_first=batch_first).eval())
    x = tokens(6, 50, 24)
    in_order = x if batch_first else x.transpose(0, 1)
    y = ours(in_order) if batch_first else ours(in_order).transpose(0, 1)
    assert ours(in_order).is_contiguous()
    assert all(torch.equal(ours(x[i]), y[i]) for i in range(6))  # without a batch
    part = ours(x[2:4]) if batch_first else ours(x[2:4].transpose(0, 1)).transpose(0, 1)
    assert torch.equal(part, y[2:4])
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(ours(strided if batch_first else strided.transpose(0, 1)), ours(in_order))


@torch.no_grad()
def test_special_values_stay_in_their_sample() -> None:
    ours, x = fastcv.optimize(SelfAttention(batch_first=True).eval()), tokens(3, 9, 24)
    clean = ours(x)
    x[1, 4, 2] = float("nan")
    y = ours(x)
    assert torch.equal(y[0], clean[0]) and torch.equal(y[2], clean[2]) and y[1].isnan().all()


# ---- what stays torch's ---------------------------------------------------------------------------------------------------------

CALLS = {
    "weights": {},
    "averaged weights": {"need_weights": True, "average_attn_weights": False},
    "mask": {"need_weights": False, "attn_mask": torch.ones(9, 9).triu(1).bool()},
    "padding": {"need_weights": False, "key_padding_mask": torch.tensor([[False] * 7 + [True] * 2] * 2)},
    "causal": {"need_weights": False, "attn_mask": torch.ones(9, 9).triu(1).bool(), "is_causal": True},
}


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_calls_that_ask_for_more(name: str) -> None:
    model = SelfAttention(call=CALLS[name], batch_first=True).eval()
    ours, x = fastcv.optimize(model), tokens(2, 9, 24)
    assert products(ours, x) == 0 and torch.equal(ours(x), model(x))
    attention = ours.attention
    for own, peer in zip(attention(x, x, x, **CALLS[name]), model.attention(x, x, x, **CALLS[name]), strict=True):
        assert own is peer is None or torch.equal(own, peer)


@torch.no_grad()
def test_arguments_by_position_and_name() -> None:
    model = SelfAttention(batch_first=True).eval()
    ours, x = fastcv.optimize(model).attention, tokens(2, 9, 24)
    y = ours(x, x, x, need_weights=False)[0]
    assert torch.equal(ours(x, x, x, None, False)[0], y) and torch.equal(ours(query=x, key=x, value=x, need_weights=False)[0], y)
    assert ours(x, x, x, need_weights=False)[1] is None
    other = tokens(2, 5, 24, seed=2)
    assert torch.equal(ours(x, other, other, need_weights=False)[0], model.attention(x, other, other, need_weights=False)[0])
    for args, kwargs in (((x, x), {}), ((x, x, x), {"query": x}), ((x, x, x), {"mask": None}), ((x,) * 3 + (None,) * 6, {})):
        with pytest.raises(TypeError):
            ours(*args, **kwargs)
    for wrong in (tokens(2, 9, 23), tokens(2, 2, 9, 24), tokens(24)):
        with pytest.raises((RuntimeError, AssertionError)):
            ours(wrong, wrong, wrong, need_weights=False)


def hooked() -> nn.Module:
    model = SelfAttention()
    model.attention.register_forward_hook(lambda m, args, output: (output[0] + 1, None))
    return model


def parametrised() -> nn.Module:
    model = SelfAttention()
    parametrizations.weight_norm(model.attention.out_proj)
    return model


class Subclass(nn.MultiheadAttention):
    pass


def subclass() -> nn.Module:
    model = SelfAttention()
    model.attention = Subclass(24, 4)
    return model


LEFT = {
    "hooks": (hooked, "it has hooks", True),
    "parametrised": (parametrised, "runs on torch: its output projection is parametrised", False),
    "keys": (lambda: SelfAttention(add_bias_kv=True), "runs on torch: it adds keys of its own to the sequence", False),
    "zeros": (lambda: SelfAttention(add_zero_attn=True), "runs on torch: it adds keys of its own to the sequence", False),
    "widths": (lambda: SelfAttention(kdim=24, vdim=20), "runs on torch: its query, key and value are of different widths", False),
    "float64": (lambda: SelfAttention(dtype=torch.float64), "runs on torch: fastcv multiplies float32 and bfloat16, not float64", False),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone_and_said_why(name: str) -> None:
    build, reason, strict_raises = LEFT[name]
    model = build().eval()
    ours = fastcv.optimize(model)
    assert row_of(ours) == ("", reason) and installed(ours.attention) is None and len(ours.fastcv_report.rows) == 1
    if strict_raises:
        with pytest.raises(RuntimeError, match="not everything"):
            fastcv.optimize(model, strict=True)
    else:
        fastcv.optimize(model, strict=True)


def test_subclasses_modes_and_ops() -> None:
    (row,) = fastcv.optimize(subclass().eval()).fastcv_report.rows
    assert (row.name, row.reason) == ("attention.out_proj", "runs on torch: nn.MultiheadAttention reads its weight itself")
    model = SelfAttention().eval()
    assert row_of(fastcv.optimize(model, mode="training")) == ("", "runs on torch: its gradients are torch's")
    without = fastcv.optimize(model, ops=["conv2d"]).fastcv_report
    assert without.rows == [] and without.left_to_torch == {"MultiheadAttention": 1}
    assert row_of(fastcv.optimize(model, ops="linear")) == ("linear", "")
    assert fastcv.optimize(model).fastcv_report.left_to_torch == {}
    assert fastcv.optimize(model).fastcv_report.rows[0].packed_bytes >= 4 * 24 * 24 * 4


def test_gradients_and_training_are_torchs() -> None:
    model = SelfAttention(batch_first=True, dropout=0.5).eval()
    ours, x = fastcv.optimize(model), tokens(2, 9, 24).requires_grad_()
    for forward in (ours, model):
        forward(x).square().sum().backward()
    for (name, own), peer in zip(ours.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(own.grad, peer.grad), name
    ours.train(), model.train()
    with torch.no_grad():
        torch.manual_seed(5)
        y = ours(x)
        torch.manual_seed(5)
        assert torch.equal(y, model(x))
        ours.eval()
        assert products(ours, x) == 2


# ---- as part of a model ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_example_compares_and_undoes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = SelfAttention(batch_first=True).eval(), tokens(2, 9, 24)
    (row,) = fastcv.optimize(model, example=x).fastcv_report.rows
    assert row.op == "linear" and 0 < row.max_error <= row.allowed
    monkeypatch.setattr(attention, "forward", lambda module, x, *packs: x)
    ours = fastcv.optimize(model, example=x)
    monkeypatch.undo()
    assert row_of(ours)[0] == "" and row_of(ours)[1].startswith("undone: error")
    assert torch.equal(ours(x), model(x))


@torch.no_grad()
def test_weights_that_change_copies_and_restore() -> None:
    model, x = SelfAttention(batch_first=True).eval(), tokens(2, 9, 24)
    ours = fastcv.optimize(model)
    before = ours(x)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        forward = installed(twin.attention)
        assert isinstance(forward, AttentionForward) and forward.module is twin.attention and torch.equal(twin(x), before)
    for parameter in ("in_proj_weight", "in_proj_bias"):
        getattr(ours.attention, parameter).mul_(2), getattr(model.attention, parameter).mul_(2)
        assert not torch.equal(ours(x), before)
        assert_close(ours(x), copy.deepcopy(model).double()(x.double()), model(x))
    ours.attention.out_proj.weight.neg_(), model.attention.out_proj.weight.neg_()
    assert_close(ours(x), copy.deepcopy(model).double()(x.double()), model(x))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    assert list(ours.state_dict()) == list(model.state_dict())
    ours.load_state_dict(torch.load(buffer))
    assert torch.equal(fastcv.restore(ours)(x), model(x)) and installed(ours.attention) is None
    assert fastcv.optimize(model).bfloat16()(x.bfloat16()).dtype is torch.bfloat16


@torch.no_grad()
def test_autocast() -> None:
    model, x = SelfAttention(64, 4, batch_first=True).eval(), tokens(2, 33, 64)
    ours = fastcv.optimize(model)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours(x), model(x)
        assert products(ours, x) == 2
    assert y.dtype is expected.dtype
    assert_close(y, copy.deepcopy(model).double()(x.double()), expected)


def test_in_inference_mode_and_under_transforms() -> None:
    model, x = SelfAttention(batch_first=True).eval(), tokens(2, 9, 24)
    ours = fastcv.optimize(model)
    with torch.inference_mode():
        assert products(ours, x) == 2 and ours(x).is_inference()
    with torch.no_grad():
        batch = tokens(3, 2, 9, 24)
        torch.testing.assert_close(torch.func.vmap(ours)(batch), torch.stack([model(x) for x in batch]))


@torch.no_grad()
def test_encoders_of_torch_and_of_the_zoo() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    ours, x = fastcv.optimize(model), tokens(2, 5, 16)
    torch.testing.assert_close(ours(x), model(x))
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    torch.testing.assert_close(ours(x, src_key_padding_mask=padding), model(x, src_key_padding_mask=padding))
    vit = fastcv.models.VisionTransformer(32, 8, depth=2, heads=2, width=64, mlp_width=64, num_classes=5).eval()
    nn.init.normal_(vit.heads[-1].weight)
    ours, image = fastcv.optimize(vit, example=tokens(2, 3, 32, 32)), tokens(2, 3, 32, 32)
    served = [row for row in ours.fastcv_report.rows if row.type == "MultiheadAttention"]
    assert len(served) == 2 and all(row.op == "linear" and row.max_error is not None for row in served)
    assert_close(ours(image), copy.deepcopy(vit).double()(image.double()), vit(image))
    assert fastcv.explain(ours, image).layers
