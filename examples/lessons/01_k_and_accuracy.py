"""k against cross-validated accuracy, with error bars."""

from common import BLUE, GREY, Lesson, digits, figure, main, rows, tidy

from fastcv.vision import KNNImageClassifier


def lesson() -> Lesson:
    _, parts = digits()
    x, y = rows(parts.development)
    model = KNNImageClassifier((1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100), ps=(2,)).fit(x, y)
    folds = model.cv_accuracy_[0]
    test = model.score(*rows(parts.test))
    training = (KNNImageClassifier((1,), ps=(2,)).fit(x, y).predict(x) == y).mean()
    made, ((axes,),) = figure(8, 4.2)
    for fold in folds.T:
        axes.plot(model.ks_, 100 * fold, ".", color=GREY, markersize=5, alpha=0.6)
    axes.errorbar(model.ks_, 100 * folds.mean(1), 100 * folds.std(1), color=BLUE, marker="o", capsize=4, label="mean ± standard deviation")
    axes.axvline(model.best_k_, color=GREY, linewidth=0.8, linestyle="--")
    tidy(axes, xscale="log", xlabel="k, the number of neighbours", ylabel="accuracy on the fold held out (%)")
    axes.set_xticks(model.ks_, model.ks_)
    axes.minorticks_off()
    axes.legend(frameon=False)
    text = f"""
    Each grey point is one fold: four fifths of the {len(y):,} development digits vote on the remaining fifth.
    The mean is best at k = {model.best_k_} ({100 * folds.mean(1).max():.2f} %), but the bars of all k up to 10 overlap: among them the
    choice is nearly a draw, and the smallest of the best is taken.
    At k = 100 most of a class, some 115 images, would have to be near to win the vote: {100 * folds[-1].mean():.1f} %.
    On its own training images k = 1 is right in {100 * training:.0f} % of the cases, always: each image is its own neighbour.
    That is why k is never chosen on the training images, and why the test images are read once, at the end:
    {100 * test:.2f} % with the k that cross-validation chose.
    Training costs nothing (the images are kept), every prediction reads all of them: the reverse of what one wants.
    """
    return Lesson("How many neighbours? k against accuracy", text, made)


if __name__ == "__main__":
    main(lesson)
