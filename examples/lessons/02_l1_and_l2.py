"""L1 against L2: the shape of the ball, and what a few wrong pixels do."""

import numpy as np
from common import BLUE, ORANGE, Lesson, digits, figure, main, picture, rows, tidy

from fastcv.neighbors import KNeighborsClassifier
from fastcv.vision import KNNImageClassifier


def lesson() -> Lesson:
    _, parts = digits()
    (x, y), (tests, truth) = rows(parts.development), rows(parts.test)
    clean = KNNImageClassifier().fit(x, y)
    counts, rng, found = (0, 1, 2, 4, 6, 8, 12, 16), np.random.RandomState(0), {1: [], 2: []}
    for count in counts:
        noisy = tests.copy()
        for row in noisy:  # dust and dropped pixels: white where black was, and the reverse
            where = rng.choice(64, count, replace=False)
            row[where] = np.where(row[where] > 8, 0, 16)
        for p in found:
            found[p].append(100 * (KNeighborsClassifier(3, p=p).fit(x, y).predict(noisy) == truth).mean())
        if count == 8:
            example = noisy[0]
    made, ((ball, sample, axes),) = figure(11, 3.8, ncols=3, width_ratios=(1, 1, 1.6))
    angle = np.linspace(0, 2 * np.pi, 400)
    for p, color in ((1, BLUE), (2, ORANGE)):
        radius = (np.abs(np.cos(angle)) ** p + np.abs(np.sin(angle)) ** p) ** (-1 / p)
        ball.plot(radius * np.cos(angle), radius * np.sin(angle), color=color, label=f"L{p}")
        axes.plot(counts, found[p], color=color, marker="o", label=f"L{p}, k = 3")
    tidy(ball, aspect="equal", title="all points at distance 1")
    ball.legend(frameon=False, loc="center")
    picture(sample, example.reshape(8, 8), f"a {truth[0]} with 8 flipped pixels", cmap="gray_r")
    tidy(axes, xlabel="flipped pixels of 64", ylabel="test accuracy (%)")
    axes.legend(frameon=False)
    first, last = ({p: found[p][i] for p in found} for i in (0, 4))
    text = f"""
    L1 adds the differences of all pixels, L2 their squares: one pixel that is off by 16 weighs 16 in L1 and 256 in L2.
    L1's ball is a diamond whose corners lie on the axes: it depends on the choice of coordinates, L2's circle does not.
    On clean digits cross-validation prefers L{clean.best_p_:g} at k = {clean.best_k_}; on the test images {first[1]:.1f} % (L1) and
    {first[2]:.1f} % (L2) at k = 3.
    With {counts[4]} flipped pixels per test image it is {last[1]:.1f} % against {last[2]:.1f} %.
    Which distance is better is a property of the data, so it is chosen as k is: by cross-validation.
    Both are sums over bytes here, exact integers; differences are taken in a wider type, for 20 - 56 in bytes is 220.
    """
    return Lesson("L1 against L2", text, made)


if __name__ == "__main__":
    main(lesson)
