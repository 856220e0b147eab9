"""Time and error of accountants on the golden rows, in one process and in alternating rounds.

usage: python measure.py [SECONDS] | python measure.py --table

Every call starts cold (our caches are cleared). A call that takes longer than SECONDS (default 25)
or more than 12 GiB is abandoned and recorded with the reason. Writes results.json beside this file;
--table prints it as Markdown. Needs dp-accounting.
"""

import csv
import logging
import os
import resource
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.support import made_by, markdown_table, read_results, write_results

HERE = Path(__file__).parent
EPS_ERRORS = (0.1, 0.01)
GRIDS = (1e-3, 1e-4)
OURS = "dpclip prv"
COLUMNS = (
    "row",
    "reference ε",
    "ours: error, ms",
    "fastest other that is right: ms",
    "other / ours",
    "wrong",
    "no answer",
)


class Row(NamedTuple):
    """A schedule of Poisson-sampled Gaussian releases, and its true epsilon to the digits given."""

    name: str
    rate: float
    sigma: float
    steps: int
    delta: float
    truth: float
    half_a_unit: float


def rows() -> list[Row]:
    """rows.csv: half a unit in the last digit is the uncertainty of the reference."""
    with open(HERE / "rows.csv") as file:
        return [_row(record) for record in csv.DictReader(file)]


def _row(record: dict[str, str]) -> Row:
    text = record["epsilon"]
    digits = len(text.split(".")[1]) if "." in text else 0
    numbers = [float(record[key]) for key in ("sample_rate", "noise_multiplier")]
    return Row(
        record["name"],
        *numbers,
        int(record["steps"]),
        float(record["delta"]),
        float(text),
        0.5 * 10.0**-digits,
    )


def ours(name: str) -> Callable[[Row], float]:
    """Our accountant of that name, cold."""
    from accounting import PoissonGaussian, make_accountant
    from accounting.mechanisms import poisson_gaussian
    from accounting.mechanisms import poisson_gaussian_moments as gaussian_moments
    from accounting.rdp import curve as renyi

    def run(row: Row) -> float:
        gaussian_moments.log_moment_excess.cache_clear()
        gaussian_moments._log_binomials.cache_clear()
        renyi.curve_of.cache_clear()
        poisson_gaussian.poisson_cells.cache_clear()
        event = PoissonGaussian(row.rate, row.sigma)
        return make_accountant(name, "add-remove").quote(event, row.steps, row.delta).upper

    return run


def prv_library(eps_error: float) -> Callable[[Row], float]:
    """prv-accountant's upper end."""
    from prv_accountant import PRVAccountant
    from prv_accountant.privacy_random_variables import PoissonSubsampledGaussianMechanism

    def run(row: Row) -> float:
        accountant = PRVAccountant(
            prvs=[PoissonSubsampledGaussianMechanism(row.rate, row.sigma)],
            max_self_compositions=[row.steps],
            eps_error=eps_error,
            delta_error=row.delta / 1000,
        )
        return float(accountant.compute_epsilon(row.delta, [row.steps])[2])

    return run


def dp_accounting_tool(kind: str, grid: float = 0.0) -> Callable[[Row], float]:
    """dp_accounting's PLD accountant on that grid, or its RDP accountant."""
    import dp_accounting
    from dp_accounting import pld, rdp

    def run(row: Row) -> float:
        relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
        accountant: Any = (
            pld.PLDAccountant(relation, value_discretization_interval=grid)
            if kind == "pld"
            else rdp.RdpAccountant()
        )
        event = dp_accounting.PoissonSampledDpEvent(
            row.rate, dp_accounting.GaussianDpEvent(row.sigma)
        )
        accountant.compose(event, row.steps)
        return float(accountant.get_epsilon(row.delta))

    return run


def opacus_tool(kind: str) -> Callable[[Row], float]:
    """Opacus' accountant of that name, default settings."""
    from opacus.accountants import create_accountant

    def run(row: Row) -> float:
        accountant = create_accountant(kind)
        accountant.history = [(row.sigma, row.rate, row.steps)]
        return float(accountant.get_epsilon(delta=row.delta))

    return run


