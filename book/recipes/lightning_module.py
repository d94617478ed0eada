"""Lightning: the rate is an attribute of the loss, and a hook sets it after the warm-up."""

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nls

EPOCHS, WARM_UP = 40, 5
NOISE_RATE = 0.3
RATE = nls.optimal_smooth_rate(NOISE_RATE, 4)  # -0.67 for four classes; nls.suggest_smooth_rate estimates it


class Classifier(lightning.LightningModule):
    """A small network that is trained at one rate after a warm-up."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
        self.loss_function = nls.GLSLoss(0.0)  # was: nn.CrossEntropyLoss()

    def on_train_epoch_start(self):
        """Set the rate of this epoch."""
        self.loss_function.smooth_rate = self.rate if self.current_epoch >= WARM_UP else 0.0

    def training_step(self, batch, batch_index):
        """Return the loss of a batch."""
        inputs, labels = batch
        loss = self.loss_function(self.network(inputs), labels)
        # At another rate the loss has another scale, and below zero another sign: log the rate beside it.
        self.log_dict({"train": loss, "rate": self.loss_function.smooth_rate}, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_index):
        """Log what epochs are compared by."""
        inputs, labels = batch
        logits = self.network(inputs)
        # Always at the final rate: there, noisy labels estimate the clean log loss, and epochs can be compared.
        self.log("held_out", nls.gls_loss(logits, labels, self.rate))
        self.log("accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        """Return the optimiser."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


# Your data goes here. These are points around four centres; three in ten labels are wrong, but for the test labels.
generator = torch.Generator().manual_seed(0)
clean = torch.arange(2400) % 4
features = torch.randn(2400, 20, generator=generator) + 0.5 * torch.randn(4, 20, generator=generator)[clean]
labels = nls.draw_noisy_labels(clean, nls.symmetric_transition(4, NOISE_RATE), generator)
train, held_out = (
    DataLoader(TensorDataset(features[rows], labels[rows]), batch_size=50, shuffle=rows.start == 0)
    for rows in (slice(0, 1000), slice(1000, 2000))
)

lightning.seed_everything(0, verbose=False)
model = Classifier(RATE)
saved = ModelCheckpoint(monitor="held_out", mode="min")
trainer = lightning.Trainer(
    max_epochs=EPOCHS,
    accelerator="cpu",
    precision="bf16-mixed",
    gradient_clip_val=1.0,
    logger=CSVLogger("."),
    log_every_n_steps=1,
    callbacks=[EarlyStopping("held_out", patience=8), saved],  # never on "train"
)
trainer.fit(model, train, held_out)

model.load_state_dict(torch.load(saved.best_model_path, weights_only=True)["state_dict"])
with torch.no_grad():
    logits = model.network(features[2000:])
accuracy = (logits.argmax(1) == clean[2000:]).double().mean().item()
log_loss = nn.functional.cross_entropy(logits, clean[2000:]).item()
print(f"rate {RATE:.2f}, {trainer.current_epoch} epochs: clean accuracy {accuracy:.3f}, clean log loss {log_loss:.3f}")
