"""A gradient by hand, checked; and five ways to get it wrong."""

import torch
from common import BLUE, RED, Lesson, figure, main, tidy

from fastcv.vision import check_gradients, hinge_loss


def lesson() -> Lesson:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    w, target = w[:4], torch.arange(6) % 4

    def loss(w):
        return hinge_loss(x @ w.T, target)

    def right(w):
        scores = x @ w.T
        over = ((scores - scores.gather(1, target[:, None]) + 1) > 0).double()
        over.scatter_(1, target[:, None], 0)
        over.scatter_(1, target[:, None], -over.sum(1, keepdim=True))
        return (over.T @ x / len(x),)

    def no_right_class(w):
        over = ((x @ w.T - (x @ w.T).gather(1, target[:, None]) + 1) > 0).double()
        return (over.scatter(1, target[:, None], 0).T @ x / len(x),)

    attempts = {
        "right": right,
        "mean forgotten": lambda w: (right(w)[0] * len(x),),
        "sign": lambda w: (-right(w)[0],),
        "zero": lambda w: (torch.zeros_like(w),),
        "one entry": lambda w: (right(w)[0] + torch.eye(4, 5, dtype=w.dtype)[:1] * torch.eye(4, 1, dtype=w.dtype),),
        "a term forgotten": no_right_class,
    }
    made, ((steps, axes),) = figure(12, 4, ncols=2)
    advice = {}
    for i, (name, gradient) in enumerate(attempts.items()):
        report = check_gradients(loss, w, gradients=gradient, names=("W",))
        advice[name] = report.advice[0].removeprefix("W: ") if report.advice else "ok"
        errors = [max(e.error, 1e-13) for e in report.entries]
        axes.plot([i + 0.02 * (j - 10) for j in range(len(errors))], errors, ".", color=BLUE if report.ok else RED)
    axes.axhline(1e-6, color="black", linewidth=0.8, linestyle="--")
    tidy(axes, yscale="log", ylabel="relative error of each entry of W")
    axes.set_xticks(range(len(attempts)), [n.replace(" ", "\n") for n in attempts], fontsize=9)
    v = torch.randn(5, generator=generator, dtype=torch.float64)
    exact = float(torch.exp(v).sum())
    hs = [10.0**-k for k in range(1, 13)]
    for name, dtype, color in (("float64", torch.float64, BLUE), ("float32", torch.float32, RED)):
        for style, two in (("-", True), (":", False)):
            found = []
            for h in hs:
                up, down = (float(torch.exp((v + s * h).to(dtype)).sum()) for s in (1, -1 if two else 0))
                found.append(max(abs((up - down) / ((2 if two else 1) * h) - exact) / exact, 1e-13))
            steps.plot(hs, found, style, color=color, label=f"{name}, {'two' if two else 'one'}-sided")
    tidy(steps, xscale="log", yscale="log", xlabel="h", ylabel="relative error of the difference quotient")
    steps.legend(frameon=False, fontsize=9)
    text = f"""
    A gradient by hand is checked against differences: the loss goes from 1.25347 to 1.25322 for h = 1e-4, so the slope is -2.5.
    Left: a large h errs by the curve's bend (h² two-sided, h one-sided), a small one by rounding (eps/h). Use float64, both sides,
    1e-6.
    Right: the multiclass hinge loss of 6 samples and 4 classes; each point is an entry of W. What check_gradients says of each:
    mean forgotten: {advice["mean forgotten"]}
    sign: {advice["sign"]}
    zero: {advice["zero"].split(":")[0]}.
    one entry: {advice["one entry"]}
    a term forgotten: {advice["a term forgotten"]}
    At a corner of the hinge the slopes on both sides differ; the report calls such an entry a kink and does not count it.
    """
    return Lesson("Checking a gradient", text, made)


if __name__ == "__main__":
    main(lesson)
