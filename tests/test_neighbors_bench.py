"""The bench's bounds on distances: bytes are summed faster than floats, and the verdict IMPOSSIBLE knows it."""

import pytest
import torch

from fastcv.bench import roofs
from fastcv.bench.cost import cost
from fastcv.testing import cases_of


@pytest.fixture(autouse=True)
def known_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "arithmetic", lambda dtype: 1e9)
    monkeypatch.setattr(roofs, "copy", lambda size: 1e15)


@pytest.mark.parametrize(
    ("op", "name", "faster"),
    [
        ("cdist", "integers_l1", 6.0),
        ("knn", "integers_l1", 6.0),
        ("knn", "l1_integer_images_200x5000x3072_k10", 6.0),
        ("cdist", "u8_l1", 6.0),
        ("cdist", "p1_17x33x130", 1.5),  # no bytes
        ("nearest", "l2", 1.5),
    ],
)
def test_bytes_have_a_roof_of_their_own(op: str, name: str, faster: float) -> None:
    (case,) = (c for c in cases_of(op) if c.name == name)
    found, floats = cost(case, torch.float32), case.flops / 1e9
    assert found.possible("hot") == pytest.approx(floats / faster / 1.15)
    assert found.attainable("hot") == pytest.approx(floats / (faster if faster == 6 else 1))
