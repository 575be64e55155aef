"""Whole models by name, and the list of their races: from names, sizes, dtypes and threads to rows in a file of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from . import plan
from .engines import Exported
from .model_race import PEERS, ROUNDS, Job, contender_names, race
from .model_tables import images_per_second
from .rows import Row
from .store import Results

__all__ = ["PEERS", "PRECISIONS", "ROUNDS", "Job", "build", "images_per_second", "known", "plan_jobs", "race", "run_jobs", "shape_of"]

PRECISIONS = ("highest", "high", "medium")


def known() -> list[str]:
    """The names that ``build`` takes besides package.module:function."""
    from .. import models
    from ..testing.zoo import ZOO

    return list(dict.fromkeys([*models.list_models(), *(entry.name for entry in ZOO)]))


def shape_of(name: str, size: Sequence[int] = (), batch: int = 0) -> tuple[int, ...]:
    """N, C, H, W: the given size, or one image as the model was published for; ``batch`` replaces N."""
    from .. import models
    from ..testing.zoo import ZOO

    if not size:
        sides = {entry.name: (3, entry.size[1], entry.size[1]) for entry in ZOO}
        own = models.model_info(name).input_size if name in models.list_models() else sides.get(name, (3, 224, 224))
        size = (1, *own)
    return (batch or size[0], *size[1:])


def build(name: str, shape: Sequence[int] = ()) -> nn.Module:
    """A model by name, of torch.nn's layers, in evaluation mode: of fastcv.models, fitted to images of ``shape``; of the zoo of
    transformers' vision models (benchmarks/zoo.py); or package.module:function. The first two have random weights, the same each time.

    Raises ValueError, which names what there is.
    """
    from .. import models
    from ..cli import build_model
    from ..testing.zoo import ZOO, settle

    if ":" in name:
        return build_model(name).eval()
    if name in models.list_models():
        config = models.model_info(name).config_for(*shape[1:]) if len(shape) == 4 else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = models.get_model(name, layers=nn, **config)
            settle(network)
            for parameter in network.parameters():
                if not parameter.any():  # a head of zeros would hide what stands before it
                    nn.init.normal_(parameter, std=0.01)
        return network.eval()
    entries = {entry.name: entry for entry in ZOO}
    if name in entries:
        try:
            return entries[name].build(False)
        except ImportError:
            raise ValueError(f"the model {name} needs transformers: pip install transformers") from None
    raise ValueError(f"no model {name!r}: give package.module:function, or one of {', '.join(known())}")


def plan_jobs(
    names: Sequence[str],
    size: Sequence[int] = (),
    batches: Sequence[int] = (),
    dtypes: Sequence[str] = ("f32",),
    train: bool = False,
    threads: Sequence[int] = (),
) -> list[Job]:
    """The races of every model with every batch, dtype and number of threads; a model's own races stand together."""
    return [
        Job(name, shape_of(name, size, batch), dtype, train, count)
        for name, batch, dtype, count in product(names, batches or (0,), dtypes, threads or (torch.get_num_threads(),))
    ]


def run_jobs(
    jobs: Sequence[Job],
    vs: Sequence[str],
    seconds: float,
    rounds: tuple[int, int],
    results: Results,
    done: Callable[[Job, list[Row]], None],
    failed: Callable[[Job, str], None],
    started: Callable[[Job], None] = lambda job: None,
    seed: int = 0,
) -> None:
    """Races the jobs that ``results`` does not hold yet; every row is kept before the next race begins. A model that does not run
    is told to ``failed`` and the others go on.
    """
    built: tuple[tuple[str, tuple[int, ...]], nn.Module, Tensor, Exported] | None = None
    try:
        for job in jobs:
            kept = [
                r
                for r in results.rows
                if (r.case, r.dtype, r.mode, r.threads, r.device) == (job.case, job.dtype, job.mode, job.threads, "cpu")
            ]
            if kept and set(contender_names(job, vs)) <= {r.contender for r in kept}:
                done(job, kept)
                continue
            started(job)
            try:
                if built is None or built[0] != (job.name, job.shape):
                    if built is not None:
                        built[3].close()
                    model = build(job.name, job.shape)
                    x = torch.randn(job.shape, generator=torch.Generator().manual_seed(seed))
                    built = (job.name, job.shape), model, x, Exported(model, x)
                _, model, x, exported = built
                with plan.threads(job.threads):
                    rows = race(job.name, model, x, job.train, vs, seconds, rounds, job.dtype, seed, exported)
            except ValueError as error:
                failed(job, str(error))
                continue
            for row in rows:
                results.add(row)
            done(job, rows)
    finally:
        if built is not None:
            built[3].close()
