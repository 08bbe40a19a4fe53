"""Make the tiny models of this directory and the reference values their tests compare with.

Every directory `golden/<family>` gets a model of random weights in the Hugging Face layout, one PEFT adapter for each
case, and `golden.json`. All values are computed in float64 from the files as they were written. README.md describes
the structure.

    python golden/make_families.py            # make all families again, in place
    python golden/make_families.py bert       # one of them
"""

import argparse
import json
import math
import shutil
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    Qwen2Config,
    RobertaConfig,
    get_scheduler,
)
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
LENGTHS = [19, 1, 7]  # ragged on purpose: more than one 16-lane tile, a single token, an odd remainder
LABELS = [2, 0, 1]
STEPS = 10


@dataclass
class Case:
    """One task on one base model, with one LoRA configuration."""

    name: str
    lora: dict
    pooling: str | None = None  # "cls", "mean" or "last"; None is a causal language model
    squash: float | None = None  # s in tanh(s * pooled); None leaves the pooled vector as it is


@dataclass
class Family:
    name: str
    config: object
    cases: list[Case]
    storage: torch.dtype = torch.float32
    save: dict = field(default_factory=dict)  # further arguments of save_pretrained
    old_spelling: bool = False  # write rope_theta and torch_dtype as transformers 4 did
    second_from: list[int] | None = None  # per sequence: the token where the second of two texts begins


FAMILIES = [
    Family(
        "bert",
        BertConfig(vocab_size=67, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=38,
                   max_position_embeddings=21),
        [
            Case("mean-qv", dict(r=4, lora_alpha=8, target_modules=["query", "value"]), "mean", squash=3.0),
            # "output.dense" is a suffix of "attention.output.dense" too
            Case("cls-dense", dict(r=3, lora_alpha=5, target_modules=["intermediate.dense", "output.dense"]), "cls"),
        ],
        second_from=[11, 1, 4],  # the single token has no second text
    ),
    Family(
        "roberta",
        RobertaConfig(vocab_size=61, hidden_size=20, num_hidden_layers=2, num_attention_heads=2, intermediate_size=33,
                      max_position_embeddings=25, hidden_act="gelu_new", layer_norm_eps=1e-5, type_vocab_size=1),
        [Case("mean-top", dict(r=2, lora_alpha=4, target_modules=["query", "key"], layers_to_transform=[1]), "mean")],
    ),
    Family(
        "distilbert",
        DistilBertConfig(vocab_size=53, dim=28, n_layers=2, n_heads=4, hidden_dim=45, max_position_embeddings=23,
                         activation="relu"),
        [Case("cls-lin", dict(r=2, lora_alpha=3, target_modules=["q_lin", "v_lin", "lin1"]), "cls", squash=1.0)],
        storage=torch.float16,
    ),
    Family(
        "llama",
        LlamaConfig(vocab_size=67, hidden_size=20, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    head_dim=6, intermediate_size=35, max_position_embeddings=64, rms_norm_eps=1e-5,
                    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, tie_word_embeddings=False),
        [
            Case("lm-all", dict(r=2, lora_alpha=4, target_modules="all-linear",
                                rank_pattern={"layers.1.mlp.down_proj": 3, "q_proj": 1},
                                alpha_pattern={"o_proj": 7})),
            Case("last-qv", dict(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]), "last"),
        ],
        old_spelling=True,
    ),
    Family(
        "qwen2",
        Qwen2Config(vocab_size=59, hidden_size=20, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                    intermediate_size=37, max_position_embeddings=64, tie_word_embeddings=True,
                    rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        [Case("lm-rslora", dict(r=4, lora_alpha=3, use_rslora=True,
                                target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))],
        storage=torch.bfloat16,
        save={"max_shard_size": "10KB"},
    ),
]

