"""The import rules of the architecture, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "accounting").rglob("*.py"), *(ROOT / "dpclip").rglob("*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(target: str, within: str) -> set[str]:
    """Modules below `within` that import `target` or something below it."""
    return {
        module_name(path)
        for path in SOURCES
        if f"{module_name(path)}.".startswith(f"{within}.")
        and any(f"{name}.".startswith(f"{target}.") for name in imports(path))
    }


def test_the_reader_of_imports_sees_them() -> None:
    assert "dpclip.per_sample.watching.watcher" in importers("opacus", "dpclip")
    assert "dpclip.budget.ledger" in importers("accounting", "dpclip")


# --- the floor plan: each room stands on those after it -------------------------------------------

FLOORS = {
    "dpclip": (
        ("cli", "testing"),
        ("tuning", "train", "integrations", "loop"),
        ("record",),
        ("engine",),
        ("diagnosis",),
        ("guards",),
        ("budget",),
        ("sampling",),
        ("tasks",),
        ("models", "optim", "per_sample"),
        ("noise",),
        ("clipping", "postprocess", "report"),
        (),
    ),
    "accounting": (
        ("statement",),
        ("comparison", "journal", "calibration"),
        ("meaning", "filters"),
        ("accountant", "prv_library"),
        ("pld",),
        ("rdp",),
        ("schedules",),
        ("events",),
        ("mechanisms",),
        ("odds", "interval", "registry", "wording"),
        ("errors",),
    ),
}
MOST_FLAT_FILES = 12
ROOMS = 8


def room_of(module: str) -> tuple[str, str]:
    """The package and its room: a folder, or a flat file's own name."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def graph() -> dict[str, set[str]]:
    """Who imports whom, TYPE_CHECKING and imports inside functions counted."""
    modules = {module_name(path) for path in SOURCES}
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        name, taken = module_name(path), set(imports(path))
        packages = {t for t in taken if any(x.startswith(f"{t}.") and x in modules for x in taken)}
        found[name] = (taken & modules) - {name} - packages
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that can be reached from themselves, each group once."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        queue = list(edges[start])
        while queue:
            node = queue.pop()
            if node not in seen:
                seen.add(node)
                queue += edges[node]
        return seen

    reach = {name: reached(name) for name in edges}
    groups = {
        tuple(sorted(m for m in edges if name in reach[m] and m in reach[name])) for name in edges
    }
    return sorted(list(group) for group in groups if group)


def test_the_finder_of_circles_finds_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_there_is_no_circle_of_any_kind() -> None:
    assert circles(graph()) == []


def test_a_room_imports_only_from_those_below_it() -> None:
    for package, floors in FLOORS.items():
        height = {room: len(floors) - level for level, rooms in enumerate(floors) for room in rooms}
        wrong = [
            f"{module} -> {target}"
            for module, targets in graph().items()
            for target in targets
            if room_of(module)[0] == room_of(target)[0] == package
            and room_of(module) != room_of(target)
            and room_of(module)[1] not in ("", "__main__")
            and height.get(room_of(module)[1], 0) <= height.get(room_of(target)[1], 0)
            and not (package == "dpclip" and height.get(room_of(target)[1], 0) == 0)
        ]
        assert wrong == [], package


def test_every_room_has_its_floor() -> None:
    for package, floors in FLOORS.items():
        folders = {p.parent.name for p in (ROOT / package).glob("*/__init__.py")}
        assert folders <= {room for rooms in floors for room in rooms}, package
    assert len(list((ROOT / "accounting").glob("*/__init__.py"))) == ROOMS
    flat = {p.stem for p in (ROOT / "dpclip").glob("*.py")} - {"__init__", "__main__"}
    assert len(flat) <= MOST_FLAT_FILES


# --- what the privacy boundary rests on -----------------------------------------------------------


@pytest.mark.parametrize("target", ["torch", "dpclip", "transformers", "opacus", "pandas"])
def test_accounting_imports_no(target: str) -> None:
    assert importers(target, "accounting") == set()


@pytest.mark.parametrize(
    "target",
    [
        "dpclip.noise",
        "dpclip.budget",
        "dpclip.postprocess",
        "accounting",
        "dpclip.per_sample",
        "dpclip.sampling",
    ],
)
def test_clipping_knows_nothing_of(target: str) -> None:
    assert importers(target, "dpclip.clipping") == set()


@pytest.mark.parametrize("within", ["dpclip.noise", "dpclip.postprocess"])
def test_what_comes_after_the_sum_knows_no_rule(within: str) -> None:
    assert importers("dpclip.clipping", within) == set()


@pytest.mark.parametrize("within", ["dpclip.postprocess", "dpclip.clipping.control"])
@pytest.mark.parametrize("target", ["dpclip.per_sample", "dpclip.sampling", "dpclip.engine"])
def test_the_released_side_never_imports(within: str, target: str) -> None:
    assert importers(target, within) == set()


