"""What the benches share: the machine, timing a command, memory of its processes, a run's report."""

import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def cache_folder():
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return pathlib.Path(os.environ.get("CINELEX_CACHE") or home / "cinelex")


def cinelex():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    executable = target / "release" / "cinelex"
    if not executable.exists():
        sys.exit(f"{executable} is not there: run cargo build --release first")
    return str(executable)


def first_line(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def heading():
    """Date, machine and versions, as every published number has them beside it."""
    model = platform.machine()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    print(f"{datetime.date.today()}; {cores} cores, {model}, load {os.getloadavg()[0]:.2f} before")
    print(f"{first_line([cinelex(), '--version'])}; {first_line(['ffmpeg', '-version'])}", flush=True)


def read_through(path):
    """So that no run is the one that reads the disk."""
    with open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def run_timed(command):
    """Wall-clock and CPU seconds of a command and its children, and what it printed."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        secs = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        out.seek(0)
        return secs, usage.ru_utime + usage.ru_stime, out.read().decode()


def run_together(commands):
    """Wall-clock seconds of commands side by side."""
    start = time.monotonic()
    running = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    if any(process.wait() for process in running):
        sys.exit(f"{' '.join(commands[0])} failed")
    return time.monotonic() - start


class Libraries:
    """Fresh libraries in a scratch folder, a new one for each run."""

    def __enter__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="cinelex-bench-"))
        self.count = 0
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)

    def index(self, source, arguments):
        self.count += 1
        library = self.folder / str(self.count)
        return [cinelex(), "index", str(source), "--library", str(library), "--json", *arguments]

    def print_size(self):
        """What the newest library takes on the disk, for each clip."""
        library = str(self.folder / str(self.count))
        printed = subprocess.run([cinelex(), "library", "info", library, "--json"], check=True, capture_output=True, text=True)
        info = json.loads(printed.stdout.splitlines()[0])
        print(
            f"  {info['bytes'] / info['clips']:,.0f} bytes a clip, all in: {info['bytes'] / 1e6:.1f} MB for "
            f"{info['clips']} clips, {info['segments']} segments, {info['cues']} cues",
            flush=True,
        )


def report(printed):
    """The `run` line of `index --json`."""
    return json.loads(printed.splitlines()[-1])


def print_pairs(name, pairs, names):
    """Medians and their ratio (first to second) of interleaved pairs of (wall, CPU)."""
    first, second = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    cpu = [statistics.median(pair[side][1] for pair in pairs) for side in (0, 1)]
    print(
        f"{name}: medians of {len(pairs)}: {names[0]} {first:.1f} s ({cpu[0]:.1f} s CPU), "
        f"{names[1]} {second:.1f} s ({cpu[1]:.1f} s CPU), ratio {first / second:.2f}",
        flush=True,
    )
    return first, second


def print_limits(run, wall):
    """What bounds a run, from its own counts: decoding, the network and captions, on all processors."""
    cores = len(os.sched_getaffinity(0))
    decoding = run["decoding"]
    stages = {stage["stage"]: stage for stage in run["stages"]}
    rest = run["cpu_secs"] - sum(stage["cpu_secs"] for stage in run["stages"])
    network = stages["encode"]["cpu_secs"] + max(rest, 0)
    captions = stages["caption"]["cpu_secs"] if "caption" in stages else 0
    limit = (decoding["cpu_secs"] + network + captions) / cores
    print(
        f"  limits: decoding what is needed {decoding['cpu_secs']:.1f} s CPU "
        f"({decoding['frames_decoded']} of "
        f"{decoding['frames_decoded'] + decoding['frames_skipped']} frames), the network "
        f"{network:.1f} s CPU, captions {captions:.1f} s CPU; all on {cores} cores {limit:.1f} s, "
        f"{100 * limit / wall:.0f} % of the {wall:.1f} s that it took",
        flush=True,
    )


def process_tree(root):
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = pathlib.Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            # The name, in parentheses, may hold anything; the parent is the second field after it.
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
    found, open_ = [], [root]
    while open_:
        pid = open_.pop()
        found.append(pid)
        open_ += children.get(pid, [])
    return found


def pss_kib(pid):
    try:
        for line in pathlib.Path("/proc", str(pid), "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass  # It has ended.
    return 0


def peak_memory(command, secs=None):
    """The highest sum of PSS in MiB over a command's processes, ten times a second, and how many
    there were then; stops the command after `secs`."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    peak, done = (0, 0), threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.1):
            sizes = [pss_kib(pid) for pid in process_tree(process.pid)]
            peak = max(peak, (sum(sizes), sum(size > 0 for size in sizes)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        process.wait(secs)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    done.set()
    watcher.join()
    return peak[0] / 1024, peak[1]
