"""Does an exported adapter give the same results in Python's peft?

    python bench/peft_check.py --base MODEL_DIR --adapter ADAPTER_DIR --expected expected.json

Loads the base model with transformers, the adapter with peft and the head kept beside it (`head.safetensors`,
`head_config.json`), runs the sequences of `expected.json` one by one and compares. `expected.json`, as our side
writes it:

    {"sequences": [{"input_ids": [..], "hidden": [..], "logits": [..]}, ...]}

`hidden` is the last hidden state, tokens x width, flat and row-major; `logits` those of the classes, or, when there
is no head, those of the vocabulary at the last token. Exits with 1 when any number is further off than
`--tolerance`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--expected", type=Path, required=True)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    return parser.parse_args()


def load(base, adapter):
    """The adapted model and, for a classifier, its head; else None."""
    classifier = (adapter / "head.safetensors").exists()
    model = (AutoModel if classifier else AutoModelForCausalLM).from_pretrained(base, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model = PeftModel.from_pretrained(model, adapter).eval()
    stored = set(load_file(adapter / "adapter_model.safetensors"))
    taken = {name.replace(".default", "") for name in model.state_dict() if "lora_" in name}
    if stored != taken:
        raise SystemExit(f"peft does not find the adapter's tensors: only stored {sorted(stored - taken)[:3]}, "
                         f"only in the model {sorted(taken - stored)[:3]}")
    if not all(torch.equal(value, before[name.replace("base_layer.", "")])
               for name, value in model.base_model.model.state_dict().items() if "lora_" not in name):
        raise SystemExit("loading the adapter changed the base model")
    if not classifier:
        return model, None
    return model, load_file(adapter / "head.safetensors") | json.loads((adapter / "head_config.json").read_text())


def run(model, head, ids):
    out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    hidden = out.hidden_states[-1][0]
    if head is None:
        return hidden, out.logits[0, -1]
    pooled = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[head["pooling"]]
    if head["squash"] is not None:
        pooled = torch.tanh(head["squash"] * pooled)
    return hidden, head["classifier.weight"] @ pooled + head["classifier.bias"]


def main():
    options = arguments()
    model, head = load(options.base, options.adapter)
    errors = {"hidden": [], "logits": []}
    sequences = json.loads(options.expected.read_text())["sequences"]
    if not sequences:
        raise SystemExit(f"no sequences in {options.expected}")
    for sequence in sequences:
        with torch.no_grad():
            results = run(model, head, sequence["input_ids"])
        for name, ours in zip(errors, results):
            theirs = torch.tensor(sequence[name]).flatten()
            if theirs.shape != ours.flatten().shape:
                raise SystemExit(f"{name}: {theirs.numel()} numbers in {options.expected}, {ours.numel()} from peft")
            errors[name].append((theirs - ours.flatten()).abs().max())
    worst = {name: torch.stack(values).max().item() for name, values in errors.items()}  # max keeps a NaN
    good = all(error <= options.tolerance for error in worst.values())
    result = {"sequences": len(sequences), "max_abs_error": worst, "tolerance": options.tolerance, "same": good}
    print(json.dumps(result))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
