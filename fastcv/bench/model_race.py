"""Races whole models: fastcv.optimize, torch, torch.compile and the deployment engines on the same images, in turns.

The rules are those of race.py, with a whole model as the op: two sets of images alternate, so that no call gets what the call before
it got, every timed call is verified against the model in float64, and its output is filled with NaN afterwards. Inference is
without gradients, with weights that each contender may prepare beforehand; training is forward and backward from a fixed gradient.
"""

from __future__ import annotations

import copy
import gc
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import optimize
from ..explainer import work
from ..testing import max_error
from . import engines, roofs
from .contenders import LAYOUTS
from .engines import Exported, one_line
from .guard import LIMITS, Guard, Noise, crowded, interrupted, unreliable
from .judge import ROUNDING, same_bits
from .memory import peak
from .model_tables import COMPILED
from .race import kernels_of, poison
from .rows import FAILED, UNRELIABLE, WRONG, Row
from .values import tensors

PEERS = ("torch", "compile", COMPILED, *engines.ENGINES)
ROUNDS = (5, 60)
FORMATS = dict(zip(LAYOUTS, (torch.contiguous_format, torch.channels_last), strict=True))
# Rounding of deep networks differs severalfold between right implementations, torch's own layouts among them; a wrong layer is off by
# orders of magnitude.
ALLOWED = 10.0


@dataclass(frozen=True)
class Job:
    """One race: a model on images of a shape, in a dtype, with a number of threads."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "f32"
    train: bool = False
    threads: int = 1

    @property
    def case(self) -> str:
        return f"model-{self.name}-{'x'.join(map(str, self.shape))}"

    @property
    def mode(self) -> str:
        return "fwd+bwd" if self.train else "fwd"

    @property
    def title(self) -> str:
        count = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.name} {'x'.join(map(str, self.shape))} {self.dtype} {self.mode}, {count}"


# ---- contenders


def _settled(model: nn.Module, train: bool) -> nn.Module:
    """In the mode that is raced; dropout stays off, whose draws differ between dtypes."""
    model.train(train)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in ("DropPath", "StochasticDepth"):
            module.eval()
    return model


def _caller(model: nn.Module, image: Tensor, train: bool) -> Callable[[], Tensor]:
    """What is timed: the forward pass; in training also the backward pass, from the same random gradient each time."""

    def infer() -> Tensor:
        with torch.inference_mode():
            return _first(model(image))

    upstream: list[Tensor] = []

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        output = _first(model(image))
        if not upstream:
            upstream.append(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output))
        output.backward(upstream[0])
        return output.detach()

    return step if train else infer


def _first(result: Any) -> Tensor:
    """The first tensor of what a model returns. Raises TypeError if there is none."""
    found = tensors(list(result.values()) if hasattr(result, "values") and not isinstance(result, Tensor) else result)
    if not found:
        raise TypeError(f"it returns {type(result).__name__} without a tensor")
    return found[0]


def _compiled(model: nn.Module, train: bool) -> nn.Module:
    """torch.compile; for inference with freezing, which makes constants of the weights."""
    return torch.compile(model, dynamic=False, options=None if train else {"freezing": True})


@dataclass
class _Runner:
    """One contender in a race. prepare: gives its input, its call, and its model where that has parameters of torch's."""

    name: str
    who: str
    layout: str
    prepare: Callable[[], tuple[Tensor, Callable[[], Tensor], nn.Module | None]]
    image: Tensor = field(default_factory=lambda: torch.empty(0))
    call: Callable[[], Tensor] = lambda: torch.empty(0)
    model: nn.Module | None = None
    spare: set[int] = field(default_factory=set)  # memory that outputs may share and that must stay
    times: list[float] = field(default_factory=list)
    switched: int = 0
    cpu: float = 0.0
    checked: int = 0
    error: float | None = None
    repeatable: bool | None = None
    peak: int | None = None
    workspace: int | None = None
    kernel: str = ""
    status: str = ""
    reason: str = ""

    @property
    def running(self) -> bool:
        return not self.status

    def stop(self, status: str, reason: str) -> None:
        if not self.status:
            self.status, self.reason = status, reason


