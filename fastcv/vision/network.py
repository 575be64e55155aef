"""Classes of a photograph's pixels by a network that ``fastcv train`` made: the masks of ``fastcv predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["network_segments"]


def network_segments(pixels: np.ndarray, checkpoint: Path, full_size: bool = False) -> tuple[np.ndarray, list[str], str]:
    """Classes (H, W) uint8 of RGB bytes (H, W, 3), the names of the classes, and the name of the model.

    The image is scaled to fit the size of the training images, the rest black, as ``fastcv train`` and ``fastcv predict`` do. With
    ``full_size`` the network sees it as it is: for networks trained on pieces of images. Memory then grows with the image.
    Raises CheckpointError, and ValueError for a network that labels whole images.
    """
    from PIL import Image

    from ..train.files import fitting
    from ..train.predict import Segmenter  # what stands between pixels and a network's input is told in one place
    from ..train.run import restored

    state, options, network, prepare = restored(checkpoint, {})
    facts: dict[str, Any] = state["data"]
    if facts["task"] != "segmentation":
        raise ValueError(f"--checkpoint {checkpoint} is of a network for {facts['task']}, --method unet needs one for segmentation")
    segmenter = Segmenter(facts, options, network, prepare, 1)
    height, width = pixels.shape[:2]
    seen, frame = pixels, (max(segmenter.height, height), max(segmenter.width, width))
    if not full_size:
        frame = (segmenter.height, segmenter.width)
        scaled = fitting((width, height), (segmenter.width, segmenter.height))
        seen = np.asarray(Image.fromarray(pixels).resize(scaled, Image.Resampling.BICUBIC))
    canvas = np.zeros((*frame, 3), np.uint8)
    canvas[: seen.shape[0], : seen.shape[1]] = seen
    found = segmenter.logits(segmenter.levels(canvas)).argmax(0)[: seen.shape[0], : seen.shape[1]].numpy().astype(np.uint8)
    if not full_size:
        found = np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.NEAREST))
    return found, list(facts["classes"]), str(options.model)