def test_opacus_is_imported_by_the_gradient_views_only() -> None:
    allowed = ("dpclip.per_sample", "dpclip.nn", "dpclip.integrations")
    assert {m for m in importers("opacus", "dpclip") if not m.startswith(allowed)} == set()


def test_accounting_is_imported_where_budgets_are_made_and_told() -> None:
    rooms = {room_of(module)[1] for module in importers("accounting", "dpclip")}
    told = {"cli", "tuning", "train", "loop", "record", "engine", "budget", "sampling", "report"}
    ground = {"errors", "registry"}  # one kind of error and of registry, under both packages
    assert rooms <= told | ground | {"testing"}
    for module in ground:
        assert set(graph()[f"dpclip.{module}"]) - {"dpclip.errors"} == {f"accounting.{module}"}


def test_every_registry_is_a_registry() -> None:
    import importlib

    from accounting.registry import Registry

    homes = {
        "accounting.events": "EVENTS",
        "dpclip.clipping": "RULES",
        "dpclip.clipping.control": "CONTROLLERS",
        "dpclip.noise.mechanisms": "MECHANISMS",
        "dpclip.per_sample": "BACKENDS",
        "dpclip.postprocess": "CLIPPERS",
        "dpclip.sampling": "SCHEMES",
        "dpclip.tasks": "TASKS",
        "dpclip.train.optimization": "OPTIMIZERS",
        "dpclip.train.optimization ": "SCHEDULES",
    }
    for home, name in homes.items():
        registry = getattr(importlib.import_module(home.strip()), name)
        assert isinstance(registry, Registry)
        assert registry.names()
        assert registry.group, f"{name} can be joined from outside"


def calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            target = node.func
            if isinstance(target, ast.Subscript):
                target = target.value
            yield target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


def test_released_values_are_made_in_one_module_only() -> None:
    makers = {module_name(path) for path in SOURCES if "Released" in set(calls(path))}
    assert makers == {"dpclip.noise.release"}


def test_gradient_noise_is_drawn_in_one_module_only() -> None:
    assert importers("dpclip.noise.gaussian", "dpclip") == {"dpclip.noise.release"}
    draws = {"randn", "randn_like", "normal", "normal_", "standard_normal"}
    makers = {
        module_name(path)
        for path in SOURCES
        if draws & set(calls(path)) and module_name(path).startswith("dpclip")
    }
    # an agent's own, after the release, protects nothing; the laws make gradients up
    others = {"dpclip.clipping.control.sac", "dpclip.testing.rules", "dpclip.testing.shift_cases"}
    assert makers - others == set()


def test_no_module_is_a_heap() -> None:
    names = {part for path in SOURCES for part in module_name(path).split(".")}
    assert names.isdisjoint({"utils", "util", "helpers", "helper", "misc", "common"})


def test_files_stay_small_enough_to_know() -> None:
    long = {module_name(p): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_accounting_works_where_torch_is_missing() -> None:
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch': raise ImportError('torch is not installed')\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import accounting as a\n"
        "book = a.make_accountant('prv', 'add-remove')\n"
        "book.charge(a.PoissonGaussian(0.01, 1.0), 1000)\n"
        "print(book.epsilon(1e-5).upper)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert 1.82 < float(done.stdout) < 1.84


@pytest.mark.parametrize(
    "verb", ["--help", "epsilon --help", "calibrate --help", "report --help", "train --help"]
)
def test_help_needs_no_torch(verb: str) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['dpclip', *{verb.split()!r}]\n"
        "from dpclip.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_public_names_are_sorted_complete_and_documented() -> None:
    import accounting
    import dpclip

    for package in (accounting, dpclip):
        assert list(package.__all__) == sorted(package.__all__)
        for name in package.__all__:
            value = getattr(package, name)
            if callable(value) and not hasattr(value, "__origin__"):
                assert value.__doc__, f"{package.__name__}.{name} has no docstring"


def public_functions(path: Path) -> Iterator[ast.FunctionDef]:
    """Functions and methods without a leading underscore, of public classes."""
    queue: list[ast.AST] = [ast.parse(path.read_text())]
    while queue:
        for node in ast.iter_child_nodes(queue.pop()):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield node
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                queue.append(node)


def test_most_public_functions_with_arguments_say_what_these_are() -> None:
    told = total = 0
    for path in SOURCES:
        for function in public_functions(path):
            arguments = [*function.args.args, *function.args.kwonlyargs]
            if [a for a in arguments if a.arg not in ("self", "cls")]:
                docstring = ast.get_docstring(function) or ""
                total += 1
                told += any(f"{part}:" in docstring for part in ("Args", "Returns", "Raises"))
    assert told / total > 0.5
