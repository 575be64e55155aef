"""The train/eval mismatch of batch norm."""

import torch
from common import BLUE, ORANGE, RED, Lesson, accuracy, convs, digits, figure, fit, main, tidy

import fastcv.nn
from fastcv.train.data import Standardiser


def lesson() -> Lesson:
    data, parts = digits()
    network = convs((16, "M", 32, 32), fastcv.nn.BatchNorm2d)
    curves: dict[str, list[float]] = {"train()": [], "eval()": []}
    for epoch in range(6):
        fit(network, epochs=1, learning_rate=0.05, seed=epoch)
        curves["eval()"].append(100 * accuracy(network, parts.validation))
        kept = {name: value.clone() for name, value in network.state_dict().items()}
        curves["train()"].append(100 * accuracy(network, parts.validation, training=True, batch_size=64))
        network.load_state_dict(kept)  # evaluating in training mode moves the running statistics
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    order = torch.randperm(len(parts.test), generator=torch.Generator().manual_seed(0))
    mixed = parts.test[order]
    sorted_ = parts.test[data.labels[parts.test].argsort(stable=True)]
    sizes, shuffled, by_class = (2, 4, 8, 16, 32, 64), [], []
    for size in sizes:
        for part, into in ((mixed, shuffled), (sorted_, by_class)):
            into.append(100 * accuracy(network, part, training=True, batch_size=size))
            network.load_state_dict(kept)
    right = 100 * accuracy(network, parts.test)
    image = Standardiser(data.images[parts.train])(data.images[parts.test])
    alone, others = image[:1], [image[torch.randperm(len(image), generator=torch.Generator().manual_seed(s))[:15]] for s in range(40)]
    network.train()
    with torch.no_grad():
        company = torch.stack([network(torch.cat([alone, rest]))[0] for rest in others])
        network.load_state_dict(kept)
        network.eval()
        fixed = torch.stack([network(torch.cat([alone, rest]))[0] for rest in others[:5]])
    made, ((first, second, third),) = figure(13, 3.9, ncols=3)
    for (name, values), color in zip(curves.items(), (ORANGE, BLUE), strict=True):
        first.plot(range(1, 7), values, color=color, marker=".", label=name)
    tidy(first, xlabel="epoch", ylabel="validation accuracy (%)")
    first.legend(frameon=False)
    second.axhline(right, color=BLUE, label="eval(), any batch")
    second.plot(sizes, shuffled, color=ORANGE, marker="o", label="train(), shuffled")
    second.plot(sizes, by_class, color=RED, marker="o", label="train(), sorted by class")
    tidy(second, xscale="log", xlabel="images per batch", ylabel="test accuracy (%)")
    second.set_xticks(sizes, sizes)
    second.minorticks_off()
    second.legend(frameon=False)
    third.boxplot(company.numpy(), medianprops={"color": ORANGE}, flierprops={"markersize": 3})
    third.plot(range(1, 11), fixed[0], "D", color=BLUE, markersize=4)
    third.set_xticks(range(1, 11), range(10))
    tidy(third, xlabel="class", ylabel="logit of one image in 40 batches of 16")
    text = f"""
    In training batch norm uses the batch's mean and variance, in evaluation running averages of them: two functions.
    Left: the running averages lag behind at first, then the two modes agree: {curves["train()"][-1]:.1f} % and
    {curves["eval()"][-1]:.1f} % of the validation digits.
    Middle: forget eval() at test time, and answers depend on the company: {shuffled[0]:.1f} % in shuffled pairs, {shuffled[-1]:.1f} %
    in batches of 64;
    in batches sorted by class, as a test folder often is read, {by_class[-1]:.1f} %, for each class is centred away. eval() gives
    {right:.1f} %.
    Right: one test image among 40 sets of 15 others. train() spreads its logits; eval() (diamonds) gives the same bits each time.
    The batch is normalised by its biased variance (divided by n); the running average keeps the unbiased one (n - 1).
    An accuracy that drops at the first evaluation: look for model.eval(), for momentum, for a last batch of one image.
    """
    return Lesson("Batch norm: train() is not eval()", text, made)


if __name__ == "__main__":
    main(lesson)