def _runners(job: Job, model: nn.Module | None, exported: Exported | None, vs: Sequence[str]) -> list[_Runner]:
    """fastcv and the named peers, none of them prepared. ``model``: float32; every contender gets a copy."""
    dtype = roofs.DTYPES[job.dtype]

    def of_torch(layout: str, change: Callable[[nn.Module], nn.Module]) -> Callable[[], Any]:
        def prepare() -> tuple[Tensor, Callable[[], Tensor], nn.Module]:
            own = _settled(copy.deepcopy(model).to(dtype), job.train)
            changed = change(own).to(memory_format=FORMATS[layout])
            image = torch.zeros(job.shape, dtype=dtype).contiguous(memory_format=FORMATS[layout])
            return image, _caller(changed, image, job.train), changed

        return prepare

    def of_engine(engine: str) -> Callable[[], Any]:
        return lambda: (*engines.deploy(engine, exported, job.dtype), None)

    changes: dict[str, Callable[[nn.Module], nn.Module]] = {
        "fastcv": lambda m: optimize(m, mode="training" if job.train else "inference"),
        COMPILED: lambda m: torch.compile(m, backend="fastcv", dynamic=False),
        "torch": lambda m: m,
        "compile": lambda m: _compiled(m, job.train),
    }
    made = [
        _Runner(f"{who} {layout}", "fastcv" if who == COMPILED else who, layout, of_torch(layout, change))
        for who, change in changes.items()
        if who == "fastcv" or (who in vs and not (who == COMPILED and job.train))
        for layout in (LAYOUTS if len(job.shape) == 4 else LAYOUTS[:1])
    ]
    for engine in engines.ENGINES:
        if engine in vs and not engines.no_part(engine, job.dtype, job.train):
            made.append(_Runner(engine, engine, "contiguous", of_engine(engine)))
    return made


def contender_names(job: Job, vs: Sequence[str]) -> list[str]:
    """Whom ``race`` makes rows of."""
    return [runner.name for runner in _runners(job, None, None, vs)]


# ---- what is right


