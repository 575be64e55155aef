"""Every way to cheat in a race is caught: remembered, missing, rounded, late, changed; and honest contenders go on."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_common import CASE, CONV, Clock, known_roofs, only, race  # noqa: F401 - known_roofs is for every test

import fastcv
from fastcv.bench import Case, roofs
from fastcv.testing.cases.networks import case_of


def caught(function: Any, text: str, case: Case = CASE, **options: Any) -> None:
    rows = race({"honest": case.torch_function(), "cheat": function}, case, **options)
    for cache in ("hot", "cold"):
        row = rows["cheat", cache]
        assert row.status == "WRONG" and not row.timed, (cache, row.status, row.reason)
        assert text in row.reason, row.reason
        assert rows["honest", cache].status == "OK"  # the others go on


def remember(key: Any) -> Any:
    kept: dict[Any, Any] = {}

    def cheat(x: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        k = key(x)
        if k not in kept:
            kept[k] = F.softmax(x, *rest, **options)
        return kept[k]

    return cheat


@pytest.mark.parametrize("key", [lambda x: x.shape, lambda x: x.data_ptr(), lambda x: id(x), lambda x: x[0, 0].item() > 0])
@pytest.mark.parametrize("copied", [False, True])
def test_remembered_outputs_are_caught(key: Any, copied: bool) -> None:
    """By shape, by address, by object, by a glance at the content; whether it hands out its own memory or a copy."""
    cheat = remember(key)
    caught((lambda *a, **k: cheat(*a, **k).clone()) if copied else cheat, "off float64")


@pytest.mark.parametrize("cache", ["hot", "cold"])
@pytest.mark.parametrize("cheat", ["remembers", "nothing", "changes", "rounds"])
def test_cheating_in_the_race_alone_is_caught(cheat: str, cache: str) -> None:
    """Honest while it is audited, and from then on not."""
    calls, kept = [0], []

    def function(x: torch.Tensor, dim: int) -> torch.Tensor:
        calls[0] += 1
        if calls[0] <= 5:
            kept[:] = [F.softmax(x, dim).clone()]
            return F.softmax(x, dim)
        if cheat == "remembers":
            return kept[0].clone()
        if cheat == "nothing":
            return torch.empty_like(x)
        if cheat == "rounds":
            return F.softmax(x.bfloat16(), dim).float()
        y = F.softmax(x, dim)
        x.mul_(1.001)
        return y

    assert race({"it": function}, cache=(cache,))["it", cache].status == "WRONG" and calls[0] > 5


def test_doing_nothing_is_caught() -> None:
    caught(lambda x, dim: torch.empty_like(x), "off float64")
    caught(lambda x, dim: x, "off float64")
    caught(lambda x, dim: None, "without a tensor")
    caught(lambda x, dim: torch.zeros_like(x), "off float64")


def test_reused_memory_that_holds_the_last_answer_is_poisoned() -> None:
    """What the allocator hands out again holds NaN, not the honest contender's result."""
    row = only(lambda x, dim: torch.empty_like(x), rounds=(8, 8))
    assert row.status == "WRONG" and row.error > 0.1


def test_changed_arguments_are_caught() -> None:
    caught(lambda x, dim: F.softmax(x, dim) + 0 * x.zero_(), "changed argument 0")
    caught(lambda x, w, *rest, **k: (F.conv2d(x, w, *rest, **k), w.mul_(1.0001))[0], "changed argument 1", CONV)


def test_wrong_results_are_caught() -> None:
    caught(lambda x, dim: F.softmax(x, dim) * 1.001, "off float64")
    caught(lambda x, dim: F.softmax(x.bfloat16(), dim).float(), "off float64")
    caught(lambda x, dim: F.softmax(x, dim)[:-1], "has shape")
    caught(lambda x, dim: (F.softmax(x, dim), x), "returned 2 tensors")

    def last_column(x: torch.Tensor, dim: int) -> torch.Tensor:
        y = F.softmax(x, dim)
        y[-1, -1] = 0.0
        return y

    caught(last_column, "off float64")
    labels = case_of({"op": "max_pool2d", "name": "i", "input": [1, 2, 8, 8], "kernel": 2})
    labels = replace(labels, peer=lambda x, *a: F.max_pool2d(x, *a, return_indices=True), grad=())
    caught(lambda x, *a: (F.max_pool2d(x, *a), F.max_pool2d(x, *a, return_indices=True)[1] + 1), "differs from the reference", labels)


