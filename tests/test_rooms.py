"""The rooms of the house: who may import whom."""

import ast
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
    "vfmbench/restoration.py": ROOMS,
    "vfmbench/results": (
        "vfmbench.launching",
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
