"""What a loss is given: rows, tokens, pixels, soft labels, weights of classes, and a rate for each example."""

import torch
from torch.nn.functional import one_hot

import nls

generator = torch.Generator().manual_seed(0)


def draw(*shape):
    """Return random logits, as a network would give them."""
    return torch.randn(*shape, generator=generator)


def pick(*shape):
    """Return random labels of five classes."""
    return torch.randint(5, shape, generator=generator)


loss_function = nls.GLSLoss(-0.4)
losses = {}

# A label for each row: logits [N, K], labels [N].
logits, labels = draw(8, 5), pick(8)
losses["rows"] = loss_function(logits, labels)

# For each token: torch wants the classes on axis 1, or all tokens in one row. -100 adds neither loss nor gradient.
logits, labels = draw(8, 12, 5), pick(8, 12).masked_fill(torch.arange(12) > 9, -100)
losses["tokens"] = loss_function(logits.transpose(1, 2), labels)
losses["tokens in one row"] = loss_function(logits.flatten(0, 1), labels.flatten())

# A causal language model predicts the next token: shift both by hand.
losses["next token"] = loss_function(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

# For each pixel: logits [N, K, H, W], labels [N, H, W]; 255 is what many data sets have for "no label".
logits, labels = draw(2, 5, 16, 16), pick(2, 16, 16)
labels[:, :2] = 255
losses["pixels"] = nls.GLSLoss(-0.4, ignore_index=255)(logits, labels)

# Rare classes: weights multiply the target row, as in torch, and the mean divides by their sum.
logits, labels = draw(8, 5), pick(8)
weight = torch.tensor([1.0, 1.0, 2.0, 2.0, 4.0])
losses["weights"] = nls.GLSLoss(-0.4, weight=weight)(logits, labels)

# Soft labels, of Mixup, of a teacher or of several people: rows that sum to one.
rows = 0.7 * one_hot(labels, 5).float() + 0.3 * one_hot(labels.flip(0), 5).float()
losses["soft labels"] = loss_function(logits, rows)

# A rate for each example, where some labels are known to be right.
checked = torch.arange(8) < 3
losses["a rate each"] = nls.gls_loss(logits, labels, torch.where(checked, 0.0, -0.4))

# Half precision: logits may be float16 or bfloat16, the loss is float32.
losses["bfloat16"] = loss_function(logits.bfloat16(), labels)

for name, loss in losses.items():
    print(f"{name:18} {loss.item():7.3f}")
