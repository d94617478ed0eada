"""timm: its model, optimiser, Mixup and clipping, with targets that are rows."""

import copy

import timm
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.utils import dispatch_clip_grad, random_seed
from torch.nn.functional import cross_entropy, interpolate

import nls

EPOCHS, WARM_UP = 16, 6
NOISE_RATE = 0.3
RATE = nls.optimal_smooth_rate(NOISE_RATE, 10)  # -0.5 for ten classes; nls.suggest_smooth_rate estimates it

# Your images go here. These are 8 x 8 pixels from scikit-learn; three in ten labels of the training set are wrong.
data = nls.load_dataset("digits_images")
generator = torch.Generator().manual_seed(0)
transition = nls.symmetric_transition(10, NOISE_RATE)


def prepare(pixels):
    """Return images of a size that the network is made for."""
    return interpolate(pixels.float() / 255 - 0.5, size=32)


images, labels = prepare(data.train_features), nls.draw_noisy_labels(data.train_labels, transition, generator)
held_out = prepare(data.validation_features), nls.draw_noisy_labels(data.validation_labels, transition, generator)

random_seed(0)
model = timm.create_model("test_resnet", pretrained=False, in_chans=1, num_classes=10)
optimizer = create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05)
mixup = Mixup(mixup_alpha=0.8, label_smoothing=0.0, num_classes=10)  # 0.1 unless you say so: rates multiply
loss_function = nls.GLSLoss(0.0)  # was: SoftTargetCrossEntropy(); LabelSmoothingCrossEntropy(...) without Mixup

history, best = [], {"held_out": float("inf")}
for epoch in range(EPOCHS):
    loss_function.smooth_rate = RATE if epoch >= WARM_UP else 0.0
    model.train()
    total = 0.0
    for rows in torch.randperm(len(labels), generator=generator)[:1050].split(50):
        inputs, targets = mixup(images[rows], labels[rows])  # targets are rows [N, K]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs)
        loss = loss_function(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        dispatch_clip_grad(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(rows) / 1050
    model.eval()
    with torch.no_grad():
        logits = model(held_out[0])
    row = {"epoch": epoch, "rate": loss_function.smooth_rate, "train": total}
    row["held_out"] = nls.gls_loss(logits, held_out[1], RATE).item()
    row["accuracy"] = (logits.argmax(1) == held_out[1]).double().mean().item()
    history.append(row)
    if row["held_out"] < best["held_out"]:  # what timm's CheckpointSaver keeps with decreasing=True
        best = row | {"state": copy.deepcopy(model.state_dict())}

model.load_state_dict(best["state"])
with torch.no_grad():
    logits = model(prepare(data.test_features))
accuracy = (logits.argmax(1) == data.test_labels).double().mean().item()
log_loss = cross_entropy(logits, data.test_labels).item()
print(f"rate {RATE:.2f}, epoch {best['epoch']}: clean accuracy {accuracy:.3f}, clean log loss {log_loss:.3f}")