class _Counter(TorchDispatchMode):
    """Adds up the operations of what runs within it."""

    flops = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        self.flops += work.flops(op, args, kwargs or {}, out)
        return out


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _distance(found: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The Euclidean distance of two vectors given in parts, relative to the second."""
    off = size = 0.0
    for a, b in found:
        off += float((a.to(b) - b).norm()) ** 2
        size += float(b.norm()) ** 2
    return math.sqrt(off / size) if size else math.sqrt(off)


class _Judge:
    """The float64 answers for both sets of images, and how far torch itself is off them in the dtype of the race.

    Errors: of inference, the largest of the output relative to its largest value; of training, that of all gradients by their
    Euclidean norm, and in timed calls that of the first parameter's gradient, which all layers have gone into.
    """

    def __init__(self, job: Job, model: nn.Module, images: Sequence[Tensor]) -> None:
        self.job, self.images = job, images
        exact = _settled(copy.deepcopy(model).double(), job.train)
        self.outputs: list[Tensor] = []
        self.firsts: list[Tensor] = []
        self.gradients: dict[str, Tensor] = {}
        kept = torch.float64 if job.dtype == "f64" else torch.float32
        with _Counter() as counter, torch.set_grad_enabled(job.train):
            for key, image in enumerate(images):
                self.outputs.append(_caller(exact, image.double(), job.train)() if job.train else _first(exact(image.double())))
                if job.train:
                    found = _gradients(exact)
                    if not found:
                        raise TypeError("no parameter has a gradient")
                    self.firsts.append(next(iter(found.values())).clone())
                    if key == 0:
                        self.gradients = {name: g.to(kept) for name, g in found.items()}
        self.flops = counter.flops // len(images)
        precise = torch.get_float32_matmul_precision()
        eps = torch.finfo(roofs.DTYPES[job.dtype]).eps
        # What the switch allows of float32: tf32's ten bits, bfloat16's seven.
        self.eps = eps if job.dtype != "f32" else {"highest": eps, "high": 2.0**-10, "medium": 2.0**-7}[precise]
        self.own = self.own_timed = 0.0

    def first_gradient(self, runner: _Runner) -> list[Tensor]:
        """In training the gradient of the first parameter that has one; nothing in inference."""
        return list(_gradients(runner.model).values())[:1] if self.job.train and runner.model is not None else []

    def audit(self, runner: _Runner, key: int, output: Tensor) -> float:
        """The error of an untimed call, of everything that it computed. Raises ValueError if something is missing."""
        if not self.job.train or key != 0:
            return self.timed(runner, key, output)
        assert runner.model is not None
        found = {name.removeprefix("_orig_mod."): g for name, g in _gradients(runner.model).items()}
        if missing := [name for name in self.gradients if name not in found]:
            raise ValueError(f"{missing[0]} has no gradient")
        return _distance((found[name], g) for name, g in self.gradients.items())

    def timed(self, runner: _Runner, key: int, output: Tensor) -> float:
        """The error of a timed call. Raises ValueError for an output of another shape, or without a gradient."""
        if output.shape != self.outputs[key].shape:
            raise ValueError(f"its output has shape {tuple(output.shape)}, expected {tuple(self.outputs[key].shape)}")
        error = max_error(output, self.outputs[key])
        if not self.job.train:
            return error
        first = self.first_gradient(runner)
        if not first:
            raise ValueError("no parameter has a gradient")
        return max(error, _distance([(first[0], self.firsts[key])]))

    def verdict(self, error: float, own: float) -> str:
        """Why an error is too large; "" if it is not."""
        allowed = ALLOWED * own + ROUNDING * self.eps
        what = "its gradients are" if self.job.train else "its output is"
        return "" if error <= allowed else f"{what} {error:.2g} off the model in float64, allowed {allowed:.2g}"


# ---- the race


class _Race:
    def __init__(self, job: Job, model: nn.Module, images: Sequence[Tensor], exported: Exported, vs: Sequence[str], seed: int) -> None:
        self.job, self.vs, self.images = job, vs, images
        self.number = random.Random(f"{seed} {job.title}")
        self.judge = _Judge(job, model, images)
        self.guard = Guard()
        self.noise = Noise()
        # The yardstick: torch in this dtype, in every layout.
        own = [r for r in _runners(job, model, exported, ("torch",)) if r.who == "torch"]
        for runner in own:
            self._audit(runner, judged=False)
            if not runner.running or not math.isfinite(self.judge.own):
                raise ValueError(f"torch in {job.dtype}: {runner.reason or 'its output is not finite, in float64 it is'}")
        given = {r.name: r for r in own} if "torch" in vs else {}
        del own
        self.runners = [given.get(r.name, r) for r in _runners(job, model, exported, vs)]
        for runner in self.runners:
            if runner.name not in given:
                self._audit(runner, judged=True)
            if not runner.running:  # gives back its memory
                runner.image, runner.call, runner.model = torch.empty(0), lambda: torch.empty(0), None
                gc.collect()

    def _poison(self, runner: _Runner, output: Tensor) -> None:
        poison(output, runner.spare)
        if self.job.train and runner.model is not None:
            runner.model.zero_grad(set_to_none=True)

    @contextmanager
    def _watch(self, runner: _Runner) -> Iterator[None]:
        """Whatever a contender raises is its own failure, in one line."""
        threads = torch.get_num_threads()
        try:
            yield
        except (Exception, SystemExit) as error:
            runner.stop(FAILED, f"{type(error).__name__}: {one_line(error)}" if not isinstance(error, ValueError) else one_line(error))
        if torch.get_num_threads() != threads:
            runner.stop(WRONG, f"changed torch's number of threads from {threads} to {torch.get_num_threads()}")
            torch.set_num_threads(threads)

    def _audit(self, runner: _Runner, judged: bool) -> None:
        """Before the race, untimed: prepares the contender; is it right, does it repeat bit for bit, what memory does it take.

        Not judged, it is the yardstick.
        """
        judge = self.judge
        with self._watch(runner):
            runner.image, runner.call, runner.model = runner.prepare()
            kept = tensors([runner.image, *(runner.model.state_dict().values() if runner.model is not None else ())])
            runner.spare = {t.untyped_storage().data_ptr() for t in kept}
            copies = []
            for key in (0, 1, 0):  # twice the same, something else in between; fastcv packs weights at the second call of a shape
                runner.image.copy_(self.images[key])
                output = runner.call()
                error, timed = judge.audit(runner, key, output), judge.timed(runner, key, output)
                if not judged:
                    judge.own, judge.own_timed = max(judge.own, error), max(judge.own_timed, timed)
                runner.error = max(runner.error or 0.0, error)
                if reason := judge.verdict(error, judge.own) or judge.verdict(timed, judge.own_timed):
                    runner.stop(WRONG, reason)
                    return
                copies.append([output.clone(), *(g.clone() for g in judge.first_gradient(runner))])
                self._poison(runner, output)
            runner.repeatable = all(same_bits(a, b) for a, b in zip(copies[0], copies[2], strict=True))
            if runner.model is not None:
                runner.peak, runner.workspace = peak(runner.call)
                runner.kernel = kernels_of(runner.call)
                runner.model.zero_grad(set_to_none=True)

    def run(self, seconds: float, rounds: tuple[int, int]) -> None:
        """Every contender once per round, in an order shuffled anew each round, for about ``seconds`` in all."""
        self.guard.start()
        gc.collect()
        gc.disable()
        end, count = perf_counter() + seconds, 0
        try:
            while (running := [r for r in self.runners if r.running]) and (
                count < rounds[0] or (count < rounds[1] and perf_counter() < end)
            ):
                for runner in self.number.sample(running, len(running)):
                    self._timed(runner, count % 2)
                count += 1
        finally:
            gc.enable()
        self.noise = self.guard.noise()

    def _timed(self, runner: _Runner, key: int) -> None:
        with self._watch(runner):
            runner.image.copy_(self.images[key])
            self.guard.before()
            start = perf_counter()
            output = runner.call()
            seconds = perf_counter() - start
            switched, cpu = self.guard.after()
            error = self.judge.timed(runner, key, output)
            runner.error = max(runner.error or 0.0, error)
            runner.checked += 1
            if reason := self.judge.verdict(error, self.judge.own_timed):
                runner.stop(WRONG, reason)
            runner.times.append(seconds)
            runner.switched += interrupted(switched, seconds)
            runner.cpu += cpu
            self._poison(runner, output)

    def row(self, runner: _Runner) -> Row:
        times = tuple(runner.times) if runner.running else ()
        row = Row(
            case=self.job.case,
            op="model",
            dtype=self.job.dtype,
            mode=self.job.mode,
            layout=runner.layout,
            contender=runner.name,
            who=runner.who,
            cache="hot",
            threads=torch.get_num_threads(),
            times=times,
            flops=self.judge.flops,
            error=runner.error,
            peer_error=self.judge.own,
            workspace=runner.workspace,
            peak=runner.peak,
            repeatable=runner.repeatable,
            checked=runner.checked,
            kernel=runner.kernel,
            noise=self.noise.as_dict(),
        )
        if not row.timed:
            row.status, row.reason = runner.status, runner.reason
            return row
        row.noise["switched"] = runner.switched / len(times)
        row.roof = row.flops / roofs.arithmetic(roofs.DTYPES[row.dtype])
        if reason := unreliable(self.noise, times, runner.switched, LIMITS) or crowded(sum(times), runner.cpu):
            row.status, row.reason = UNRELIABLE, reason
        return row


def race(
    name: str,
    model: nn.Module,
    x: Tensor,
    train: bool = False,
    vs: Sequence[str] = ("torch",),
    seconds: float = 10.0,
    rounds: tuple[int, int] = ROUNDS,
    dtype: str = "f32",
    seed: int = 0,
    exported: Exported | None = None,
) -> list[Row]:
    """A row for each contender: fastcv and the peers of ``vs``, torch's and fastcv's in both layouts.

    model: float32, not changed. x: images of the shape that is raced; their values are one of the two sets. seconds: about this
    long in all. exported: the model for the engines, where it exists already. What a contender does wrong is its rows' status.
    Raises ValueError for a model that does not run on such images.
    """
    job = Job(name, tuple(x.shape), dtype, train, torch.get_num_threads())
    images = (x, torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + 1)))
    made = exported or Exported(model, x)
    torch._dynamo.reset()
    try:
        try:
            contest = _Race(job, model, images, made, vs, seed)
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"{name} does not run on {'x'.join(map(str, x.shape))}: {one_line(error)}") from None
        contest.run(seconds, rounds)
        return [contest.row(runner) for runner in contest.runners]
    finally:
        if exported is None:
            made.close()
        gc.collect()
