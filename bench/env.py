"""Say on what a number was measured: machine, build, revision; and warn of what spoils it."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
BUSY_LIMIT = 0.10  # share of all CPUs; with nothing else running 0.00 to 0.03 is normal

# Asked of a child with another working directory, so that the installed kvps answers and this process stays small.
PROBE = """
import importlib.metadata, importlib.util, json
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
found = {name: version(name) for name in ("kvps", "numpy", "lmdb", "nltk", "kenlm")}
try:
    import lmdb
    found["liblmdb"] = ".".join(map(str, lmdb.version()))
except ImportError:
    pass
spec = importlib.util.find_spec("kvps")
found["kernels"] = list(spec.submodule_search_locations) if spec else []
if spec and not found["kvps"]:
    found["kvps"] = "a development tree"
print(json.dumps(found))
"""


def output(command, **options):
    """Return what a command prints, stripped, or "" when it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def field(path, name):
    """Return the first value of `name` in a file of "name : value" lines such as /proc/cpuinfo, or None."""
    try:
        found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", Path(path).read_text(), re.M)
    except OSError:
        return None
    return found.group(1).strip() if found else None


def caches():
    """Return the sizes of the CPU's caches as the kernel tells them, such as {"L2": "2048K", "L3": "32768K"}."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (cache / "type").read_text().strip() != "Instruction":
            found["L" + (cache / "level").read_text().strip()] = (cache / "size").read_text().strip()
    return found


def file_system(directory):
    """Return "type on device" of the file system that holds `directory`."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, point, kind = line.split(" ")[:3]
        if Path(directory).resolve().is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, f"{kind} on {device}")
    return best[1]


def compiler(folders):
    """Return (compiler, optimisation level or None) of the installed kernels, from what gcc wrote into them.

    With -g the debugging data hold the whole command line; without, there is only the compiler's name.
    """
    for kernel in sorted(file for folder in folders for file in Path(folder).glob("_*.so")):
        content = kernel.read_bytes()
        producer = re.search(rb"GNU C\+\+\d+ [^\0]+", content) or re.search(rb"GCC: \([^\0]+", content)
        if producer:
            text = producer.group().decode(errors="replace")
            levels = re.findall(r" (-O\w+)", text)  # the last one counts
            return text, levels[-1] if levels else None
    return "unknown", None


def busy_share(seconds=0.3):
    """Return the share of all CPUs that was busy during the next moments, this process apart (it sleeps)."""
    def ticks():
        values = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(values), values[3] + values[4]  # all; idle and waiting for disks
    total, idle = ticks()
    time.sleep(seconds)
    total, idle = (now - before for now, before in zip(ticks(), (total, idle), strict=True))
    return 1 - idle / total if total else 0.0


def describe(work):
    """Return what the numbers depend on as a dict, and a list of warnings.

    Args:
        work: directory in which the benchmarks write.
    """
    probe = json.loads(output([sys.executable, "-c", PROBE], cwd=work) or "{}")
    built_with, level = compiler(probe.pop("kernels", []))
    revision = output(["git", "-C", CHECKOUT, "rev-parse", "--short=12", "HEAD"])
    dirty = bool(output(["git", "-C", CHECKOUT, "status", "--porcelain", "--untracked-files=no"]))
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    facts = {
        "cpu": field("/proc/cpuinfo", "model name") or "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "caches": caches(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "huge_pages": huge_pages.read_text().strip() if huge_pages.exists() else "unknown",
        "disk": file_system(work),
        "disk_free_bytes": shutil.disk_usage(work).free,
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        **probe,
        "compiler": built_with,
        "peers": {name: bool(shutil.which(name)) for name in ("lmplz", "build_binary", "query", "redis-server")},
        "revision": revision or "no git",
        "dirty": dirty,
        "load": os.getloadavg()[0],
        "busy": round(busy_share(), 3),
    }
    warnings = []
    if facts["busy"] > BUSY_LIMIT:
        warnings.append(f"the machine is loaded: {facts['busy']:.0%} of its CPUs are busy before anything runs")
    if level in ("-O0", "-Og"):
        warnings.append(f"the kernels are a debug build ({level}): no time below means anything")
    if os.environ.get("KVPS_CYTHON_DEBUG") == "1":
        warnings.append("KVPS_CYTHON_DEBUG=1 is set: kernels built now have checks on")
    if not probe.get("kvps"):
        warnings.append("this Python finds no kvps")
    if dirty:
        warnings.append("the checkout has uncommitted changes: the revision does not say what was measured")
    if facts["disk"].startswith(("tmpfs", "ramfs")):
        warnings.append("the work directory is in memory: nothing is written to a disk")
    return facts, warnings
