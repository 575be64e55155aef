"""k-means, mean-shift and normalised cuts of two photographs."""

import time

import numpy as np
from common import Lesson, figure, main, photo, picture

from fastcv.vision import mean_colors, segment

WAYS = {
    "k-means": {"method": "kmeans", "clusters": 6},
    "k-means with position": {"method": "kmeans", "clusters": 12, "position": 0.7},
    "mean-shift": {"method": "meanshift", "bandwidth": 0.14},
    "normalised cut": {"method": "ncut", "clusters": 8},
}


def lesson() -> Lesson:
    made, axes = figure(15, 4.4, nrows=2, ncols=5)
    seconds, counts = {}, {}
    for row, name in zip(axes, ("china.jpg", "flower.jpg"), strict=True):
        image = photo(name)
        picture(row[0], image, name)
        for cell, (way, options) in zip(row[1:], WAYS.items(), strict=True):
            start = time.perf_counter()
            labels = segment(image, **options)
            seconds.setdefault(way, []).append(time.perf_counter() - start)
            counts.setdefault(way, []).append(len(np.unique(labels)))
            picture(cell, mean_colors(image, labels), f"{way}: {counts[way][-1]} segments")
    shift = counts["mean-shift"]
    text = f"""
    Every pixel is a point (red, green, blue), with position (red, green, blue, row, column); a segment is a cluster, in its mean
    colour.
    k-means wants k, and makes clusters of about equal width: large even areas are cut by brightness, small colours are swallowed.
    With position segments hold together in the picture, and even skies are cut into pieces, for far is now unlike.
    Mean-shift climbs to the peaks of the density and finds their number itself ({shift[0]} and {shift[1]} here); it wants a bandwidth.
    Normalised cuts look at borders: pixels are grouped to superpixels, neighbours joined by likeness, and the graph is cut where
    the edges weigh least in proportion to both sides. The cut is an eigenvector, so a global one; it likes parts of equal size.
    Empty clusters take the farthest point, k-means is started three times, and the least inertia wins: it only finds local optima.
    None of the three knows what a temple is: labels need examples, as the U-Net's.
    """
    return Lesson("Segmentation of photographs without labels", text, made)


if __name__ == "__main__":
    main(lesson)
