"""Time `import edgekit` and `edgekit --help` in a fresh interpreter, compared with Python's own start."""

import subprocess
import sys
from statistics import median
from time import perf_counter

RUNS = 15
PROGRAMS = {
    "python -c pass": ["-c", "pass"],
    "import edgekit": ["-c", "import edgekit"],
    "edgekit --help": ["-m", "edgekit", "--help"],
}


def seconds(arguments: list[str]) -> float:
    started = perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - started


def main() -> None:
    print(f"median of {RUNS} fresh processes, interleaved; python {sys.version.split()[0]}")
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(RUNS):
        for name, arguments in PROGRAMS.items():
            times[name].append(seconds(arguments))
    bare = median(times["python -c pass"])
    for name, found in times.items():
        print(f"{name:<16} {1000 * median(found):6.0f} ms   {1000 * (median(found) - bare):6.0f} ms more than Python")


if __name__ == "__main__":
    main()
