"""What pixel distance cannot see: shift, tint and occlusion of the same L2 distance."""

import numpy as np
import torch
from common import BLUE, Lesson, digits, figure, main, photo, picture, rows, tidy

import fastcv.functional as F
from fastcv.neighbors import KNeighborsClassifier


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """L2 of two images by the kernel, one grey level of one channel counting 1."""
    return float(F.cdist(*(torch.from_numpy(t.reshape(1, -1).astype(np.float32)) for t in (a, b))))


def same_distance(image: np.ndarray, change, target: float) -> np.ndarray:
    """``change(image, amount)`` with the amount that puts it at the target distance."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(image, change(image, middle)) < target else (low, middle)
    return change(image, high)


def tinted(image: np.ndarray, amount: float) -> np.ndarray:
    return np.clip(image.astype(np.float32) + 200 * amount * np.array([1.0, -0.2, -1.0]), 0, 255).astype(np.uint8)


def covered(image: np.ndarray, amount: float) -> np.ndarray:
    height, width = (int(side * amount) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    result = image.copy()
    result[top : top + height, left : left + width] = 0
    return result


def lesson() -> Lesson:
    whole = photo()
    crop = whole[100:300, 150:350]
    shifted = whole[100:300, 154:354]
    target = distance(crop, shifted)
    versions = {
        "the image": crop,
        "moved by 4 pixels": shifted,
        "tinted": same_distance(crop, tinted, target),
        "covered": same_distance(crop, covered, target),
    }
    made, axes = figure(12.5, 3.4, ncols=5, width_ratios=(1, 1, 1, 1, 1.3))
    for cell, (name, image) in zip(axes[0], versions.items(), strict=False):
        picture(cell, image, f"{name}\nL2 = {distance(crop, image):,.0f}")
    _, parts = digits()
    x, y = rows(parts.development)
    tests, truth = rows(parts.test)
    model, moved = KNeighborsClassifier(3).fit(x, y), []
    for shift in range(4):
        images = np.zeros((len(tests), 8, 8), np.uint8)
        images[:, :, shift:] = tests.reshape(-1, 8, 8)[:, :, : 8 - shift]
        moved.append(100 * (model.predict(images.reshape(len(tests), -1)) == truth).mean())
    axes[0][4].bar(range(4), moved, color=BLUE, width=0.6)
    tidy(axes[0][4], xlabel="test digits moved right by (pixels)", ylabel="kNN accuracy (%)", ylim=(0, 100))
    text = f"""
    The three changed images lie at the same L2 distance from the first, {target:,.0f} grey levels, to a rounding of the tint and the
    box.
    To an eye one of them is the same picture, one has a colour cast, and one has lost its subject.
    Pixel distance compares each pixel with the one at the same place; it knows neither objects nor neighbourhoods.
    So a nearest-neighbour classifier on pixels works where images are cut out and centred, as scanned digits are:
    {moved[0]:.1f} % of the test digits are right. Move them by one pixel of eight and it is {moved[1]:.1f} %, by two {moved[2]:.1f}
    %, by three {moved[3]:.1f} %.
    Features that do not change with what should not matter (histograms, HOG, the last layer of a network) repair this:
    the distance is the same kernel, on other numbers.
    """
    return Lesson("What pixel distance cannot see", text, made)


if __name__ == "__main__":
    main(lesson)
