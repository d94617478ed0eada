"""Plain PyTorch: cross entropy for the first epochs, then the rate that the labels ask for."""

import copy

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nls

EPOCHS, WARM_UP = 30, 5

# Your data goes here. These are points around four centres; three in ten labels are wrong, but for the test labels.
generator = torch.Generator().manual_seed(0)
clean = torch.arange(2400) % 4
features = torch.randn(2400, 20, generator=generator) + 0.5 * torch.randn(4, 20, generator=generator)[clean]
labels = nls.draw_noisy_labels(clean, nls.symmetric_transition(4, 0.3), generator)
train, held_out, test = slice(0, 1000), slice(1000, 2000), slice(2000, 2400)

# Or name a rate by hand. The model is cross-fitted here: no label is predicted by a model that saw it.
advice = nls.suggest_smooth_rate(labels[train], features=features[train], model=LogisticRegression())
rate = advice.smooth_rate if advice.use else 0.0
print(advice)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
loader = DataLoader(TensorDataset(features[train], labels[train]), batch_size=50, shuffle=True)
loss_function = nls.GLSLoss(0.0)  # was: nn.CrossEntropyLoss(label_smoothing=...)

history, best = [], {"held_out": float("inf")}
for epoch in range(EPOCHS):
    if epoch == WARM_UP:
        loss_function.smooth_rate = rate
        for group in optimizer.param_groups:
            group["lr"] /= 1 - min(rate, 0.0)  # the label pulls 1 - r times as hard
    total = 0.0
    for inputs, targets in loader:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs)
        loss = loss_function(logits, targets)  # computed in float32, whatever the logits are
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(targets) / len(labels[train])
    with torch.no_grad():
        logits = model(features[held_out])
    row = {"epoch": epoch, "rate": loss_function.smooth_rate, "train": total}
    # At the rate that undoes the noise, noisy labels estimate the clean log loss. Do not stop by the training loss.
    row["held_out"] = nls.gls_loss(logits, labels[held_out], rate).item()
    row["accuracy"] = (logits.argmax(1) == labels[held_out]).double().mean().item()
    history.append(row)
    if row["held_out"] < best["held_out"]:
        best = row | {"state": copy.deepcopy(model.state_dict())}

model.load_state_dict(best["state"])
with torch.no_grad():
    logits = model(features[test])
accuracy = (logits.argmax(1) == clean[test]).double().mean().item()
log_loss = nn.functional.cross_entropy(logits, clean[test]).item()
print(f"rate {rate:.2f}, epoch {best['epoch']}: clean accuracy {accuracy:.3f}, clean log loss {log_loss:.3f}")
