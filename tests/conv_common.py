"""What the tests of convolutions share."""

import torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def assert_within_bound(y: torch.Tensor, exact: torch.Tensor, magnitude: torch.Tensor, terms: int) -> None:
    """|y - exact| <= the bound on any order of summation, n eps sum |terms|, plus the rounding of the result."""
    eps = torch.finfo(torch.float64 if y.dtype == torch.float64 else torch.float32).eps
    allowed = (terms + 4) * eps * magnitude + torch.finfo(y.dtype).eps * exact.abs() + torch.finfo(y.dtype).tiny
    excess = (y.double() - exact).abs() - allowed
    assert excess.numel() == 0 or excess.max() <= 0, f"error beyond the bound by {excess.max():.3g}"