TRAININGS = [
    dict(train="adapter", max_grad_norm=None, lr_scheduler_type="constant", warmup_ratio=0.0,
         optimizer=dict(kind="adamw", learning_rate=1e-2, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.1)),
    dict(train="adapter", max_grad_norm=0.5, lr_scheduler_type="cosine", warmup_ratio=0.2,
         optimizer=dict(kind="sgd", learning_rate=1e-1, momentum=0.9)),
    dict(train="full", max_grad_norm=1.0, lr_scheduler_type="linear", warmup_ratio=0.1,
         optimizer=dict(kind="adamw", learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0)),
    dict(train="full", max_grad_norm=None, lr_scheduler_type="constant", warmup_ratio=0.0,
         optimizer=dict(kind="sgd", learning_rate=1e-2, momentum=0.0)),
]


class Randomness:
    """Normal numbers from NumPy's RandomState, the one generator whose stream is promised never to change."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def normal(self, shape, mean=0.0, std=1.0):
        return torch.from_numpy(self.state.normal(mean, std, tuple(shape)))

    def ids(self, length, vocab):
        return [int(i) for i in self.state.randint(5, vocab, length)]  # below 5 stand the special tokens

    def fill(self, name, parameter):
        """Large enough that softmax, norms and gates are far from their linear range."""
        if parameter.dim() == 2 and "embed" in name:
            value = self.normal(parameter.shape, std=0.5)
        elif parameter.dim() == 2:
            value = self.normal(parameter.shape, std=1.2 / math.sqrt(parameter.shape[1]))
        elif name.endswith("bias"):
            value = self.normal(parameter.shape, std=0.2)
        else:
            value = self.normal(parameter.shape, mean=1.0, std=0.2)
        with torch.no_grad():
            parameter.copy_(value)


class Head(torch.nn.Module):
    """Pooling, optional squash, and the classifier that is kept beside the adapter."""

    def __init__(self, case, tensors):
        super().__init__()
        self.pooling, self.squash = case.pooling, case.squash
        self.classifier = torch.nn.Linear(*reversed(tensors["classifier.weight"].shape), dtype=torch.float64)
        self.load_state_dict(tensors)

    def forward(self, hidden, mask):
        weight = {
            "cls": torch.zeros_like(mask).index_fill_(1, torch.tensor([0]), 1.0),
            "mean": mask / mask.sum(1, keepdim=True),
            "last": mask - torch.nn.functional.pad(mask[:, 1:], (0, 1)),
        }[self.pooling]
        pooled = torch.einsum("bt,btw->bw", weight, hidden)
        return self.classifier(pooled if self.squash is None else torch.tanh(self.squash * pooled))


@dataclass
class Batch:
    """Sequences padded on the right; `rows` takes a padded result back to its ragged rows."""

    sequences: list[list[int]]
    pad: int
    second_from: list[int] | None = None

    def padded(self):
        width = max(map(len, self.sequences))
        ids = torch.tensor([s + [self.pad] * (width - len(s)) for s in self.sequences])
        mask = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in self.sequences])
        return ids, mask

    def segments(self):
        """What the model takes beside ids and mask: the token types, where sequences have two texts."""
        if self.second_from is None:
            return {}
        position = torch.arange(max(map(len, self.sequences)))
        return {"token_type_ids": (position >= torch.tensor(self.second_from)[:, None]).long()}

    def rows(self, values):
        return torch.cat([values[i, : len(s)] for i, s in enumerate(self.sequences)])


def write_base(family, directory, random):
    model_class = AutoModelForCausalLM if family.cases[0].pooling is None else AutoModel
    model = model_class.from_config(family.config)
    for name, parameter in model.named_parameters():
        random.fill(name, parameter)
    model.to(family.storage).save_pretrained(directory, **family.save)
    (directory / "generation_config.json").unlink(missing_ok=True)
    if family.old_spelling:
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config |= config.pop("rope_parameters") | {"rope_scaling": None, "torch_dtype": config.pop("dtype")}
        del config["rope_type"]
        path.write_text(json.dumps(config, indent=2) + "\n")


def load_base(directory, case):
    model_class = AutoModelForCausalLM if case.pooling is None else AutoModel
    # "eager" attention would take its softmax in float32
    model = model_class.from_pretrained(directory, dtype=torch.float64, attn_implementation="sdpa")
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(rms_norm, module)
        elif type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = partial(rotary_table, model.config)
    return model.eval()


def rms_norm(module, x):
    """As transformers has it, but in the precision of `x`: that one casts to float32."""
    return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)


def rotary_table(config, x, position_ids):
    """Cosines and sines of the half-split rotary embedding, for the same reason."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequency = config.rope_parameters["rope_theta"] ** -exponent
    angle = (position_ids[..., None] * frequency).repeat(1, 1, 2)
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def write_adapter(directory, case, random):
    """An adapter and head of random f32 values, B included, in the files that PEFT itself writes."""
    task = "CAUSAL_LM" if case.pooling is None else "FEATURE_EXTRACTION"
    model = get_peft_model(load_base(directory, case).float(), LoraConfig(task_type=task, **case.lora))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.copy_(random.normal(parameter.shape, std=0.3))
    out = directory / case.name
    model.save_pretrained(out)
    (out / "README.md").unlink()
    path = out / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": directory.name}
    config["target_modules"] = sorted(config["target_modules"])  # a Python set: its order changes from run to run
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if case.pooling is not None:
        width = model.config.hidden_size
        classes = max(LABELS) + 1
        head = {
            "classifier.weight": random.normal((classes, width), std=0.4),
            "classifier.bias": random.normal((classes,), std=0.2),
        }
        save_file({name: value.float() for name, value in head.items()}, out / "head.safetensors")
        labels = [f"class {i}" for i in range(classes)]
        config = {"pooling": case.pooling, "squash": case.squash, "labels": labels}
        (out / "head_config.json").write_text(json.dumps(config) + "\n")


