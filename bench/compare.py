"""Run two programs in turn (A, B, A, B, ...) on the same measurements and print B's time and memory as a share of A's.

    python bench/compare.py --out bench/results/train_step.jsonl

Each program is called as `PROGRAM --shape S --threads N --what W --runs R` and prints one JSON line:

    {"peer", "shape", "threads", "what", "ms_median", "ms_min", "runs", "peak_bytes", "allocator"}

and may add "lean_peak_bytes", its peak without libraries that the work does not need; the last column is B's peak
as a share of that. Times are compared within one turn, as what disturbs a machine changes slowly: the ratio printed
is the median over turns. Every line, and a first line on the machine, is kept in `--out`.
"""

import argparse
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--a", default=f"{sys.executable} {HERE / 'train_step.py'}", help="the peer (default: PyTorch)")
    parser.add_argument("--b", default="target/release/examples/train_step", help="ours")
    parser.add_argument("--shapes", nargs="+", default=["minilm", "bert-base"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pairs", nargs="+", default=["forward:forward", "train:train", "train:train-recompute"],
                        metavar="A:B", help="what A measures against what B measures")
    parser.add_argument("--allocators", nargs="+", default=["glibc", "mimalloc"], choices=machine.ALLOCATORS)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10, help="timed passes in each process")
    parser.add_argument("--out", type=Path, required=True, help="raw results, JSON Lines; must not exist")
    return parser.parse_args()


def measure(program, allocator, shape, threads, what, runs):
    command = shlex.split(program) + ["--shape", shape, "--threads", str(threads), "--what", what, "--runs", str(runs)]
    environment = os.environ | machine.ALLOCATORS[allocator]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"exit {done.returncode}: {shlex.join(command)}")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(a, b):
    """Medians over the turns; a ratio is taken within its turn."""
    median = statistics.median
    return {
        "ms": (median(x["ms_median"] for x in a), median(x["ms_median"] for x in b)),
        "ms_ratio": median(y["ms_median"] / x["ms_median"] for x, y in zip(a, b)),
        "mb": (median(x["peak_bytes"] for x in a) / 1e6, median(x["peak_bytes"] for x in b) / 1e6),
        "mb_ratio": median(y["peak_bytes"] / x["peak_bytes"] for x, y in zip(a, b)),
        "lean_ratio": median(y["peak_bytes"] / x.get("lean_peak_bytes", x["peak_bytes"]) for x, y in zip(a, b)),
    }


def main():
    options = arguments()
    print(f"{'allocator':<11}{'shape':<11}{'threads':>7}  {'A : B':<24}{'A ms':>9}{'B ms':>9}{'B/A':>7}"
          f"{'A MB':>9}{'B MB':>9}{'B/A':>7}{'B/lean':>8}")
    with options.out.open("x") as raw:
        print(json.dumps({"machine": machine.describe()}), file=raw)
        cases = itertools.product(options.allocators, options.shapes, options.threads, options.pairs)
        for allocator, shape, threads, pair in cases:
            sides = ([], [])
            for turn in range(options.turns):
                for program, what, results in zip((options.a, options.b), pair.split(":"), sides):
                    result = measure(program, allocator, shape, threads, what, options.runs)
                    print(json.dumps({"turn": turn, "environment": allocator} | result), file=raw, flush=True)
                    results.append(result)
            s = summarise(*sides)
            print(f"{allocator:<11}{shape:<11}{threads:>7}  {pair:<24}{s['ms'][0]:>9.1f}{s['ms'][1]:>9.1f}"
                  f"{s['ms_ratio']:>7.3f}{s['mb'][0]:>9.0f}{s['mb'][1]:>9.0f}{s['mb_ratio']:>7.3f}"
                  f"{s['lean_ratio']:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
