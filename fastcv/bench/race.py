"""Times contenders against each other, honestly: random order, fresh values, and only what was verified counts.

``interleave`` races ready-made calls. ``measure`` races functions on a case and owns everything around them:
- every timed call gets values that it has not seen, in memory that the judge knows; nothing is repeated inside the clock;
- hot: arguments were just written, code was just run. cold: arguments lie in buffers that add up to three times the last-level
  cache, written before that much other memory was; code is warm;
- outputs are filled with NaN before their memory is given back, so that unwritten or remembered results are NaN;
- timed calls picked in secret are verified: copies taken when the clock stopped must meet the accuracy rule, must still be equal
  later, and the arguments must be what they were;
- a contender that raises or is wrong loses its own rows; the others go on.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter  # by value: a contender may replace the module's own
from typing import Any

import torch
from torch import Tensor

from .. import _ext
from ..testing import Case
from . import roofs
from .contenders import Contender
from .cost import Cost, cost
from .guard import LIMITS, Guard, Limits, busy, crowded, interrupted, unreliable
from .judge import Judge, Verdict, plain_tensors, same_bits
from .memory import peak
from .rows import FAILED, IMPOSSIBLE, UNRELIABLE, WRONG, Row, Sample
from .timers import MULTIPLE, CpuTimer, CudaTimer
from .values import Pass, Values, tensors

CACHES = ("hot", "cold")
LONG = 5e-3  # a call this long fills the caches by itself: it needs no call before it to warm them
CHECKING = 0.2  # at most this share of the time goes into checks beyond the first two
PATIENCE = 3  # on a shared machine: interrupted calls passed over for each that counts
BUFFERS = 256  # at most so many sets of arguments
DTYPE_NAMES = {dtype: name for name, dtype in roofs.DTYPES.items()}


def interleave(
    contenders: dict[str, Callable[[], object]],
    seconds: float = 1.0,
    rounds: tuple[int, int] = (7, 200),
    floor: float = 2e-4,
    seed: int = 0,
) -> dict[str, Sample]:
    """Runs every contender once per round, in an order shuffled anew each round, for about ``seconds`` in all.

    rounds: at least and at most this many. floor: a call shorter than this is repeated within a round until the
    round is that long, and the round's time divided. Two warm-up calls of each are not counted.
    """
    repeat = {}
    for name, call in contenders.items():
        call()
        start = perf_counter()
        call()
        repeat[name] = max(1, math.ceil(floor / max(perf_counter() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(seed).shuffle
    end = perf_counter() + seconds
    while len(times[order[0]]) < rounds[0] or (perf_counter() < end and len(times[order[0]]) < rounds[1]):
        shuffle(order)
        for name in order:
            call, n = contenders[name], repeat[name]
            start = perf_counter()
            for _ in range(n):
                call()
            times[name].append((perf_counter() - start) / n)
    return {name: Sample(tuple(values)) for name, values in times.items()}


def measure(
    case: Case,
    contenders: Mapping[str, Callable[..., Any]] | Sequence[Contender],
    *,
    dtype: torch.dtype = torch.float32,
    mode: str = "fwd",
    cache: Sequence[str] = CACHES,
    seconds: float = 1.0,
    rounds: tuple[int, int] = (7, 200),
    seed: int = 0,
    timer: CpuTimer | CudaTimer | None = None,
    guard: Guard | None = None,
    limits: Limits = LIMITS,
    shared: bool = False,
) -> list[Row]:
    """Races the contenders on one case: a row for each of them and each state of the caches.

    contenders: functions by name, or Contenders (which also have a layout). They are called with the case's arguments and judged
    against its plain torch function in float64. mode: "fwd", "fwd+bwd" or "bwd". seconds: about this long per state of the
    caches; rounds: calls of each contender, at least and at most. timer: CpuTimer() by default, CudaTimer() for a GPU.
    shared: others use the machine too: calls in which this thread was interrupted do not count, unless most were.

    Raises ValueError for unknown options, and for a dtype or a mode that the case does not have. What a contender does wrong, it
    gets as the status of its rows.
    """
    if isinstance(contenders, Mapping):
        contenders = [Contender(name, function) for name, function in contenders.items()]
    names = [c.name for c in contenders]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"contenders need different names, got {', '.join(names) or 'none'}")
    if unknown := [c for c in cache if c not in CACHES]:
        raise ValueError(f"cache {unknown[0]!r} is none of {', '.join(CACHES)}")
    if dtype not in case.dtypes:
        raise ValueError(f"{case.id} is not defined for {dtype}")
    race = _Race(case, contenders, dtype, mode, seed, timer or CpuTimer(), guard, shared)
    race.audit()
    for state in cache:
        race.run(state, seconds, rounds)
    return [race.row(runner, state, limits) for state in cache for runner in race.runners]


_PRECISIONS: dict[str, Any] = {  # older versions of torch have no such switches
    "oneDNN's convolutions": getattr(torch.backends.mkldnn, "conv", None),
    "oneDNN's products": getattr(torch.backends.mkldnn, "matmul", None),
    "cuDNN's convolutions": getattr(torch.backends.cudnn, "conv", None),
    "CUDA's products": torch.backends.cuda.matmul,
}


def _settings() -> dict[str, Any]:
    """What a call must leave as it was."""
    return {
        "number of threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
        **{f"fp32 precision of {where}": getattr(part, "fp32_precision", "") for where, part in _PRECISIONS.items()},
    }


def _restore(settings: dict[str, Any]) -> None:
    torch.set_num_threads(settings["number of threads"])
    torch.set_default_dtype(settings["default dtype"])
    torch.set_grad_enabled(settings["gradient mode"])
    torch.set_float32_matmul_precision(settings["float32 matmul precision"])
    torch.use_deterministic_algorithms(settings["deterministic mode"])
    for where, part in _PRECISIONS.items():
        if settings[f"fp32 precision of {where}"]:
            part.fp32_precision = settings[f"fp32 precision of {where}"]


def poison(result: Any, spare: set[int]) -> None:
    """Fills the memory of the result with NaN (integers: their least value), except storages in ``spare``."""
    for t in tensors(result):
        storage = t.untyped_storage() if t.layout == torch.strided else None
        if storage is None or storage.data_ptr() in spare or t.dtype == torch.bool:
            continue
        with torch.no_grad():
            whole = torch.empty(0, dtype=t.dtype, device=t.device).set_(storage, 0, (storage.nbytes() // t.element_size(),))
            whole.fill_(torch.nan if t.is_floating_point() or t.is_complex() else torch.iinfo(t.dtype).min)


def _addresses(arguments: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors(arguments)}


def _within(result: Any, addresses: set[int]) -> bool:
    """True if a part of the result lies in one of these storages."""
    return any(t.layout == torch.strided and t.untyped_storage().data_ptr() in addresses for t in tensors(result))


class _Buffer:
    """One set of arguments of one contender, and the pass bound to it."""

    def __init__(self, runner: _Runner, values: Values) -> None:
        self.arguments = values.new(runner.contender.layout)
        self.addresses = _addresses(self.arguments)
        self.bound = runner.work.on(self.arguments)


@dataclass
class _Runner:
    """One contender in a race."""

    contender: Contender
    work: Pass
    times: dict[str, list[float]] = field(default_factory=dict)
    switched: dict[str, int] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    skipped: int = 0  # interrupted calls that do not count
    checked: int = 0
    error: float | None = None
    mean_error: float | None = None
    repeatable: bool | None = None
    workspace: int | None = None
    peak: int | None = None
    kernel: str = ""
    status: str = ""
    reason: str = ""
    typical: float = 0.0  # seconds of a call, about

    @property
    def running(self) -> bool:
        return not self.status

    def stop(self, status: str, reason: str) -> None:
        if not self.status:
            self.status, self.reason = status, reason


class _Race:
    """The contenders on one case, dtype and mode."""

    def __init__(
        self,
        case: Case,
        contenders: Sequence[Contender],
        dtype: torch.dtype,
        mode: str,
        seed: int,
        timer: CpuTimer | CudaTimer,
        guard: Guard | None,
        shared: bool,
    ) -> None:
        self.case, self.dtype, self.mode, self.timer = case, dtype, mode, timer
        self.shared = shared
        self.guard = guard or Guard(gpu=timer.device != "cpu")
        self.number = random.Random(f"{seed} {case.id} {dtype} {mode}")
        self.values = Values(case, dtype, seed, timer.device)
        self.runners = [_Runner(c, Pass(case, c.function, mode)) for c in contenders]
        layouts = tuple(dict.fromkeys(c.layout for c in contenders))
        self.judge = Judge(case, self.values, mode, layouts)
        self.cost: Cost = cost(case, dtype, mode)
        self.noise: dict[str, Any] = {}
        self.at_rest = True
        self.left: dict[str, bool] = {}  # by state: a contender, who knows which, has left something running
        self.own: tuple[float, float] = (math.nan, math.nan)

    def running(self) -> list[_Runner]:
        return [r for r in self.runners if r.running]

    @contextlib.contextmanager
    def _watch(self, runner: _Runner) -> Iterator[None]:
        """Around all calls of a contender: what it raises and what it changes in torch's settings ends its part in the race."""
        before = _settings()
        try:
            with runner.contender.around():
                yield
        except (Exception, SystemExit) as error:  # whatever a contender raises is its own failure, in one line
            runner.stop(FAILED, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        after = _settings()
        changed = [name for name in before if after[name] != before[name]]
        if changed:
            runner.stop(WRONG, f"changed torch's {changed[0]} from {before[changed[0]]} to {after[changed[0]]}")
            _restore(before)

    def audit(self) -> None:
        """Before the race, untimed: is it right, does it repeat bit for bit, which kernel runs, what memory does it take."""
        key = self.values.key(self.number)
        self.at_rest = not busy()  # else whoever calls is himself at work, or OMP_WAIT_POLICY=active
        for runner in self.runners:
            with self._watch(runner):
                buffers = [_Buffer(runner, self.values) for _ in range(2)]
                self.values.fill(buffers[0].arguments, self.values.key(self.number))
                poison(runner.work.start(buffers[0].arguments), buffers[0].addresses)
                copies: list[list[Tensor]] = []
                for buffer in buffers:
                    self.values.fill(buffer.arguments, key)
                    call = buffer.bound()
                    seconds, result = self.timer.time(call)
                    runner.typical = seconds
                    if late := plain_tensors(result):
                        runner.stop(WRONG, late)
                        break
                    copies.append([t.detach().clone() for t in tensors(result)])
                    state = [t.clone() for t in tensors(buffer.arguments)]
                    poison(result, buffer.addresses)
                if runner.running:
                    self._judge(runner, key, copies[0], state)
                    runner.repeatable = all(same_bits(a, b) for a, b in zip(*copies, strict=True))
                    self.values.fill(buffers[1].arguments, key)
                    runner.kernel = kernels_of(buffers[1].bound())
                    if self.mode != "bwd":  # its memory was taken by a forward pass that is not timed
                        self.values.fill(buffers[1].arguments, key)
                        runner.peak, runner.workspace = peak(buffers[1].bound(), self.timer.device)
            if self.at_rest and busy():
                runner.stop(WRONG, "left something running that keeps a CPU busy after it has returned")
                self.at_rest = False
        self.own = self.judge.own_error(key)

    def _judge(self, runner: _Runner, key: int, outputs: list[Tensor], state: list[Tensor]) -> None:
        fresh = None
        if self.case.choice is not None:
            fresh = self.values.new(runner.contender.layout)
            self.values.fill(fresh, key)
        verdict: Verdict = self.judge.verdict(runner.contender, key, outputs, state, fresh)
        runner.checked += 1
        runner.error = max(runner.error or 0.0, verdict.error)
        runner.mean_error = max(runner.mean_error or 0.0, verdict.mean_error)
        if verdict.reason:
            runner.stop(WRONG, verdict.reason)

    def run(self, state: str, seconds: float, rounds: tuple[int, int]) -> None:
        """The race itself, with the caches in one state."""
        for runner in self.runners:
            runner.times[state], runner.switched[state], runner.cpu[state] = [], 0, 0.0
            runner.skipped = 0
        one_round = _Hot(self) if state == "hot" else _Cold(self)
        secret = {0, self.number.randrange(1, max(2, rounds[0]))}
        self.guard.start()
        start, checking, count = perf_counter(), 0.0, 0
        gc.collect()
        gc.disable()
        try:
            while running := self.running():
                done = min(len(r.times[state]) for r in running)
                elapsed = perf_counter() - start
                if done >= rounds[1] or (done >= rounds[0] and elapsed > seconds):
                    break
                check = count in secret or (checking < CHECKING * elapsed and self.number.random() < 0.1)
                begin = perf_counter()
                one_round(state, check)
                if check:
                    checking += perf_counter() - begin
                count += 1
        finally:
            gc.enable()
        self.noise[state] = self.guard.noise()
        self.left[state] = self.at_rest and busy()

    def timed(self, runner: _Runner, buffer: _Buffer, state: str, key: int | None) -> Any:
        """One timed call on filled arguments. With a key it is to be verified, later: returns what ``settle`` needs."""
        pending = None
        with self._watch(runner):
            call = buffer.bound()
            self.guard.before()
            seconds, result = self.timer.time(call)
            switched, cpu = self.guard.after()
            if key is not None:  # at once: who is still writing is caught with the pen in hand
                # A few elements first: a copy of everything takes time.
                probes = [_few(t) for t in tensors(result)]
                copies = [t.detach().clone() for t in tensors(result)]
                state_now = [t.clone() for t in tensors(buffer.arguments)]
                pending = (key, result, probes, copies, state_now, buffer)
            runner.typical = seconds
            stopped = interrupted(switched, seconds)
            if self.shared and stopped and runner.skipped < PATIENCE * (len(runner.times[state]) + 1):
                runner.skipped += 1
            else:
                runner.times[state].append(seconds)
                runner.switched[state] += stopped
                runner.cpu[state] += cpu
            if late := plain_tensors(result) or self.timer.late(seconds):
                runner.stop(WRONG, late)
            elif key is None:
                poison(result, buffer.addresses)
        return pending

    def settle(self, runner: _Runner, pending: Any) -> None:
        """Verifies a timed call after all others of its round."""
        if pending is None or not runner.running:
            return
        key, result, probes, copies, state, buffer = pending
        with self._watch(runner):
            now = tensors(result)
            if not all(same_bits(_few(t), p) and same_bits(t.detach(), c) for t, p, c in zip(now, probes, copies, strict=True)):
                runner.stop(WRONG, "was still writing its results after it had returned")
                return
            if not _within(result, buffer.addresses):  # the caller's to keep: a later call has no business in it
                self.values.fill(buffer.arguments, self.values.key(self.number))
                later = buffer.bound()()
                if not all(same_bits(t.detach(), c) for t, c in zip(now, copies, strict=True)):
                    runner.stop(WRONG, "wrote its results into memory that it had returned before")
                    return
                poison(later, buffer.addresses)
            self._judge(runner, key, copies, state)
            poison(result, buffer.addresses)

    def row(self, runner: _Runner, state: str, limits: Limits) -> Row:
        times = tuple(runner.times.get(state, ()))
        noise = self.noise[state]
        row = Row(
            case=self.case.id,
            op=self.case.op,
            dtype=DTYPE_NAMES[self.dtype],
            mode=self.mode,
            layout=runner.contender.layout,
            contender=runner.contender.name,
            who=runner.contender.who,
            cache=state,
            threads=torch.get_num_threads(),
            device=self.timer.device,
            times=times if runner.status not in (WRONG, FAILED) else (),
            flops=self.cost.flops,
            bytes=self.cost.bytes,
            error=runner.error,
            mean_error=runner.mean_error,
            peer_error=self.own[0],
            peer_mean_error=self.own[1],
            workspace=runner.workspace,
            peak=runner.peak,
            repeatable=runner.repeatable,
            checked=runner.checked,
            kernel=runner.kernel,
            noise=noise.as_dict(),
        )
        if not row.timed:
            row.status, row.reason = runner.status, runner.reason
            return row
        row.noise["switched"] = runner.switched[state] / len(times)
        impossible = self._impossible(row, state)
        row.roof = self.cost.attainable(state) if row.device == "cpu" else 0.0
        if impossible:
            row.status, row.reason = IMPOSSIBLE, impossible
        elif self.left[state]:
            row.status, row.reason = UNRELIABLE, "a contender left something running that keeps a CPU busy while others are timed"
        elif reason := unreliable(noise, times, runner.switched[state], limits) or self._crowded(times, runner.cpu[state]):
            row.status, row.reason = UNRELIABLE, reason
        return row

    def _crowded(self, times: Sequence[float], cpu: float) -> str:
        return crowded(sum(times), cpu) if self.timer.device == "cpu" else ""

    def _impossible(self, row: Row, state: str) -> str:
        """Why nobody can have been this fast; "" if it is possible."""
        if row.median <= self.timer.nothing:
            return f"took no longer than a call of nothing ({self.timer.nothing * 1e9:.0f} ns)"
        if row.device != "cpu" or row.median >= self.cost.possible(state):
            return ""
        roofs.look_again()
        if row.median >= (least := self.cost.possible(state)):
            return ""
        return f"{row.median * 1e6:.3g} us; no known algorithm needs less than {least * 1e6:.3g} us on this machine"


def _few(t: Tensor) -> Tensor:
    """64 elements, spread over the tensor."""
    flat = t.detach()
    for _ in range(max(0, t.dim() - 1)):
        flat = flat[-1] if flat.shape[0] else flat.flatten()
    return flat[-64:].clone() if flat.dim() else flat.clone()


def kernels_of(call: Callable[[], Any]) -> str:
    """The variants of fastcv's ops that the call takes."""
    if not _ext.is_built():
        return ""
    module = _ext.module()
    module.take_recorded_choices()
    module.record_choices(True)
    try:
        call()
    finally:
        module.record_choices(False)
    return ", ".join(dict.fromkeys(variant for _, variant, reason in module.take_recorded_choices() if reason == ""))


class _Hot:
    """Rounds in which every contender has just run and its arguments were just written."""

    def __init__(self, race: _Race) -> None:
        self._race = race
        self._buffers = {id(r): _Buffer(r, race.values) for r in race.running()}

    def __call__(self, state: str, check: bool) -> None:
        race = self._race
        key = race.values.key(race.number)
        pending = []
        for runner in race.number.sample(race.running(), len(race.running())):
            buffer = self._buffers[id(runner)]
            if runner.typical < LONG:
                race.values.fill(buffer.arguments, race.values.key(race.number))
                with race._watch(runner):
                    poison(buffer.bound()(), buffer.addresses)
            if runner.running:
                race.values.fill(buffer.arguments, key if check else race.values.key(race.number))
                pending.append((runner, race.timed(runner, buffer, state, key if check else None)))
        for runner, what in pending:
            race.settle(runner, what)


class _Cold:
    """Passes through more arguments than the caches hold, all written before the first call; every call has its own."""

    def __init__(self, race: _Race) -> None:
        self._race = race
        runners = race.running()
        wanted = math.ceil(MULTIPLE * race.timer.cache / max(1, race.values.bytes()))
        self._each = max(1, min(BUFFERS, wanted) // max(1, len(runners)))
        self._buffers = {id(r): [_Buffer(r, race.values) for _ in range(self._each)] for r in runners}
        self._spare = {id(r): _Buffer(r, race.values) for r in runners}
        for spare in self._spare.values():
            race.values.fill(spare.arguments, race.values.key(race.number))

    def __call__(self, state: str, check: bool) -> None:
        race = self._race
        runners = race.running()
        key = race.values.key(race.number)
        secret = race.number.randrange(self._each) if check else -1
        for runner in runners:
            for slot, buffer in enumerate(self._buffers[id(runner)]):
                race.values.fill(buffer.arguments, key if slot == secret else race.values.key(race.number))
        race.timer.flush()
        for runner in runners:
            spare = self._spare[id(runner)]
            if runner.typical < LONG:
                with race._watch(runner):
                    poison(spare.bound()(), spare.addresses)
        turns = [(runner, slot) for runner in runners for slot in range(self._each)]
        race.number.shuffle(turns)
        pending = []
        for runner, slot in turns:
            if runner.running:
                buffer = self._buffers[id(runner)][slot]
                pending.append((runner, race.timed(runner, buffer, state, key if slot == secret else None)))
        for runner, what in pending:
            race.settle(runner, what)
