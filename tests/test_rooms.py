"""The rooms of the house: who may import whom."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUTSIDE = ("vfmbench.methods", "vfmbench.baselines", "vfmbench.tasks")

ROOMS = tuple(
    f"vfmbench.{room}"
    for room in (
        "cli",
        "commands",
        "conformance",
        "launching",
        "metrics",
        "models",
        "reporting",
        "results",
        "running",
        "training",
        "weights",
    )
)

# Package -> what it must not import. The harness knows no particular method, baseline, operator or data set.
FORBIDDEN = {
    "vfmbench": OUTSIDE,
    "vfmbench/errors.py": ("vfmbench.", "torch"),
    "vfmbench/options.py": ("torch", *ROOMS),
    "vfmbench/yaml_lines.py": ("torch", *ROOMS),
    "vfmbench/config.py": ("torch", *ROOMS),
    "vfmbench/commands/arguments.py": ("torch", *(room for room in ROOMS if room != "vfmbench.commands")),
    "vfmbench/measurement.py": ("vfmbench.",),
    "vfmbench/metering.py": ("vfmbench.interfaces", *ROOMS),
    "vfmbench/precision.py": ("vfmbench.", "torch"),
    "vfmbench/domains.py": ("vfmbench.interfaces", *ROOMS),
    "vfmbench/restoration.py": ROOMS,
    "vfmbench/results": (
        "torch",
        "vfmbench.launching",
        "vfmbench.metrics",
        "vfmbench.running",
        "vfmbench.models",
        "vfmbench.training",
        "vfmbench.reporting",
        "vfmbench.weights",
        "vfmbench.cli",
        "vfmbench.commands",
    ),
    "vfmbench/weights": (
        "vfmbench.running",
        "vfmbench.metrics",
        "vfmbench.training",
        "vfmbench.reporting",
        "vfmbench.cli",
        "vfmbench.commands",
    ),
    "vfmbench/conformance": (
        "vfmbench.running",
        "vfmbench.metrics",
        "vfmbench.training",
        "vfmbench.launching",
        "vfmbench.reporting",
        "vfmbench.cli",
        "vfmbench.commands",
    ),
    "vfmbench/interfaces": (*(room for room in ROOMS if room != "vfmbench.weights"), "vfmbench.config", "vfmbench.registry"),
    # What the interfaces are made of knows nothing of them.
    "vfmbench/weights/store.py": ("vfmbench.interfaces", "vfmbench.models"),
    "vfmbench/models/compilation.py": ("vfmbench.interfaces", *(room for room in ROOMS if room != "vfmbench.models")),
    "vfmbench/randomness.py": ("vfmbench.",),
    "vfmbench/models": (
        "vfmbench.running",
        "vfmbench.metrics",
        "vfmbench.training",
        "vfmbench.reporting",
        "vfmbench.cli",
        "vfmbench.commands",
    ),
    "vfmbench/metrics": (
        "vfmbench.running",
        "vfmbench.training",
        "vfmbench.reporting",
        "vfmbench.models",
        "vfmbench.cli",
        "vfmbench.commands",
    ),
    "vfmbench/launching": ("vfmbench.reporting", "vfmbench.cli", "vfmbench.commands"),
    "vfmbench/running": ("vfmbench.training", "vfmbench.reporting", "vfmbench.cli", "vfmbench.commands"),
    "vfmbench/training": ("vfmbench.running", "vfmbench.reporting", "vfmbench.cli", "vfmbench.commands"),
    "vfmbench/reporting": ("vfmbench.training", "vfmbench.cli", "vfmbench.commands"),
    "tasks": ("vfmbench.methods", "vfmbench.baselines", "vfmbench.running", "vfmbench.metrics", "vfmbench.training"),
    "methods": ("vfmbench.baselines", "vfmbench.tasks", "vfmbench.running", "vfmbench.metrics"),
    "baselines": ("vfmbench.methods", "vfmbench.tasks", "vfmbench.running", "vfmbench.metrics", "vfmbench.training"),
}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_room_imports_nothing_upstream(room):
    target = ROOT / room
    files = [target] if target.is_file() else sorted(target.rglob("*.py"))
    assert files
    for file in files:
        for module in imported_modules(file):
            for forbidden in FORBIDDEN[room]:
                assert not (module + ".").startswith(forbidden.rstrip(".") + "."), f"{file.relative_to(ROOT)} imports {module}"


def test_only_figures_of_methods_draw():
    for file in sorted((ROOT / "methods").glob("*.py")):
        assert not any(name.startswith("vfmbench.reporting") for name in imported_modules(file)), file


@pytest.mark.parametrize("module", ["domains", "precision", "registry", "config"])
def test_what_readers_of_results_need_imports_no_torch(module):
    code = f"import vfmbench.{module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Where the harness names a suite, a task or a method after all. One place for defaults; the others are to go.
NAMED = {
    "vfmbench/config.py": {"digits", "vfm", "gaussian_deblur"},
    "vfmbench/commands/arguments.py": {"imagenet256"},  # whose networks `weights convert` is for by default
    "vfmbench/commands/preview.py": {"adjoint"},  # a method without networks, as a plan has to have one
}
# Where such a name is an ordinary word: a distribution, an interpolation, a column's heading.
WORDS = {
    "vfmbench/interfaces/data.py": {"gaussian"},
    "vfmbench/models/dino.py": {"bicubic"},
    "vfmbench/reporting/grid.py": {"adjoint"},
    "vfmbench/reporting/weights_table.py": {"folder"},
}


def strings(path: Path) -> set[str]:
    """The string literals of a file, docstrings left out."""
    tree = ast.parse(path.read_text())
    described = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    statements = [statement for node in described for statement in node.body if isinstance(statement, ast.Expr)]
    documentation = {id(statement.value) for statement in statements}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation]
    return {node.value for node in constants if isinstance(node.value, str)}


def test_the_harness_names_no_suite_task_or_method():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    names = {name for kind in ("suites", "tasks", "samplers") for name in groups[f"vfmbench.{kind}"]}
    links = [path for path in (ROOT / "vfmbench").iterdir() if path.is_symlink()]
    assert len(links) == 4
    found = {}
    for file in sorted((ROOT / "vfmbench").rglob("*.py")):
        if any(link in file.parents for link in links):
            continue
        path = str(file.relative_to(ROOT))
        named = (strings(file) & names) - WORDS.get(path, set())
        if named:
            found[path] = named
    # Equal, so that what has gone home leaves the list too.
    assert found == NAMED
    assert all(words <= strings(ROOT / path) for path, words in WORDS.items())
