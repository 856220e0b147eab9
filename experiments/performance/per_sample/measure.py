"""What a private step costs beside the plain one: engines in alternating rounds of one process, one
thread.

usage: python measure.py time [ROUNDS [MODEL ...]]     CPU time of steps, micro-batches and updates
       python measure.py memory [MODEL ...]            growth of the peak, a fresh process each
       python measure.py layers [ROUNDS [MODEL ...]]   clipping each layer in the backward pass
       python measure.py --table                       the tables of docs/results.md
       python measure.py --figure                      figure.svg

Writes results.json beside this file. Freed memory is kept by the C library
(`dpclip.memory.reuse_heap`) for all.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dpclip.memory import reuse_heap

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.support import ResultsFile, made_by, markdown_table, read_results

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
OURS, QUIET, PLAIN, LAYERS = "ours", "ours, no noise", "non-private", "ours auto per-layer"
PEERS = {
    "small GPT-2": ["Opacus hooks", "Opacus functorch", "Opacus ghost", "vmap"],
    "small GPT-2 untied": ["Opacus ghost+linear", "Opacus fast gradient clipping+linear", "vmap"],
    "GPT-2 124M": ["Opacus hooks", "Opacus ghost", "vmap"],
    "GPT-2 124M LoRA": ["Opacus hooks", "Opacus ghost", "vmap"],
    "MLP": ["Opacus hooks", "Opacus ghost", "Opacus fast gradient clipping", "vmap"],
    "WRN-16-4": ["Opacus hooks", "Opacus ghost", "vmap"],
    "LSTM": ["Opacus hooks", "Opacus ghost", "vmap"],
}
MEMORY_ROWS = {"WRN-16-4": 64}
LOGICAL = 64  # rows of the logical batch whose cost is put together from its parts


def cpu_seconds(action: Callable[[], None]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return [round(q, 4) for q in statistics.quantiles(values, n=4)]


def build_all(name: str, modes: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The engines that run on this model, warmed up, and why the others do not."""
    from engines import make

    steps, failures = {}, {}
    for mode in modes:
        try:
            noise = 0.0 if mode in (PLAIN, QUIET) else 1.0
            step = make(name, OURS if mode == QUIET else mode, noise)
            step.step()
            step.step()
            steps[mode] = step
        except Exception as error:  # a peer's failure is a result
            failures[mode] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return steps, failures


def time_model(name: str, rounds: int, engines: list[str]) -> dict[str, Any]:
    """Alternate the engines, each round beginning with another one."""
    steps, failures = build_all(name, engines)
    spent: dict[str, list[float]] = {mode: [] for mode in steps}
    parts: dict[str, list[float]] = {
        "plain micro": [],
        "plain update": [],
        "our micro": [],
        "our update": [],
    }
    for index in range(rounds):
        modes = list(steps)[index % len(steps) :] + list(steps)[: index % len(steps)]
        for mode in modes:
            spent[mode].append(cpu_seconds(steps[mode].step))
        if name == "GPT-2 124M" and LAYERS not in steps:
            measure_parts(steps, parts)
    ratios = {
        mode: [a / b for a, b in zip(times, spent[PLAIN], strict=True)]
        for mode, times in spent.items()
    }
    found: dict[str, Any] = {
        "rounds": rounds,
        "ms": {mode: round(1e3 * statistics.median(times), 1) for mode, times in spent.items()},
        "ratio": {mode: quartiles(values) for mode, values in ratios.items()},
        "failures": failures,
    }
    if parts["plain micro"]:
        found["logical batch"] = logical(parts)
    return found


def measure_parts(steps: dict[str, Any], parts: dict[str, list[float]]) -> None:
    """Micro-batch and update apart, for steps that accumulate."""
    plain, ours = steps[PLAIN], steps[OURS]
    plain.micro()  # so that the measured one adds to gradients that are there
    parts["plain micro"].append(cpu_seconds(plain.micro))
    parts["plain update"].append(cpu_seconds(plain.finish))
    start = cpu_seconds(ours.engine.begin)
    parts["our micro"].append(cpu_seconds(ours.micro))
    parts["our update"].append(start + cpu_seconds(ours.engine.finish))


def logical(parts: dict[str, list[float]]) -> dict[str, Any]:
    """The ratio for a logical batch of LOGICAL rows in micro-batches of 2."""
    count = LOGICAL // 2
    rows = zip(*parts.values(), strict=True)
    ratios = [
        (count * ours + ours_update) / (count * plain + update)
        for plain, update, ours, ours_update in rows
    ]
    medians = {key: round(1e3 * statistics.median(times), 1) for key, times in parts.items()}
    return {"rows": LOGICAL, "micro-batch": 2, "ratio": quartiles(ratios), "ms": medians}


def growth(name: str, mode: str) -> float:
    """Megabytes by which three steps lift the peak over what was held before the first."""
    from engines import make

    noise = 0.0 if mode == PLAIN else 1.0
    step = make(name, mode, noise, MEMORY_ROWS.get(name))
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed while building counts for the steps
    held = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    for _ in range(3):
        step.step()
    status = Path("/proc/self/status").read_text()  # ru_maxrss may be the parent's
    return int(status.split("VmHWM:")[1].split()[0]) / 1024 - held