def tools() -> dict[str, Callable[[Row], float]]:
    """Every accountant by name."""
    return {
        OURS: ours("prv"),
        "dpclip rdp": ours("rdp"),
        **{f"prv-accountant {error}": prv_library(error) for error in EPS_ERRORS},
        **{f"dp-accounting PLD {grid:g}": dp_accounting_tool("pld", grid) for grid in GRIDS},
        "dp-accounting RDP": dp_accounting_tool("rdp"),
        "Opacus PRV": opacus_tool("prv"),
        "Opacus RDP": opacus_tool("rdp"),
    }


def attempt(
    tool: Callable[[Row], float], row: Row, seconds: int
) -> tuple[float | None, float, str]:
    """(epsilon, wall seconds, what went wrong)."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    start = time.perf_counter()
    try:
        return tool(row), time.perf_counter() - start, ""
    except TimeoutError:
        return None, time.perf_counter() - start, f"over {seconds} s"
    except Exception as failure:
        return None, time.perf_counter() - start, type(failure).__name__
    finally:
        signal.alarm(0)


def judged(epsilon: float | None, row: Row) -> str:
    """Whether an answer is a bound, and a close one."""
    if epsilon is None or epsilon == float("inf"):
        return "no answer"
    # Held against the reference to the digits it has only; two inversions of the same closed form
    # differ in 1e-9.
    if epsilon < row.truth - row.half_a_unit - 1e-9 * row.truth:
        return "WRONG"
    return (
        "right" if epsilon <= row.truth + max(1e-3 * row.truth, 1e-4) + row.half_a_unit else "loose"
    )


def measure(seconds: int) -> dict[str, Any]:
    """All tools on all rows: one round for everything, four more for what is fast."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, resource.RLIM_INFINITY))
    accountants = tools()
    for tool in accountants.values():  # imports and first-call set-up
        attempt(tool, rows()[0], seconds)
    found: dict[str, dict[str, Any]] = {}
    for row in rows():
        results: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in accountants}
        for turn in range(5):
            for name, tool in accountants.items():
                known = results[name]["seconds"]
                if turn and (known[0] > 1.5 or results[name]["failure"]):
                    continue
                epsilon, spent, failure = attempt(tool, row, seconds)
                known.append(spent)
                results[name] |= {
                    "epsilon": epsilon,
                    "failure": failure,
                    "verdict": judged(epsilon, row),
                }
        for result in results.values():
            result["rounds"] = len(result["seconds"])
            result["seconds"] = round(statistics.median(result["seconds"]), 4)
        found[row.name] = results
        print(
            row.name,
            {name: (r["epsilon"], r["seconds"], r["verdict"]) for name, r in results.items()},
            flush=True,
        )
    packages = ("dp-accounting", "numpy", "opacus", "prv-accountant", "scipy")
    return {
        **made_by("python experiments/performance/accounting/measure.py", *packages),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "rows": found,
    }


def table(results: dict[str, Any]) -> str:
    """Row by row: ours, the fastest other tool that is right, and who is wrong."""
    lines = []
    for row in rows():
        entries = results["rows"][row.name]
        mine = entries[OURS]
        others = {name: entry for name, entry in entries.items() if not name.startswith("dpclip")}
        right = {name: entry for name, entry in others.items() if entry["verdict"] == "right"}
        best = min(right, key=lambda name: right[name]["seconds"]) if right else None
        error = (mine["epsilon"] - row.truth) / row.truth if row.truth else mine["epsilon"]
        fastest = f"{best}: {1e3 * right[best]['seconds']:.0f}" if best else "none"
        ratio = f"{right[best]['seconds'] / mine['seconds']:.1f}" if best else "—"
        wrong, silent = (
            ", ".join(name for name, entry in others.items() if entry["verdict"] == verdict) or "—"
            for verdict in ("WRONG", "no answer")
        )
        own = f"{mine['verdict']}, {error:+.1e}, {1e3 * mine['seconds']:.0f}"
        lines.append([row.name, f"{row.truth:g}", own, fastest, ratio, wrong, silent])
    return markdown_table(COLUMNS, lines)


def main(arguments: list[str]) -> None:
    """Measure, or print the table of what was measured."""
    path = HERE / "results.json"
    if arguments == ["--table"]:
        print(table(read_results(path)))
        return
    results = measure(int(arguments[0]) if arguments else 25)
    write_results(path, results)
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