class Learner:
    """Base model, head and, when asked for, the adapter, in one precision."""

    def __init__(self, directory, case, adapted, dtype=torch.float64):
        self.model = load_base(directory, case)
        if adapted:
            self.model = PeftModel.from_pretrained(self.model, directory / case.name, is_trainable=True)
        self.model.eval().to(dtype)
        self.head = None
        if case.pooling is not None:
            self.head = Head(case, load_file(directory / case.name / "head.safetensors")).to(dtype)
        self.dtype = dtype

    def parameters(self):
        named = {name.replace(".default", ""): p for name, p in self.model.named_parameters() if p.requires_grad}
        return named | (dict(self.head.named_parameters()) if self.head else {})

    def evaluate(self, batch):
        """Ragged hidden rows, logits (ragged rows, or one a sequence) and the mean loss over the targets."""
        ids, mask = batch.padded()
        out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, **batch.segments())
        hidden = out.hidden_states[-1]
        if self.head is not None:
            logits = self.head(hidden, mask.to(self.dtype))
            return batch.rows(hidden), logits, cross_entropy(logits, torch.tensor(LABELS))
        inside = mask[:, 1:].bool()  # a target is the next token of the same sequence
        loss = cross_entropy(out.logits[:, :-1][inside], ids[:, 1:][inside])
        return batch.rows(hidden), batch.rows(out.logits), loss

    def gradients(self, batch):
        _, _, loss = self.evaluate(batch)
        loss.backward()
        return {name: p.grad for name, p in self.parameters().items() if p.grad is not None}


def train(learner, batch, training):
    """The loss before each of ten steps on the same batch, and the rate of each step."""
    parameters = list(learner.parameters().values())
    options = dict(training["optimizer"])
    if options.pop("kind") == "adamw":
        optimizer = torch.optim.AdamW(parameters, lr=options["learning_rate"], eps=options["epsilon"],
                                      betas=(options["beta1"], options["beta2"]),
                                      weight_decay=options["weight_decay"])
    else:
        optimizer = torch.optim.SGD(parameters, lr=options["learning_rate"], momentum=options["momentum"])
    warmup = math.ceil(training["warmup_ratio"] * STEPS)
    scheduler = get_scheduler(training["lr_scheduler_type"], optimizer, warmup, STEPS)
    losses, rates = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, _, loss = learner.evaluate(batch)
        loss.backward()
        if training["max_grad_norm"] is not None:
            torch.nn.utils.clip_grad_norm_(parameters, training["max_grad_norm"])
        losses.append(loss.item())
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return losses, rates


