"""Hugging Face Trainer: tags of tokens, where padding has the label -100."""

import tempfile

import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForTokenClassification, Trainer, TrainerCallback, TrainingArguments, set_seed

import nls

EPOCHS, WARM_UP = 8, 2
NOISE_RATE = 0.3
RATE = nls.optimal_smooth_rate(NOISE_RATE, 4)  # -0.67 for four tags; nls.suggest_smooth_rate estimates it

loss_function = nls.GLSLoss(0.0, reduction="sum")  # was: TrainingArguments(label_smoothing_factor=...)


def compute_loss(outputs, labels, num_items_in_batch=None):
    """Return the mean over the tokens of a step, which Trainer counts over all its small batches."""
    count = labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch
    return loss_function(outputs["logits"].flatten(0, 1), labels.flatten()) / count


def compute_metrics(prediction):
    """Return what epochs are compared by: at the final rate, noisy labels estimate the clean log loss."""
    logits, labels = (torch.from_numpy(part).flatten(0, 1) for part in prediction)
    kept = labels != -100
    accuracy = (logits.argmax(1) == labels)[kept].double().mean().item()
    held_out = nls.gls_loss(logits, labels, RATE).item()
    return {"held_out": held_out, "accuracy": accuracy, "rate": loss_function.smooth_rate}


class WarmUp(TrainerCallback):
    """Cross entropy first, then the rate."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Set the rate of this epoch."""
        loss_function.smooth_rate = RATE if round(state.epoch) >= WARM_UP else 0.0


# Your data goes here. These are made sentences: a tag mostly takes words of its own; three in ten tags are wrong.
generator = torch.Generator().manual_seed(0)
tags = torch.randint(4, (900, 16), generator=generator)
own = torch.rand(tags.shape, generator=generator) < 0.7
words = torch.where(own, 10 * tags, 10 * torch.randint(4, tags.shape, generator=generator))
words += torch.randint(1, 11, tags.shape, generator=generator)
real = torch.arange(16) < torch.randint(6, 17, (900, 1), generator=generator)
noisy = nls.draw_noisy_labels(tags.flatten(), nls.symmetric_transition(4, NOISE_RATE), generator).view(tags.shape)


def rows(labels, part):
    """Return what Trainer takes: a dictionary for each sentence."""
    columns = {"input_ids": words * real, "attention_mask": real.long(), "labels": labels.masked_fill(~real, -100)}
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*(c[part] for c in columns.values()), strict=True)
    ]


set_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForTokenClassification(BertConfig(vocab_size=41, max_position_embeddings=16, num_labels=4, **sizes))
with tempfile.TemporaryDirectory() as folder:
    settings = TrainingArguments(
        folder,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=10,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="held_out",
        greater_is_better=False,
        report_to="none",
    )  # label_smoothing_factor stays 0: it is not asked where compute_loss_func is given
    trainer = Trainer(
        model,
        settings,
        train_dataset=rows(noisy, slice(0, 300)),
        eval_dataset=rows(noisy, slice(300, 600)),
        compute_loss_func=compute_loss,
        compute_metrics=compute_metrics,
        callbacks=[WarmUp()],
    )
    trainer.train()

test = slice(600, 900)
model.eval()
with torch.no_grad():
    logits = model(words[test] * real[test], attention_mask=real[test].long()).logits[real[test]]
accuracy = (logits.argmax(1) == tags[test][real[test]]).double().mean().item()
log_loss = cross_entropy(logits, tags[test][real[test]]).item()
print(f"rate {RATE:.2f}: clean accuracy {accuracy:.3f}, clean log loss {log_loss:.3f}")
