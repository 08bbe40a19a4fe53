"""What a result must say about where it was measured, and how a process reads its own memory (Linux)."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

# Name -> environment of a process. The second to fourth keep freed pages instead of giving them back to the kernel.
ALLOCATORS = {
    "glibc": {},
    "glibc-keep": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)},
    "mimalloc": {
        "LD_PRELOAD": "libmimalloc.so.2",
        "MIMALLOC_PURGE_DELAY": "-1",  # since 2.1
        "MIMALLOC_PAGE_RESET": "0",  # before
        "MIMALLOC_ARENA_EAGER_COMMIT": "0",  # no page is resident before it is used
    },
    "jemalloc": {"LD_PRELOAD": "libjemalloc.so.2", "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1"},
}


def allocator():
    """Which row of ALLOCATORS this process runs under. A preload that the loader could not find is an error."""
    maps = Path("/proc/self/maps").read_text()
    for name, environment in ALLOCATORS.items():
        library = environment.get("LD_PRELOAD")
        if library and library in os.environ.get("LD_PRELOAD", ""):
            if library.removesuffix(".2") not in maps:
                raise SystemExit(f"{library} is not installed: apt install libmimalloc2.0 libjemalloc2")
            return name
    return "glibc-keep" if "MALLOC_MMAP_MAX_" in os.environ else "glibc"


def process_status(key):
    """A line of /proc/self/status in bytes: "VmHWM" is the peak of resident memory, "VmRSS" what is resident now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def describe():
    cpu = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        cpu.setdefault(name.strip(), value.strip())
    wide = [flag for flag in cpu.get("flags", "").split() if flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = ["torch", "transformers", "peft", "flwr"]
    return {
        "cpu": cpu.get("model name"),
        "family_model": [cpu.get("cpu family"), cpu.get("model")],
        "cores": os.cpu_count(),
        "features": wide,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "commit": commit,
    }
