"""Whom fastcv races: torch, torch.compile, ONNX Runtime, OpenVINO, faiss, scikit-learn, and what users registered.

All get the same arguments in every call, weights too: nobody packs them beforehand. A peer that is not installed is left out with
one sentence; one that does not have the op, dtype or mode takes no part.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..testing import Case
from .contenders import Contender, registered
from .values import tensors

PEERS = ("torch", "compile", "onnxruntime", "openvino", "faiss", "sklearn")
NEEDS = {
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino", "onnx"),
    "faiss": ("faiss",),
    "sklearn": ("sklearn",),
}


def missing(peer: str) -> str:
    """Why this peer cannot take part on this installation, in one sentence; "" if it can."""
    lacking = [m for m in NEEDS.get(peer, ()) if importlib.util.find_spec(m) is None]
    return f"{peer} takes no part: {' and '.join(lacking)} not installed (pip install 'fastcv[bench]')" if lacking else ""


def contenders(case: Case, dtype: torch.dtype, mode: str, layouts: Sequence[str], vs: Sequence[str]) -> list[Contender]:
    """fastcv, the named peers that can run this, and what is registered for the op, in those of the layouts that the case makes sense in;
    where none of them does (rows of numbers have no channels), in the case's own.
    """
    # Layouts are of tensors of four and five dimensions; without one the second is the first again.
    spatial = any(t.dim() in (4, 5) for t in tensors(case.arguments(torch.float32)))
    sensible = case.layouts if spatial else case.layouts[:1]
    both = [layout for layout in layouts if layout in sensible] or list(sensible)
    ours = getattr(functional, case.op)
    made = [Contender(f"fastcv {layout}", ours, layout, who="fastcv") for layout in both]
    for peer in vs:
        if peer == "torch":
            made += [Contender(f"torch {layout}", case.torch_function(), layout, who="torch") for layout in both]
        elif peer == "compile":
            made += [Contender(f"compile {layout}", _compiled(case), layout, who="compile") for layout in both]
        elif mode == "fwd" and dtype == torch.float32 and "contiguous" in both:
            function = _FOREIGN[peer](case)
            if function is not None:
                made.append(Contender(peer, function, backward=False))
    made += [c for c in registered(case.op) if c.layout in both and (mode == "fwd" or c.backward)]
    return made


def _compiled(case: Case) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(case.torch_function(), dynamic=False)


def _bound(case: Case, args: Any, kwargs: Any) -> dict[str, Any]:
    """The case's arguments by the names of fastcv's function, defaults filled in."""
    bound = inspect.signature(getattr(functional, case.op)).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _ints(value: Any, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def onnx_model(case: Case) -> tuple[bytes, Callable[..., list[Tensor]], tuple[int, ...]] | None:
    """The case as an ONNX model of one node: (model, function from the case's arguments to the model's inputs, output shape).

    None for ops that ONNX has not, or not with these arguments. Weights are inputs of the model.
    """
    import onnx
    from onnx import TensorProto, helper

    args, kwargs = case.arguments(torch.float32)
    a = _bound(case, args, kwargs)
    x = a.get("input")
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return None
    nd = x.dim() - 2
    names = ["input"]
    options: dict[str, Any]
    if case.op.startswith("conv") and case.op != "conv2d_fused" and not isinstance(a["padding"], str):
        names += ["weight"] + (["bias"] if a["bias"] is not None else [])
        padding = _ints(a["padding"], nd)
        options = {"strides": _ints(a["stride"], nd), "pads": padding * 2, "dilations": _ints(a["dilation"], nd), "group": a["groups"]}
        op = "Conv"
        if "transpose" in case.op:
            op, options["output_padding"] = "ConvTranspose", _ints(a["output_padding"], nd)
    elif case.op in ("max_pool2d", "avg_pool2d") and not a["ceil_mode"] and not a.get("return_indices") and not a.get("divisor_override"):
        kernel = _ints(a["kernel_size"], 2)
        options = {"kernel_shape": kernel, "strides": _ints(a["stride"] or kernel, 2), "pads": _ints(a["padding"], 2) * 2}
        op = "MaxPool"
        if case.op == "max_pool2d":
            options["dilations"] = _ints(a["dilation"], 2)
        else:
            op, options["count_include_pad"] = "AveragePool", int(a["count_include_pad"])
    elif case.op == "adaptive_avg_pool2d" and a["output_size"] in (1, (1, 1)):
        op, options = "GlobalAveragePool", {}
    elif case.op in ("softmax", "log_softmax"):
        op, options = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[case.op], {"axis": a["dim"]}
    elif case.op == "batch_norm" and not a["training"] and a["weight"] is not None:
        names, op, options = ["input", "weight", "bias", "running_mean", "running_var"], "BatchNormalization", {"epsilon": a["eps"]}
    elif case.op == "layer_norm" and a["weight"] is not None:
        names, op, options = ["input", "weight", "bias"], "LayerNormalization", {"axis": -len(a["normalized_shape"]), "epsilon": a["eps"]}
    else:
        return None
    shape = tuple(case.torch_function()(*args, **kwargs).shape)
    graph = helper.make_graph(
        [helper.make_node(op, names, ["output"], **options)],
        "case",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(a[n].shape)) for n in names],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, list(shape))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)

    def inputs(*args: Any, **kwargs: Any) -> list[Tensor]:
        bound = _bound(case, args, kwargs)
        return [bound[n] for n in names]

    return model.SerializeToString(), inputs, shape


def _onnxruntime(case: Case) -> Callable[..., Tensor] | None:
    import numpy
    import onnxruntime

    made = onnx_model(case)
    if made is None:
        return None
    model, inputs, shape = made
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads must not run while others are timed
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def call(*args: Any, **kwargs: Any) -> Tensor:
        binding = session.io_binding()
        output = torch.empty(shape)
        for name, t in zip(names, inputs(*args, **kwargs), strict=True):
            binding.bind_input(name, "cpu", 0, numpy.float32, tuple(t.shape), t.data_ptr())
        binding.bind_output("output", "cpu", 0, numpy.float32, shape, output.data_ptr())
        session.run_with_iobinding(binding)
        return output

    return call


def _openvino(case: Case) -> Callable[..., Tensor] | None:
    import openvino

    made = onnx_model(case)
    if made is None:
        return None
    model, inputs, shape = made
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()

    def call(*args: Any, **kwargs: Any) -> Tensor:
        output = torch.empty(shape)
        for i, t in enumerate(inputs(*args, **kwargs)):
            request.set_input_tensor(i, openvino.Tensor(t.numpy(), shared_memory=True))
        request.set_output_tensor(0, openvino.Tensor(output.numpy(), shared_memory=True))
        request.infer()
        return output

    return call


def _distances(case: Case) -> tuple[float, int] | None:
    """(p, k) of a case of cdist (k 0), knn or nearest on two matrices of float32; None for others."""
    if case.op not in ("cdist", "knn", "nearest"):
        return None
    args, kwargs = case.arguments(torch.float32)
    if any(t.dim() != 2 or t.dtype != torch.float32 for t in args[:2]) or kwargs.get("squared"):
        return None
    rest = list(args[2:])
    k = rest.pop(0) if case.op == "knn" else int(case.op == "nearest")
    p = float(rest[0]) if rest else 2.0
    return (p, k) if p in (1.0, 2.0) and math.isfinite(p) else None


def _shaped(case: Case, distances: Any, indices: Any) -> Any:
    found = torch.from_numpy(distances), torch.from_numpy(indices)
    return tuple(t.squeeze(-1) for t in found) if case.op == "nearest" else found


def _faiss(case: Case) -> Callable[..., Any] | None:
    import faiss

    what = _distances(case)
    if what is None:
        return None
    p, k = what
    metric = faiss.METRIC_L2 if p == 2 else faiss.METRIC_L1
    faiss.omp_set_num_threads(torch.get_num_threads())

    def call(x: Tensor, y: Tensor, *_: Any) -> Any:
        if case.op == "cdist":
            full = torch.from_numpy(faiss.pairwise_distances(x.numpy(), y.numpy(), metric=metric))
            return full.clamp_(min=0).sqrt_() if p == 2 else full
        distances, indices = _shaped(case, *faiss.knn(x.numpy(), y.numpy(), k, metric=metric))
        return (distances.clamp_(min=0).sqrt_() if p == 2 else distances), indices  # faiss gives squares

    return call


def _sklearn(case: Case) -> Callable[..., Any] | None:
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestNeighbors

    what = _distances(case)
    if what is None:
        return None
    p, k = what
    metric = "euclidean" if p == 2 else "manhattan"

    def call(x: Tensor, y: Tensor, *_: Any) -> Any:
        if case.op == "cdist":
            return torch.from_numpy(pairwise_distances(x.numpy(), y.numpy(), metric=metric))
        finder = NearestNeighbors(n_neighbors=k, algorithm="brute", metric=metric).fit(y.numpy())
        return _shaped(case, *finder.kneighbors(x.numpy()))

    return call


_FOREIGN = {"onnxruntime": _onnxruntime, "openvino": _openvino, "faiss": _faiss, "sklearn": _sklearn}
