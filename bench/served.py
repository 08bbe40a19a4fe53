#!/usr/bin/env python3
"""Serve a scenario to device processes in network namespaces with links of their own, and kill -9 some of them.

Needs root, iproute2 and a built binary. Each device stands in a namespace of its own, behind a link that tbf holds to
a rate drawn from --mbit. Kills are drawn by --seed; the server is among the victims. Whoever was killed is started
again at once. The outcome, with the weights' hash, is written as JSON.

    python3 bench/served.py --binary target/release/undertone --scenario scenarios/emotion-fedavg-lora.toml \\
        --set fleet.devices=20 --kills 200 --mbit 10 50 --out /tmp/served
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import time

def sh(*words, check=True):
    return subprocess.run(words, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def names(args, node):
    """Of a device's namespace, and of the two ends of its link; distinct for runs on distinct ports."""
    return f"ut{args.port}-{node}", f"uth{args.port}-{node}", f"utd{args.port}-{node}"


def net(args, node):
    """The network of a device's link."""
    return f"10.{args.port % 200 + 20}.{node}"


def link(args, node, mbit):
    """A namespace for a device, and a link from it to this one."""
    space, here, there = names(args, node)
    unlink(args, node)
    sh("ip", "netns", "add", space)
    sh("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", space)
    sh("ip", "addr", "add", f"{net(args, node)}.1/24", "dev", here)
    sh("ip", "link", "set", here, "up")
    inside = ("ip", "netns", "exec", space)
    sh(*inside, "ip", "addr", "add", f"{net(args, node)}.2/24", "dev", there)
    sh(*inside, "ip", "link", "set", there, "up")
    sh(*inside, "ip", "link", "set", "lo", "up")
    shape = ("root", "tbf", "rate", f"{mbit}mbit", "burst", "32kbit", "latency", "400ms")
    sh("tc", "qdisc", "add", "dev", here, *shape)
    sh(*inside, "tc", "qdisc", "add", "dev", there, *shape)


def unlink(args, node):
    space, here, _ = names(args, node)
    sh("ip", "netns", "del", space, check=False)
    sh("ip", "link", "del", here, check=False)


class Cast:
    """The server and its devices."""

    def __init__(self, args, sets):
        self.args, self.sets = args, sets
        self.out = pathlib.Path(args.out)
        self.processes = {}

    def start(self, node):
        log = open(self.out / f"{'server' if node == 0 else f'device-{node}'}.log", "ab")
        if node == 0:
            words = [self.args.binary, "serve", self.args.scenario, *self.sets, "--listen", f"0.0.0.0:{self.args.port}",
                     "--state", str(self.out / "shards/server"), "--out", str(self.out / "run"), "--threads", "1"]
        else:
            folder = self.out / f"shards/device-{node}"
            words = ["ip", "netns", "exec", names(self.args, node)[0], self.args.binary,
                     "join", f"https://{net(self.args, node)}.1:{self.args.port}",
                     "--token", str(folder / "token"), "--state", str(folder / "state")]
            if (folder / "data.jsonl").exists():
                words += ["--data", str(folder / "data.jsonl")]
            if self.args.model:
                words += ["--model", self.args.model]
        self.processes[node] = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self, node):
        self.processes[node].kill()
        self.processes[node].wait()
        self.start(node)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/undertone")
    parser.add_argument("--scenario", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--model")
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between kills")
    parser.add_argument("--mbit", type=float, nargs=2, default=[10, 50])
    parser.add_argument("--port", type=int, default=7443)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    sets = [word for option in [f"fleet.devices={args.devices}", *args.set] for word in ("--set", option)]
    out = pathlib.Path(args.out)
    out.mkdir(parents=True)
    draw = random.Random(args.seed)
    subprocess.run([args.binary, "partition", args.scenario, *sets, "--out", str(out / "shards")], check=True)
    rates = {node: round(draw.uniform(*args.mbit), 1) for node in range(1, args.devices + 1)}
    cast, begun, kills = Cast(args, sets), time.monotonic(), []
    try:
        for node, mbit in rates.items():
            link(args, node, mbit)
        for node in range(args.devices + 1):
            cast.start(node)
        while cast.processes[0].poll() is None:
            time.sleep(draw.uniform(0, 2 * args.every) if len(kills) < args.kills else 0.5)
            if len(kills) < args.kills and cast.processes[0].poll() is None:
                kills.append(draw.randint(0, args.devices))
                cast.kill(kills[-1])
        took = time.monotonic() - begun
        time.sleep(3)
    finally:
        for process in cast.processes.values():
            process.kill()
        for node in rates:
            unlink(args, node)
    summary_path = out / "run/summary.json"
    summary = json.loads(summary_path.read_text()) if summary_path.exists() else {}
    trace = [json.loads(line) for line in open(out / "run/trace.jsonl")] if summary else []
    counted = [(record["round"], record["device"]) for record in trace if record["event"] == "counted"]
    outcome = {
        "scenario": args.scenario, "sets": args.set, "devices": args.devices, "mbit": rates, "kills": len(kills),
        "kills_of_server": kills.count(0), "seconds": round(took, 1), "exit": cast.processes[0].returncode,
        "status": summary.get("status"), "weights_hash": summary.get("weights_hash"), "eval": summary.get("eval"),
        "restored": sum(record["event"] == "restored" for record in trace),
        "malformed": sum(record["event"] == "malformed" for record in trace),
        "counted": len(counted), "counted_twice": len(counted) - len(set(counted)),
    }
    (out / "outcome.json").write_text(json.dumps(outcome, indent=1) + "\n")
    print(json.dumps(outcome, indent=1))
    return 0 if summary.get("status") == "completed" else 1


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("network namespaces need root")
    sys.exit(main())
