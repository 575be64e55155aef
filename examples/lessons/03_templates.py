"""A linear classifier is one template per class."""

from common import Lesson, digits, figure, main, picture, rows

from fastcv.vision import LinearSVM, SoftmaxClassifier


def lesson() -> Lesson:
    _, parts = digits()
    x, y = rows(parts.train)
    models = {"SVM": LinearSVM(random_state=0), "softmax": SoftmaxClassifier(random_state=0)}
    made, axes = figure(11, 4.4, nrows=3, ncols=10)
    for label, cell in enumerate(axes[0]):
        picture(cell, x[y == label].mean(0).reshape(8, 8), str(label), cmap="gray_r")
    scores = {}
    for row, (name, model) in zip(axes[1:], models.items(), strict=True):
        model.fit(x, y)
        scores[name] = 100 * model.score(*rows(parts.test))
        for cell, template in zip(row, model.templates((8, 8)), strict=True):
            picture(cell, template, cmap="RdBu_r", vmin=0, vmax=1)
    for row, name in zip(axes, ("mean image", *models), strict=True):
        row[0].text(-0.25, 0.5, name, rotation=90, va="center", ha="center", transform=row[0].transAxes)
    text = f"""
    The score of a class is the inner product of the image with the class's row of W: red pixels speak for it, blue ones against.
    The top row is the mean digit; the templates below are not means: they say what tells a class from the other nine.
    Look at 0: its hole is deep blue, for ink there makes it another digit. One template has to serve every way of writing a
    digit: a linear classifier has one per class and no second chance.
    Trained by minibatch SGD on {len(y):,} digits: {scores["SVM"]:.1f} % (multiclass SVM) and {scores["softmax"]:.1f} % (softmax) of
    the test digits are right;
    nearest neighbours reach more on these data, but read all training images for each answer, where this reads ten rows.
    The L2 penalty keeps weights small and spread: of (1,0,0,0) and (.25,.25,.25,.25), equal on (1,1,1,1), it takes the second.
    The L1 penalty does not tell these two apart: both cost 1.
    """
    return Lesson("Linear templates", text, made)


if __name__ == "__main__":
    main(lesson)
