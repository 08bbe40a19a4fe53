"""The federated baseline: emotion on MiniLM with LoRA, averaged by Flower's FedAvg over simulated devices.

    python bench/tree.py --out bench/results/flower_emotion-0.tree.json -- \\
        python bench/flower_emotion.py --seed 0 --out bench/results/flower_emotion-0.jsonl

16 devices, Dirichlet 0.5, half of them a round, one local epoch, batch 16, AdamW at 1e-3 (PyTorch's other defaults;
fresh in every round), 48 tokens, no dropout, 10 rounds, weighted by examples, evaluated by the server after every
round. One line a round and a summary at the end, all JSON. Flower draws node ids, and so cohorts, without a seed:
two runs of one seed share the shards and the start but not the cohorts.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before flwr is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import emotion
import machine
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

SHARED = Path(__file__).resolve().parents[2] / "shared"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHARED / "models/all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, default=SHARED / "data/emotion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--actors", type=int, default=1, help="processes that run clients; they share --cores")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--max-steps", type=int, help="cut every local epoch short, to try the script out")
    parser.add_argument("--max-test-rows", type=int)
    parser.add_argument("--out", type=Path, help="also write the lines to this new file")
    return parser.parse_args()


def client_app(job):
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays, config = message.content["arrays"], message.content["config"]
        device, round_number = context.node_config["partition-id"], config["server-round"]
        values, spent = emotion.train(job, arrays.to_torch_state_dict(), device, round_number)
        content = RecordDict({"arrays": ArrayRecord(values), "metrics": MetricRecord(spent)})
        return Message(content=content, reply_to=message)

    return app


class Counts:
    """What the clients of a round spent. Flower shows it to the strategy and keeps no sum of its own."""

    def __init__(self):
        self.clients = self.steps = self.examples = 0
        self.cpu_s = self.loss = 0.0
        self.bytes_up = []

    def aggregate(self, replies, _weighted_by):
        metrics = [reply["metrics"] for reply in replies]
        self.clients += len(metrics)
        self.steps += sum(m["steps"] for m in metrics)
        self.examples += sum(m["num-examples"] for m in metrics)
        self.cpu_s += sum(m["train-cpu-s"] for m in metrics)
        self.loss = sum(m["train-loss"] * m["num-examples"] for m in metrics) / sum(m["num-examples"] for m in metrics)
        self.bytes_up += [recorddict_to_proto(reply).ByteSize() for reply in replies]
        return MetricRecord({"train-loss": self.loss})


def server_app(job, rounds, lines):
    app = ServerApp()

    @app.main()
    def main(grid, _context):
        counts, start = Counts(), time.monotonic()
        evaluation_cpu_s = 0.0

        def evaluate(round_number, arrays):
            nonlocal evaluation_cpu_s
            result = emotion.evaluate(job, arrays.to_torch_state_dict())
            evaluation_cpu_s += result["eval-cpu-s"]
            lines.write({"round": round_number, **result, "train-loss": counts.loss, "clients": counts.clients,
                         "steps": counts.steps, "wall-s": time.monotonic() - start})
            return MetricRecord(result)

        initial = {name: p.detach() for name, p in emotion.classifier(job).trained().items()}
        arrays = ArrayRecord(initial)
        strategy = FedAvg(fraction_train=0.5, fraction_evaluate=0.0, min_available_nodes=job.devices,
                          train_metrics_aggr_fn=counts.aggregate)
        down = recorddict_to_proto(RecordDict({"arrays": arrays})).ByteSize()
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds, timeout=24 * 3600,
                                evaluate_fn=evaluate)
        final = result.evaluate_metrics_serverapp[rounds]
        lines.write({
            "final": {"accuracy": final["accuracy"], "macro-f1": final["macro-f1"], "loss": final["loss"]},
            "seed": job.seed,
            "floats-each-way": sum(p.numel() for p in initial.values()),
            "bytes-down": down,
            "bytes-up": max(counts.bytes_up),
            "steps": counts.steps,
            "examples": counts.examples,
            "lost-updates": rounds * (job.devices // 2) - counts.clients,
            "train-cpu-s-per-step": counts.cpu_s / counts.steps,
            "evaluation-cpu-s": evaluation_cpu_s,
            "wall-s": time.monotonic() - start,
        })

    return app


class Lines:
    def __init__(self, path):
        self.file = path.open("x") if path else None

    def write(self, record):
        line = json.dumps(record)
        print(line, flush=True)
        if self.file:
            print(line, file=self.file, flush=True)


def main():
    options = arguments()
    threads = options.cores // options.actors
    torch.set_num_threads(threads)
    job = emotion.Job(model=options.model.resolve(), data=options.data.resolve(), seed=options.seed, threads=threads,
                      max_steps=options.max_steps, max_test_rows=options.max_test_rows)
    lines = Lines(options.out)
    lines.write({"machine": machine.describe(), "actors": options.actors, "threads-per-actor": threads})
    backend = {
        "init_args": {"num_cpus": options.cores, "include_dashboard": False},
        "client_resources": {"num_cpus": threads, "num_gpus": 0.0},
    }
    run_simulation(server_app=server_app(job, options.rounds, lines), client_app=client_app(job),
                   num_supernodes=job.devices, backend_config=backend)


if __name__ == "__main__":
    main()
