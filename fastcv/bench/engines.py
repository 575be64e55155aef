"""The deployment engines that race whole models: ONNX Runtime and OpenVINO.

Each gets a model once, as one file with the weights inside. A deployed model's weights are constants, so that an engine may fold and
arrange them before the first call, as fastcv.optimize does too. It uses as many threads as torch, none of which spins while others
are timed, and reads and writes memory that is bound once.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .values import tensors

ENGINES = ("onnxruntime", "openvino")
# What the engines compute in where the processor can: ONNX Runtime's CPU kernels for convolutions are of float32 alone.
PRECISIONS = {"onnxruntime": {"f32": ""}, "openvino": {"f32": "f32", "bf16": "bf16", "f16": "f16"}}
OPSET = 17  # the first with layer norm


def no_part(engine: str, dtype: str, train: bool) -> str:
    """Why this engine does not take part in such races, in one sentence; "" if it does."""
    if train:
        return f"{engine} takes no part in training: it runs trained models"
    if dtype not in PRECISIONS[engine]:
        return f"{engine} takes no part in {dtype}: on a CPU it computes convolutions in {', '.join(PRECISIONS[engine])}"
    return ""


class _Outputs(nn.Module):
    """A model with all its output tensors as a tuple, whatever it wraps them in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(self.model(x)))


class Exported:
    """A model as one ONNX file for inputs of one shape, written when first asked for; ``close`` deletes it."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        """model: float32, in evaluation mode; not changed. x: an input, float32, row-major."""
        self._model, self._x = model, x
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._refused = ""
        self.outputs: list[Tensor] = []

    def path(self) -> Path:
        """The file. Raises ValueError, one sentence, for a model that cannot be exported; it is not tried twice."""
        if self._refused:
            raise ValueError(self._refused)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="fastcv-onnx-")
            try:
                with _quiet(), torch.no_grad():
                    model = _Outputs(copy.deepcopy(self._model)).eval()
                    self.outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in model(self._x)]
                    torch.onnx.export(model, (self._x,), self._file(), dynamo=False, opset_version=OPSET, input_names=["input"])
            except Exception as error:  # whatever the exporter stumbles over, it is the model that it cannot export
                self._refused = f"cannot be exported to ONNX: {one_line(error)}"
                raise ValueError(self._refused) from None
        return self._file()

    def _file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "model.onnx"

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice to use another one, the tracer's on every Python branch of the model, and the whole graph of
    a model that is refused, which torch prints from C++.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
        logger.setLevel(level)


def one_line(error: BaseException) -> str:
    """What an exception says, its first line that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def deploy(engine: str, exported: Exported, dtype: str) -> tuple[Tensor, Callable[[], Tensor]]:
    """(input, call): the call runs the model on what the input holds, float32 whatever the engine computes in, and returns the
    first output, in memory that the next call writes again.

    Raises ValueError for a model that cannot be exported, and what the engine raises for one that it cannot run.
    """
    path = exported.path()
    image, outputs = torch.zeros_like(exported._x), [torch.empty_like(t) for t in exported.outputs]
    return image, _DEPLOY[engine](path, image, outputs, PRECISIONS[engine][dtype])


def _onnxruntime(path: Path, image: Tensor, outputs: list[Tensor], precision: str) -> Callable[[], Tensor]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()

    def place(t: Tensor) -> tuple[Any, ...]:
        return "cpu", 0, t.numpy().dtype.type, tuple(t.shape), t.data_ptr()

    binding.bind_input(session.get_inputs()[0].name, *place(image))
    for output, t in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_output(output.name, *place(t))

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return outputs[0]

    return call


def _openvino(path: Path, image: Tensor, outputs: list[Tensor], precision: str) -> Callable[[], Tensor]:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    core = openvino.Core()
    model = core.compile_model(core.read_model(path), "CPU", settings)
    runs = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    if runs != precision:
        raise ValueError(f"on this processor openvino computes in {runs}, not in {precision}")
    request = model.create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(image.numpy(), shared_memory=True))
    for i, t in enumerate(outputs):
        request.set_output_tensor(i, openvino.Tensor(t.numpy(), shared_memory=True))

    def call() -> Tensor:
        request.infer()
        return outputs[0]

    return call


_DEPLOY = {"onnxruntime": _onnxruntime, "openvino": _openvino}