def test_wrong_gradients_are_caught() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
            return F.softmax(x, dim)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
            return g, None

    assert only(Wrong.apply).status == "OK"
    caught(Wrong.apply, "the gradient of argument 0", mode="fwd+bwd")


def test_gradients_made_in_the_forward_pass_are_caught() -> None:
    """Where only the backward pass is timed, the forward pass could do its work, if it knew the gradient that will come."""
    came: list[torch.Tensor] = []

    class Early(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, dim: int) -> torch.Tensor:
            y = F.softmax(x, dim)
            ctx.save_for_backward(y)
            ctx.made = y * (came[0] - (came[0] * y).sum(dim, True)) if came else None
            return y

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
            (y,) = ctx.saved_tensors
            came[:] = came or [g.clone()]
            return ctx.made if ctx.made is not None else y * (g - (g * y).sum(1, True)), None

    caught(Early.apply, "the gradient of argument 0", mode="bwd")


def test_preparing_oneself_is_no_way_to_win() -> None:
    class Ready:
        def prepare(self, x: torch.Tensor, dim: int) -> Any:
            y = F.softmax(x, dim)
            return lambda: y

        def __call__(self, x: torch.Tensor, dim: int) -> torch.Tensor:
            raise RuntimeError("asked after all")

    row = only(Ready())
    assert row.status == "FAILED" and row.reason == "RuntimeError: asked after all"


def test_neighbours_that_are_not_the_nearest_are_caught() -> None:
    case = case_of({"op": "knn", "name": "n", "x": [20, 5], "y": [40, 5], "k": 3})
    far = lambda x, y, k, p=2.0: torch.cdist(x, y, p).topk(k, largest=True)  # noqa: E731
    assert only(fastcv.functional.knn, case).status == "OK"
    assert only(far, case).status == "WRONG"
    assert only(lambda x, y, k, p=2.0: (torch.cdist(x, y, p).topk(k, largest=False)[0], torch.full((20, 3), 99)), case).status == "WRONG"


@pytest.mark.parametrize("after", [0.0, 0.002])
def test_work_left_to_another_thread_is_caught(after: float) -> None:
    """It returns memory at once and lets a thread fill it: the copy taken when the clock stopped knows."""
    audits = [0]

    def late(x: torch.Tensor, dim: int) -> torch.Tensor:
        audits[0] += 1
        if audits[0] <= 5:
            return F.softmax(x, dim)
        y = torch.empty_like(x)

        def fill() -> None:
            time.sleep(after + 0.001)
            y.copy_(F.softmax(x, dim))

        threading.Thread(target=fill).start()
        return y

    row = only(late)
    time.sleep(0.02)
    assert row.status == "WRONG"


def test_tensors_that_compute_when_they_are_looked_at_are_caught() -> None:
    class Lazy(torch.Tensor):
        pass

    caught(lambda x, dim: F.softmax(x, dim).as_subclass(Lazy), "may still have to be computed")
    caught(lambda x, dim: torch._neg_view(-F.softmax(x, dim)), "still to be negated")


def test_changed_settings_are_caught_and_restored() -> None:
    threads = torch.get_num_threads()

    def greedy(x: torch.Tensor, dim: int) -> torch.Tensor:
        torch.set_num_threads(threads + 3)
        return F.softmax(x, dim)

    caught(greedy, "number of threads")
    assert torch.get_num_threads() == threads


def test_a_changed_precision_switch_is_caught_and_restored() -> None:
    switch = torch.backends.mkldnn.conv
    if not hasattr(switch, "fp32_precision"):
        pytest.skip("this torch has no such switch")
    before = switch.fp32_precision

    def fast(*args: Any, **options: Any) -> torch.Tensor:
        switch.fp32_precision = "bf16"
        return F.conv2d(*args, **options)

    caught(fast, "fp32 precision of oneDNN's convolutions", CONV)
    assert switch.fp32_precision == before