def trainings(directory, case, batch):
    results, drift = [], 0.0
    for training in TRAININGS:
        adapted = training["train"] == "adapter"
        losses, rates = train(Learner(directory, case, adapted), batch, training)
        single, _ = train(Learner(directory, case, adapted, torch.float32), batch, training)
        drift = max(drift, *(abs(a - b) for a, b in zip(losses, single)))
        results.append(training | {"learning_rates": rates, "losses": losses})
    print(f"  {case.name}: {losses[0]:.4f} -> {results[0]['losses'][-1]:.4f}, losses in float32 differ by {drift:.1e}")
    return results


def fingerprint(gradient):
    """The norm does not see the order of the elements; the projection on a fixed wave does."""
    flat = gradient.flatten()
    wave = torch.cos(torch.arange(flat.numel(), dtype=flat.dtype))
    return {"norm": flat.norm(), "probe": flat @ wave}


def greedy(model, prompt, steps=24):
    """The whole sequence again for every token: nothing here depends on a cache of keys and values."""
    ids, margin = list(prompt), math.inf
    for _ in range(steps):
        with torch.no_grad():
            top = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(2)
        margin = min(margin, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    return {"prompt": prompt, "tokens": ids[len(prompt):], "smallest_margin": margin}


def run_case(directory, case, batch):
    plain, adapted = Learner(directory, case, adapted=False), Learner(directory, case, adapted=True)
    _, logits, loss = plain.evaluate(batch)
    full = {name: fingerprint(g) for name, g in plain.gradients(batch).items()}
    result = {"name": case.name}
    if case.pooling is None:
        result["task"] = {"kind": "causal-lm"}
        result["greedy"] = greedy(plain.model, batch.sequences[2][:3])
    else:
        result["task"] = {"kind": "classification", "pooling": case.pooling, "squash": case.squash}
        result["targets"] = LABELS
    result["plain"] = {"logits": logits, "loss": loss, "gradients": full}
    hidden, logits, loss = adapted.evaluate(batch)
    lora = {name: g.flatten() for name, g in adapted.gradients(batch).items()}
    result["adapted"] = {"hidden": hidden, "logits": logits, "loss": loss, "gradients": lora}
    return result | {"trainings": trainings(directory, case, batch)}


def to_json(value, indent=""):
    """Objects one key a line, matrices one row a line, numbers with nine digits."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.9g}" if abs(value) > 1e-12 else "0.0"  # a key bias has no gradient, only rounding
    inner = indent + " "
    if isinstance(value, dict):
        items = [f"{inner}{json.dumps(key)}: {to_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
        return "[\n" + ",\n".join(inner + to_json(item, inner) for item in value) + f"\n{indent}]"
    if isinstance(value, list):
        return "[" + ", ".join(to_json(item) for item in value) + "]"
    return json.dumps(value)


def make(family):
    print(family.name)
    directory = HERE / family.name
    shutil.rmtree(directory, ignore_errors=True)
    random = Randomness(seed=FAMILIES.index(family) + 1)
    write_base(family, directory, random)
    for case in family.cases:
        write_adapter(directory, case, random)
    config = family.config
    sequences = [random.ids(length, config.vocab_size) for length in LENGTHS]
    batch = Batch(sequences, config.pad_token_id or 0, family.second_from)
    hidden, _, _ = Learner(directory, family.cases[0], adapted=False).evaluate(batch)
    golden = {
        "note": "made by golden/make_families.py in float64; no dropout; rows of all sequences one after another",
        "input_ids": batch.sequences,
        **({} if batch.second_from is None else {"second_from": batch.second_from}),
        "hidden": hidden,
        "cases": [run_case(directory, case, batch) for case in family.cases],
    }
    (directory / "golden.json").write_text(to_json(golden) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", help="which to make; all by default")
    wanted = parser.parse_args().family
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    for family in FAMILIES:
        if not wanted or family.name in wanted:
            make(family)


if __name__ == "__main__":
    main()