def memory(names: list[str], engines: dict[str, list[str]]) -> dict[str, Any]:
    """Every engine in a process of its own; the allocator as shipped."""
    found: dict[str, Any] = {}
    for name in names:
        for mode in engines[name]:
            command = [sys.executable, str(HERE / "measure.py"), "--growth", name, mode]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode == 0:
                found.setdefault(name, {})[mode] = round(float(run.stdout.split()[-1]))
            print(name, mode, run.stdout.split()[-1:] or "fails", flush=True)
    return found


def table(results: dict[str, Any]) -> str:
    """All tables in Markdown."""
    times, sizes = [], []
    for name, row in results["time"].items():
        others = {m: q for m, q in row["ratio"].items() if m not in (PLAIN, OURS, QUIET)}
        best = min(others, key=lambda m: others[m][1])
        rest = [f"{m} {q[1]:.2f}" for m, q in others.items() if m != best]
        rest += [f"{m}: fails" for m in row["failures"]]
        own = [spread(row["ratio"][mode]) for mode in (OURS, QUIET)]
        fastest = f"{best} {spread(others[best])}"
        times.append([name, f"{row['ms'][PLAIN]:.0f}", *own, fastest, "; ".join(rest)])
    for name, row in results["memory"].items():
        rest = [f"{m} {v / row[PLAIN]:.2f}" for m, v in row.items() if m not in (PLAIN, OURS)]
        sizes.append([name, f"{row[PLAIN]}", f"{row[OURS] / row[PLAIN]:.2f}", "; ".join(rest)])
    columns = ("model", "non-private, ms", "ours", "ours, no noise", "best other", "others")
    tables = [
        markdown_table(columns, times),
        markdown_table(("model", "non-private, MB", "ours", "others"), sizes),
        layers_table(results.get("layers", {})),
    ]
    return "\n\n".join(tables)


def layers_table(rows: dict[str, Any]) -> str:
    """What clipping inside the backward pass costs and saves."""
    lines = []
    for name, row in rows.items():
        times = [spread(row["ratio"][mode]) for mode in (OURS, LAYERS)]
        sizes = [f"{row['memory'][mode] / row['memory'][PLAIN]:.2f}" for mode in (OURS, LAYERS)]
        lines.append([name, *times, *sizes])
    columns = ("model", "time, flat", "time, per layer", "memory, flat", "memory, per layer")
    return markdown_table(columns, lines)


def spread(values: list[float]) -> str:
    """median [q25, q75]."""
    return f"{values[1]:.2f} [{values[0]:.2f}, {values[2]:.2f}]"


def figure(results: dict[str, Any]) -> None:
    """Ratios on a logarithmic axis, one row a model."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    names = list(results["time"])
    chart, axis = pyplot.subplots(figsize=(8, 0.6 * len(names) + 1.2))
    kinds = [OURS, QUIET, "Opacus hooks", "Opacus ghost", "vmap"]
    for kind, marker in zip(kinds, "osD^v", strict=True):
        points = [
            (q[1], len(names) - 1 - i)
            for i, name in enumerate(names)
            for m, q in results["time"][name]["ratio"].items()
            if m.removesuffix("+linear") == kind
        ]
        axis.scatter(*zip(*points, strict=True), label=kind, marker=marker, s=40)
    axis.set_xscale("log")
    axis.set_xticks(
        [1, 1.2, 1.5, 2, 3, 5, 10, 20, 50], ["1", "1.2", "1.5", "2", "3", "5", "10", "20", "50"]
    )
    axis.minorticks_off()
    axis.set_yticks(range(len(names)), names[::-1])
    axis.set_xlabel("CPU time of a step over the non-private step")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    chart.tight_layout()
    chart.savefig(HERE / "figure.svg", metadata={"Date": None})


def save(key: str, value: dict[str, Any]) -> None:
    """Merge one measurement into results.json."""
    file = ResultsFile(RESULTS, {})
    command = "OMP_NUM_THREADS=1 python measure.py time, then memory, then layers"
    file.results |= made_by(command, "torch", "opacus", "transformers", "peft", "numpy")
    file.results[key] = file.results.get(key, {}) | value
    file.write()


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if arguments[:1] == ["--growth"]:
        print(growth(*arguments[1:]))
    elif arguments == ["--table"]:
        print(table(read_results(RESULTS)))
    elif arguments == ["--figure"]:
        figure(read_results(RESULTS))
    elif arguments[:1] == ["memory"]:
        names = arguments[1:] or list(PEERS)
        save("memory", memory(names, {name: [PLAIN, OURS, *PEERS[name]] for name in names}))
    else:
        key = arguments[0]
        reuse_heap()
        rounds = int(arguments[1]) if len(arguments) > 1 else 20
        for name in arguments[2:] or PEERS:
            three = [PLAIN, OURS, LAYERS]
            found = time_model(
                name, rounds, three if key == "layers" else [PLAIN, OURS, QUIET, *PEERS[name]]
            )
            if key == "layers":
                found["memory"] = memory([name], {name: three})[name]
            print(name, found["ratio"], found["failures"], flush=True)
            save(key, {name: found})


if __name__ == "__main__":
    main(sys.argv[1:])
