"""Run a command and report the memory and CPU time of it and of every process it starts (Linux).

    python bench/tree.py --out FILE.json -- COMMAND ...

Twice a second it adds up, over the tree, the proportional set size (PSS: a page shared by n processes counts 1/n
for each), the resident set size, and the CPU time. A process that lives for less than that may be missed; one that
outlives its parent is not, as orphans are handed to this process.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

INTERVAL_S = 0.5
PR_SET_CHILD_SUBREAPER = 36


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def sample(cpu):
    """PSS, RSS and number of the processes below this one; `cpu` keeps the last known CPU seconds of each."""
    pss = rss = count = 0
    for process in psutil.Process().children(recursive=True):
        try:
            times, memory = process.cpu_times(), process.memory_full_info()
            cpu[process.pid, process.create_time()] = times.user + times.system
        except psutil.Error:  # ended between listing and reading
            continue
        pss, rss, count = pss + memory.pss, rss + memory.rss, count + 1
    return pss, rss, count


def main():
    options = arguments()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    start, cpu, peaks = time.monotonic(), {}, (0, 0, 0)
    child = subprocess.Popen(options.command)
    while child.poll() is None:
        peaks = tuple(map(max, peaks, sample(cpu)))
        time.sleep(INTERVAL_S)
    result = {
        "command": options.command,
        "exit": child.returncode,
        "peak_pss_bytes": peaks[0],
        "peak_rss_bytes": peaks[1],
        "processes": peaks[2],
        "cpu_s": round(sum(cpu.values()), 2),
        "wall_s": round(time.monotonic() - start, 2),
    }
    options.out.write_text(json.dumps(result) + "\n")
    print(json.dumps(result), file=sys.stderr)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
