"""CUDA kernels on the CPU: the emulator finds planted bugs, and every CUDA kernel passes under it in several orders."""

import re
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch
from programs import lines_of

import fastcv
from fastcv import functional
from fastcv.testing.cases import CASES, Case
from fastcv.testing.compare import check_case

BUGS = {
    "rotate": "nobody wrote|a race",
    "rotate_twice": "a race",
    "rotate_in_warp": "nobody wrote|a race",
    "half_of_the_block": "threads wait for others that never come: 32 at __syncthreads",
    "two_barriers": "divergent barrier",
    "reads_unwritten": "nobody wrote",
    "beyond_the_end": "outside of the block's shared memory",
    "lane_stays_away": "threads wait for others that never come: 62 at __shfl_xor_sync",
    "copy_not_awaited": "nobody wrote|a race",
    "copy_lands_early": "a race",
    "named_barriers": "threads wait for others that never come: .* at a named barrier",
    "votes": "threads wait for others that never come: 62 at __ballot_sync",  # of which all and any are made
    "atomics": "wrong output",
    "advance": "wrong output",
    "leaves_an_output": "wrong output",
    "stays_in_flight": "with copies on their way",
    "across_blocks": "nobody wrote|a race|outside of",
    "too_many_threads": "cannot be launched",
    "full_not_awaited": "nobody wrote|a race",
    "empty_not_awaited": "a race|more arrivals at a barrier",
    "bytes_miscounted": r"threads wait for others that never come: .* at a barrier in shared memory",
    "product_not_awaited": "with matrix products on their way",
    "operand_overwritten": "a race",
    "cluster_peer_not_awaited": "a race|more arrivals at a barrier|nobody wrote",
    "cluster_left_early": "a block ended|a block that has ended",
    "cluster_begun_early": "no other barrier says|nobody initialised|nobody wrote|a race|outside of",
    "cluster_bytes_miscounted": r"threads wait for others that never come|a race|nobody wrote|more arrivals",
    "register_product_not_awaited": "with matrix products on their way",
    "registers_overwritten": "registers of a matrix product that were written before it was waited for",
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[str]]:
    """(kernel, 'right' or 'planted') -> what the emulator said, one entry per seed."""
    said = defaultdict(list)
    for line in lines_of(tmp_path_factory.mktemp("emulator"), "tests/emulator/planted.cpp", emulator=True):
        kernel, kind, words = re.fullmatch(r"(\w+) (right|planted) \d+: (.*)", line).groups()
        said[kernel, kind].append(words)
    return said


@pytest.mark.parametrize("kernel", BUGS)
def test_planted_bugs_are_found_whatever_the_order(planted: dict, kernel: str) -> None:
    assert planted[kernel, "right"] == ["ok"] * 8
    assert len(planted[kernel, "planted"]) == 8
    for words in planted[kernel, "planted"]:
        assert re.search(BUGS[kernel], words), words


INSTRUCTIONS = [
    "box_copy",
    "im2col_copy",
    "matrix_product",
    "matrix_store",
    "transposed_product",
    "tf32_product",
    "tf32_group_product",
    "byte_product",
    "transposed_group_product",
    "spread_group_product",
]


@pytest.mark.parametrize("kernel", INSTRUCTIONS)
def test_matrix_instructions_do_what_the_manual_says(planted: dict, kernel: str) -> None:
    assert planted[kernel, "right"] == ["ok"] * 8


EMULATED = fastcv.is_built() and fastcv.build_info()["emulator"]
emulated = pytest.mark.skipif(not EMULATED, reason="needs a build with FASTCV_EMULATOR=ON, which `make test` makes")
OPS = sorted({case.op for case in CASES})
ORDERS = {torch.float32: 2, torch.float64: 3, torch.bfloat16: 4, torch.float16: 5}  # each dtype runs in an order of its own
MOST_ELEMENTS = 20_000  # an emulated thread is a thousand times slower than a real one


def elements(case: Case) -> int:
    args, kwargs = case.arguments(torch.float32)
    return sum(t.numel() for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))


@pytest.fixture
def poisoned_outputs() -> Iterator[None]:
    """Fresh memory holds NaN, so that an output which no thread writes shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # the peers have ops that are not
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@emulated
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
@pytest.mark.parametrize("dtype", ORDERS, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_kernels_are_right_in_every_dtype_and_order(op: str, dtype: torch.dtype, poisoned_outputs: None) -> None:
    from fastcv import _C

    function, ran = getattr(functional, op), 0
    _C.seed_emulator(ORDERS[dtype])
    for i, case in enumerate(CASES):
        if case.op != op or case.bench or dtype not in case.dtypes or elements(case) > MOST_ELEMENTS:
            continue
        if op.startswith("conv") and i % len(ORDERS) != list(ORDERS).index(dtype):
            continue  # in one dtype each: test_conv_cuda.py has every geometry in all of them
        for layout in case.layouts:
            choices = fastcv.why_not(check_case, case, function, dtype, layout)
            for raw, name in dict.fromkeys((raw, name) for raw, name, reason in choices if reason.startswith("a CUDA kernel")):
                with fastcv.use(**{raw: name}):
                    check_case(case, function, dtype, layout)
                ran += 1
    if not ran:
        pytest.skip(f"no small case of {op} in this dtype runs a CUDA kernel")


@emulated
def test_an_order_changes_nothing() -> None:
    """Sums run in an order that is the kernel's own: the emulator's seed must not show in the bits."""
    from fastcv import _C

    x, results = torch.randn(5, 1000), []
    for seed in range(3):
        _C.seed_emulator(seed)
        with fastcv.use(softmax="block_sm80"):
            results.append(functional.softmax(x, -1))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.skipif(EMULATED, reason="needs a build without the emulator")
def test_without_emulator_a_forced_cuda_kernel_says_what_it_needs() -> None:
    with fastcv.use(softmax="block_sm80"), pytest.raises(ValueError, match="FASTCV_EMULATOR=ON"):
        functional.softmax(torch.ones(2, 3), -1)
