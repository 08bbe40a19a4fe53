"""Fixed against adaptive terms of split-lora on links that swing by a factor of ten (scenarios/links-split-lora.toml).

    python3 bench/links.py [--seeds 7 8 9] [--choices NAME...] [--out bench/results/links-split-lora.csv]

Every fixed choice of cut and number format, for all devices or by the class of the device, and the adaptive one, with the
same recipe, rounds and seed. A line a run: virtual seconds of all rounds, and until the accuracy was first reached
that all runs of that seed reach in the end. Runs whose line is there are not run again.
"""

import argparse
import csv
import itertools
import json
import os
import pathlib
import subprocess
import tempfile

SCENARIO = "scenarios/links-split-lora.toml"
FORMATS = ["f32", "f16", "int8"]
CUTS = [1, 2, 3]
# The Jetsons and phones keep the first block, the A17 more of them, and the other way round.
BY_CLASS = {
    "strong-3": "{jetson-nano=1,pixel-7-pro=1,a17-pro=3}",
    "strong-2": "{jetson-nano=1,pixel-7-pro=1,a17-pro=2}",
    "weak-2": "{jetson-nano=2,pixel-7-pro=2,a17-pro=1}",
}
COLUMNS = ["seed", "choice", "seconds", "accuracy", "steps", "lost", "curve"]


def choices():
    for cut, traffic in itertools.product(CUTS, FORMATS):
        yield f"cut-{cut}-{traffic}", ["method.choose=once", f"method.cut={cut}", f"method.traffic={traffic}"]
    for name, cuts in BY_CLASS.items():
        yield f"{name}-int8", ["method.choose=once", f"method.cuts={cuts}", "method.traffic=int8"]
    yield "once", ["method.choose=once"]
    yield "each-round", ["method.choose=each-round"]


def run(binary, seed, name, sets):
    """One run: what its line holds."""
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "run"
        command = [binary, "sim", SCENARIO, "--threads", "1", "--format", "json", "--out", str(out)]
        for setting in [f"run.seed={seed}", *sets]:
            command += ["--set", setting]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((out / "summary.json").read_text())
        records = map(json.loads, (out / "trace.jsonl").open())
        steps = sum(record["event"] == "ran" and record.get("label") == "serve" for record in records)
    curve = summary["curve"]
    return {
        "seed": seed,
        "choice": name,
        "seconds": round(summary["time_s"], 3),
        "accuracy": summary["eval"]["accuracy"],
        "steps": steps,
        "lost": sum(row["lost"] for row in curve),
        "curve": " ".join(f"{row['time_s']:.2f}:{row['accuracy']:.3f}" for row in curve),
    }


def reached(line, accuracy):
    """When a run first was that good."""
    points = (point.split(":") for point in line["curve"].split())
    return next(float(time) for time, found in points if float(found) >= accuracy)


def report(lines):
    by_seed = {seed: list(group) for seed, group in itertools.groupby(lines, key=lambda line: int(line["seed"]))}
    for seed, group in by_seed.items():
        best = {line["choice"]: max(float(p.split(":")[1]) for p in line["curve"].split()) for line in group}
        target = min(best.values())
        times = {line["choice"]: reached(line, target) for line in group}
        fixed = min((name for name in times if name != "each-round"), key=times.get)
        print(f"seed {seed}: accuracy {target:.3f} after")
        for line in group:
            name = line["choice"]
            print(
                f"  {name:<14}{times[name]:8.1f} s   whole run {float(line['seconds']):8.1f} s"
                f"   accuracy {float(line['accuracy']):.3f}   {line['steps']} steps   {line['lost']} lost"
            )
        gain = 1 - times["each-round"] / times[fixed]
        whole = {line["choice"]: float(line["seconds"]) for line in group}
        quickest = min((name for name in whole if name != "each-round"), key=whole.get)
        all_rounds = 1 - whole["each-round"] / whole[quickest]
        print(f"  adaptive is shorter than {fixed} by {100 * gain:.1f} %", end="")
        print(f", over all rounds than {quickest} by {100 * all_rounds:.1f} %")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9])
    parser.add_argument("--choices", nargs="+", help="only these")
    parser.add_argument("--out", default="bench/results/links-split-lora.csv")
    parser.add_argument("--binary", default=os.environ.get("UNDERTONE", "target/release/undertone"))
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    lines = list(csv.DictReader(out.open())) if out.exists() else []
    done = {(int(line["seed"]), line["choice"]) for line in lines}
    for seed in args.seeds:
        for name, sets in choices():
            if (seed, name) not in done and (not args.choices or name in args.choices):
                lines.append(run(args.binary, seed, name, sets))
                with out.open("w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(lines)
    report(sorted(lines, key=lambda line: int(line["seed"])))


if __name__ == "__main__":
    main()
