"""Convolution on Hopper's tensor cores: every tile and cluster on the emulator, with statistics, and the plan that picks among them."""

from __future__ import annotations

import re

import pytest
from programs import ROOT, lines_of

TILES = ["128x128x1", "256x64x1", "256x128x1", "128x256x1", "128x128x2", "256x64x2", "256x128x2", "128x256x2"]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """'<tile> <layer> <seed>', 'statistics <tile> <layer>' -> what the emulator said; 'plan <pixels> <outputs> <steps>' -> the tile."""
    lines = lines_of(tmp_path_factory.mktemp("conv_sm90"), "tests/emulator/conv_sm90.cpp", emulator=True)
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize("tile", [*TILES, "pingpong"])
def test_every_tile_makes_the_same_sums(said: dict[str, str], tile: str) -> None:
    ran = {call: words for call, words in said.items() if call.startswith(f"{tile} ")}
    assert len(ran) == 4 and set(ran.values()) == {"ok"}, ran


@pytest.mark.parametrize("tile", [*TILES, "pingpong"])
def test_every_tile_takes_the_same_statistics(said: dict[str, str], tile: str) -> None:
    ran = {call: words for call, words in said.items() if call.startswith(f"statistics {tile} ")}
    assert len(ran) == 2 and set(ran.values()) == {"ok"}, ran


def plan(said: dict[str, str], pixels: int, outputs: int, steps: int) -> tuple[int, int, int]:
    m, n, cluster = map(int, said[f"plan {pixels} {outputs} {steps}"].split("x"))
    return m, n, cluster


def test_the_plan_takes_tiles_that_exist(said: dict[str, str]) -> None:
    plans = {call: tile for call, tile in said.items() if call.startswith("plan ")}
    assert len(plans) == 8 * 6 * 6 and set(plans.values()) <= set(TILES)


def test_the_plan_wastes_no_columns_on_few_output_channels(said: dict[str, str]) -> None:
    for pixels in (200704, 802816, 3211264):  # enough to fill a GPU in any tile
        for steps in (4, 9, 36, 72, 288):
            for outputs in (8, 64):
                assert plan(said, pixels, outputs, steps)[1] == 64
            assert plan(said, pixels, 128, steps)[1] <= 128


def test_the_plan_shares_weights_where_the_sum_is_long_and_tiles_are_many(said: dict[str, str]) -> None:
    """The second-level cache bounds 128 x 256 without multicast, and less with it: docs/cuda.md."""
    for outputs in (256, 512, 2048):
        assert plan(said, 200704, outputs, 36) == (128, 256, 2)


def test_the_plan_cuts_small_layers_into_small_tiles(said: dict[str, str]) -> None:
    """ResNet-50's 7x7 layers at batch 64: tiles of 32768 outputs would leave half of the multiprocessors idle."""
    for pixels, outputs in ((49, 512), (3136, 512)):
        m, n, _ = plan(said, pixels, outputs, 72)
        assert m * n <= 128 * 128


def test_the_plan_knows_the_tiles_of_the_kernel() -> None:
    header = (ROOT / "csrc/conv/conv_sm90.h").read_text()
    listed = re.search(r"kSm90Tiles\[\] = \{(.*?)\};", header, re.S).group(1)
    assert sorted("x".join(t) for t in re.findall(r"\{(\d+), (\d+), (\d+)\}", listed)) == sorted(TILES)
