"""Run the configurations of this folder and keep their statements.

usage: python run.py DATA_DIR MODELS_DIR [NAME ...]

DATA_DIR holds e2e_nlg/ and sst2/ (see README.md); MODELS_DIR holds wikitext-gpt2-4x256/ and
gpt2-small/. The runs whose names begin with builtin read neither. Each result is written to
results/NAME.json: the run's statement, the seconds it took and the machine.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import machine, read_results, write_results

HERE = Path(__file__).parent
E2E = ("e2e_nlg/trainset.csv", "e2e_nlg/devset.csv")
SST2 = ("sst2/train.tsv.gz", "sst2/dev.tsv")
# the data, if not the built-in notes, and the model, if not the built-in one
RUNS: dict[str, tuple[tuple[str, str] | None, str | None]] = {
    "builtin": (None, None),
    "builtin_lora": (None, None),
    "builtin_without_privacy": (None, None),
    "sst2_builtin": (SST2, None),
    "e2e_builtin": (E2E, None),
    "e2e_wikitext": (E2E, "wikitext-gpt2-4x256"),
    "e2e_gpt2_scratch": (E2E, "gpt2-small"),
}


def command(name: str, data: Path, models: Path, output: Path) -> list[str]:
    """The `dpclip train` command of one run."""
    files, model = RUNS[name]
    words = ["dpclip", "train", "--config", str(HERE / f"{name}.toml"), "--output", str(output)]
    if files is not None:
        train, held_out = files
        words += ["--data", str(data / train), "--eval-data", str(data / held_out)]
    return words + (["--model", str(models / model)] if model else [])


def main(data: Path, models: Path, names: list[str]) -> None:
    """Run what was asked for, all by default."""
    for name in names or list(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            output, start = Path(folder) / name, time.perf_counter()
            subprocess.run(command(name, data, models, output), check=True)
            statement = read_results(output / "public" / "statement.json")
            keep(name, statement, time.perf_counter() - start)


def keep(name: str, statement: dict[str, object], seconds: float) -> None:
    """Write the result beside the configuration."""
    result = {"run": name, "seconds": round(seconds), "machine": machine(), "statement": statement}
    (HERE / "results").mkdir(exist_ok=True)
    write_results(HERE / "results" / f"{name}.json", result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
