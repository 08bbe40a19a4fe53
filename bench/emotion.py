"""The job of the federated baseline in plain PyTorch and PEFT: who holds which rows, the model, one local epoch,
evaluation.

Knows nothing of Flower. Its functions cache what a client actor needs again (rows, tokens, model), per process.
"""

import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import numpy as np
import torch
import zstandard
from peft import LoraConfig, get_peft_model
from sklearn.metrics import f1_score
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModel
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

LABELS = 6


@dataclass(frozen=True)
class Job:
    model: Path
    data: Path  # a directory with train.jsonl.zst and test.jsonl.zst
    devices: int = 16
    alpha: float = 0.5
    min_rows: int = 10
    batch: int = 16
    max_tokens: int = 48
    learning_rate: float = 1e-3
    seed: int = 0
    threads: int = 2
    max_steps: int | None = None  # of a local epoch; for trying the script out
    max_test_rows: int | None = None


def read(path):
    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


@lru_cache
def rows(job, split):
    """Token ids and label of every row."""
    texts, labels = read(job.data / f"{split}.jsonl.zst")
    tokenizer = Tokenizer.from_file(str(job.model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(job.max_tokens)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)], labels


@lru_cache
def shards(job):
    """Row indices of every device: each label's rows in Dirichlet shares, drawn again until all have min_rows."""
    _, labels = rows(job, "train")
    random = np.random.default_rng(job.seed)
    while True:
        devices = [[] for _ in range(job.devices)]
        for label in range(LABELS):
            mine = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet([job.alpha] * job.devices)
            cuts = (np.cumsum(shares)[:-1] * len(mine)).astype(int)
            for device, part in zip(devices, np.split(mine, cuts)):
                device.extend(part.tolist())
        if min(map(len, devices)) >= job.min_rows:
            return devices


class Classifier(torch.nn.Module):
    """MiniLM with LoRA on query and value, and a linear head on tanh(3 x mean pool)."""

    def __init__(self, job):
        super().__init__()
        torch.manual_seed(job.seed)
        base = AutoModel.from_pretrained(job.model, dtype=torch.float32, add_pooling_layer=False,
                                         hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.encoder = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
        self.head = torch.nn.Linear(base.config.hidden_size, LABELS)

    def forward(self, ids, mask):
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask / mask.sum(1, keepdim=True)
        return self.head(torch.tanh(3.0 * torch.einsum("bt,btw->bw", weight, hidden)))

    def trained(self):
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def load(self, values):
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(values[name])


@lru_cache
def classifier(job):
    torch.set_num_threads(job.threads)
    return Classifier(job)


def padded(sequences):
    """Padded to the longest of the batch."""
    width = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (width - len(s)) for s in sequences])
    return ids, torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences])


def train(job, values, device, round_number):
    """One epoch over the device's rows from `values`. Returns the new values and what it took."""
    model = classifier(job)
    model.load(values)
    ids, labels = rows(job, "train")
    order = np.random.default_rng([job.seed, round_number, device]).permutation(shards(job)[device])
    batches = [order[i : i + job.batch] for i in range(0, len(order), job.batch)][: job.max_steps]
    optimizer = torch.optim.AdamW(model.trained().values(), lr=job.learning_rate)
    start, total = time.process_time(), 0.0
    for batch in batches:
        optimizer.zero_grad()
        loss = cross_entropy(model(*padded([ids[i] for i in batch])), torch.from_numpy(labels[batch]))
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
    examples = sum(map(len, batches))
    spent = {"num-examples": examples, "steps": len(batches), "train-cpu-s": time.process_time() - start,
             "train-loss": total / examples}
    return {name: p.detach().clone() for name, p in model.trained().items()}, spent


def evaluate(job, values):
    """Accuracy, macro-F1 and mean loss on the test rows."""
    model = classifier(job)
    model.load(values)
    ids, labels = rows(job, "test")
    start, logits = time.process_time(), []
    size = len(labels[: job.max_test_rows])
    with torch.no_grad():
        for i in range(0, size, 64):
            logits.append(model(*padded(ids[i : min(i + 64, size)])))
    logits, labels = torch.cat(logits), torch.from_numpy(labels[:size])
    predicted = logits.argmax(1)
    return {
        "accuracy": (predicted == labels).double().mean().item(),
        "macro-f1": float(f1_score(labels, predicted, average="macro")),
        "loss": cross_entropy(logits, labels).item(),
        "eval-cpu-s": time.process_time() - start,
    }
