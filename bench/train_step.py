"""Time and peak memory of one forward pass, or one LoRA forward and backward pass, in PyTorch on the CPU.

One process takes one measurement and prints it as one JSON line, so that its peak is its own:

    python bench/train_step.py --shape minilm --threads 2 --what train

Float32, batch 8, sequences of 128 tokens without padding, random weights. `forward` is the frozen model with mean
pooling and a linear head of 6 classes, without gradient; `train` adds LoRA (r 8, alpha 16, on query and value) and
takes the gradient of the mean cross entropy for A, B and the head; `train-recompute` is `train` with gradient
checkpointing of every block. No optimiser step, no dropout.

`peak_bytes` is the peak of the whole process; `lean_peak_bytes` what it would be had the process imported torch
alone, without transformers, peft and what these import.
"""

import argparse
import json
import os
import statistics
import time
import warnings

import machine

BATCH, SEQUENCE, CLASSES = 8, 128, 6
SHAPES = {
    "minilm": dict(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536),
    "bert-base": dict(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--what", choices=["forward", "train", "train-recompute"], required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    return parser.parse_args()


def build(torch, shape, what):
    """The step to be timed: a function without arguments that returns a number, so that nothing can be left out."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(**SHAPES[shape], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, use_cache=False)
    model = BertModel(config, add_pooling_layer=False).requires_grad_(False)
    head = torch.nn.Linear(config.hidden_size, CLASSES)
    ids = torch.randint(config.vocab_size, (BATCH, SEQUENCE))
    targets = torch.arange(BATCH) % CLASSES

    def loss():
        hidden = model(input_ids=ids).last_hidden_state
        return torch.nn.functional.cross_entropy(head(hidden.mean(1)), targets)

    def forward():
        with torch.no_grad():
            return loss().item()

    def train():
        for parameter in trained:
            parameter.grad = None
        value = loss()
        value.backward()
        return value.item()

    if what == "forward":
        model.eval()
        return forward
    if what == "train-recompute":
        model.activation_checkpointing_enable({"use_reentrant": False})
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])).train()
    trained = [p for p in model.parameters() if p.requires_grad] + list(head.parameters())
    return train


def main():
    options = arguments()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    import torch

    torch.set_num_threads(options.threads)
    torch_alone = machine.process_status("VmRSS")
    import peft  # noqa: F401  not needed here, but its size is
    from transformers import BertModel  # noqa: F401

    libraries = machine.process_status("VmRSS")
    step = build(torch, options.shape, options.what)
    for _ in range(options.warmup):
        step()
    times = []
    for _ in range(options.runs):
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    peak = machine.process_status("VmHWM")
    result = {
        "peer": f"pytorch {torch.__version__}",
        "shape": options.shape,
        "threads": options.threads,
        "what": options.what,
        "ms_median": round(statistics.median(times), 2),
        "ms_min": round(min(times), 2),
        "runs": options.runs,
        "peak_bytes": peak,
        "lean_peak_bytes": peak - libraries + torch_alone,
        "allocator": machine.allocator(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