def test_results_in_memory_that_was_returned_before_are_caught() -> None:
    """Right when it is timed, and overwritten by the next call: nobody could use it."""
    mine: list[torch.Tensor] = []

    def reuse(x: torch.Tensor, dim: int) -> torch.Tensor:
        mine[:] = mine or [torch.empty_like(x)]
        torch.softmax(x, dim, out=mine[0])
        return mine[0].view_as(x)

    caught(reuse, "returned before")
    assert only(reuse).status == "WRONG"


def test_an_answer_that_is_an_argument_is_nobodys_reuse() -> None:
    view = Case("softmax", "view", lambda g: ((torch.randn(4, 6, generator=g),), {}), peer=lambda x: x.view(6, 4))
    assert only(lambda x: x.reshape(6, 4), view).status in ("OK", "IMPOSSIBLE")


def test_earlier_answers_cannot_be_mended() -> None:
    """Linear functions could be brought up to date for the few elements that differ from arguments seen before, if few did."""
    kept: list[Any] = []
    mended = [0]

    def incremental(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        for x0, w0, b0, y0 in kept:
            if int((x != x0).sum()) <= 40 and int((w != w0).sum()) <= 40:
                mended[0] += 1
                changed = [F.conv2d(*pair, None, *rest, **options) for pair in ((x - x0, w), (x0, w - w0))]
                return y0 + sum(changed) + (b - b0).view(1, -1, 1, 1)
        kept.append((x.clone(), w.clone(), b.clone(), F.conv2d(x, w, b, *rest, **options)))
        return kept[-1][3].clone()

    conv = case_of({"op": "conv2d", "name": "c", "input": [1, 16, 14, 14], "out_channels": 16, "kernel": 3, "padding": 1})
    row = only(incremental, conv, rounds=(20, 20))
    assert row.status == "OK", row.reason
    assert mended[0] <= len(kept) / 4, (mended, len(kept))


def test_clocks_that_a_contender_replaces_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", time.perf_counter)  # put back after the test

    def stops(x: torch.Tensor, dim: int) -> torch.Tensor:
        time.perf_counter = lambda: 0.0  # type: ignore[assignment]
        return F.softmax(x, dim)

    big = case_of({"op": "softmax", "name": "big", "input": [256, 512]})
    row = only(stops, big)
    assert row.status == "OK" and row.median > 1e-6
    assert roofs._best(lambda: None, 0.01) < 1.0  # ends


def test_faster_than_the_machine_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    big = case_of({"op": "softmax", "name": "big", "input": [256, 512]})
    clock = Clock()
    rows = race({"fast": clock.taking(F.softmax, 1e-7), "slow": clock.taking(F.softmax, 1e-3)}, big, clock)
    assert {k[0]: r.status for k, r in rows.items()} == {"fast": "IMPOSSIBLE", "slow": "OK"}
    assert "no known algorithm" in rows["fast", "hot"].reason
    assert only(clock.taking(F.softmax, 0.0), clock=clock).status == "IMPOSSIBLE"  # 0.000
    conv = case_of({"op": "conv2d", "name": "c", "input": [1, 64, 28, 28], "out_channels": 64, "kernel": 3, "padding": 1})
    seconds = conv.flops / 1e12
    for factor, status in ((3.0, "OK"), (4.0, "OK"), (9.0, "IMPOSSIBLE")):  # Winograd may, nobody may
        assert only(clock.taking(F.conv2d, seconds / factor), conv, clock=clock).status == status


def test_who_raises_loses_only_his_rows() -> None:
    def broken(x: torch.Tensor, dim: int) -> torch.Tensor:
        raise RuntimeError("no kernel\nfor you")

    later = [0]

    def breaks_later(x: torch.Tensor, dim: int) -> torch.Tensor:
        later[0] += 1
        if later[0] > 9:
            raise MemoryError("full")
        return F.softmax(x, dim)

    def leaves(x: torch.Tensor, dim: int) -> torch.Tensor:
        raise SystemExit(3)

    rows = race({"broken": broken, "later": breaks_later, "fine": F.softmax, "leaves": leaves})
    assert rows["leaves", "hot"].status == "FAILED" and rows["leaves", "hot"].reason == "SystemExit: 3"
    assert rows["broken", "hot"].status == "FAILED" and rows["broken", "hot"].reason == "RuntimeError: no kernel"
    assert rows["later", "cold"].reason == "MemoryError: full"
    assert rows["fine", "hot"].status == rows["fine", "cold"].status == "OK"
