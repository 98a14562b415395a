"""Who may import whom, as data; and the house rules that a machine can check."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxbooth"
LAYERS = (
    {"errors", "types"},
    {"nn", "diffusion", "sharding", "distributed", "pocket", "strict_yaml"},
    {"families"},
    {"pipeline"},
    {"weights"},
    {"methods"},
    {"data"},
    {"training"},
    {"evaluation", "export", "merging", "fleet", "planning", "report"},
    {"config", "config_errors"},
    {
        "bench",
        "run_folder",
        "prepare",
        "summary",
        "previews",
        "text_metric",
        "trained",
        "merge",
        "run",
        "pack_run",
        "fleet_run",
        "pack_results",
        "fleet_checks",
        "fleet_keys",
        "fleet_plan",
        "fleet_plan_text",
        "plan",
        "plan_recipe",
        "plan_text",
        "evaluate",
        "evaluate_pictures",
        "evaluate_plan",
        "evaluate_sources",
        "evaluate_text",
        "fleet_result",
    },
    {"cli", "cli_bench", "cli_evaluate", "cli_fleet", "cli_plan", "cli_report", "__init__"},
    {"__main__"},
)
# Rooms of one layer that may know each other.
NEIGHBOURS = {
    "export",
    "merging",
    "config",
    "config_errors",
    "cli",
    "cli_bench",
    "cli_evaluate",
    "cli_fleet",
    "cli_plan",
    "cli_report",
    *LAYERS[10],
}
STRANGERS = {"nn", "diffusion", "sharding", "pocket"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def level(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_only_from_its_own_layer_or_lower(file):
    own = room(file)
    for line, name in imports(file):
        parts = name.split(".")
        if parts[0] != "jaxbooth" or len(parts) == 1 or parts[1] == "__version__":
            continue
        other = parts[1] if not parts[1].startswith("_") else own
        if not any(other in layer for layer in LAYERS):
            continue  # a public name of jaxbooth itself
        allowed = (
            level(other) < level(own) or other == own or (level(other) == level(own) and {own, other} <= NEIGHBOURS)
        )
        allowed = allowed and not (own in STRANGERS and other in STRANGERS and own != other)
        assert allowed, f"{file}:{line}: {own} (layer {level(own)}) imports {name} (layer {level(other)})"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_training_and_export_never_import_torch_or_linen(file):
    names = [name for _, name in imports(file)]
    assert not any(name.startswith("flax.linen") for name in names)
    if room(file) != "evaluation":
        assert not any(name.split(".")[0] in ("torch", "diffusers") for name in names)
    if room(file) == "report":
        assert not any(name.split(".")[0] == "jax" for name in names)
    if room(file) == "training":
        concrete = [name for name in names if name.startswith("jaxbooth.methods") and ".base" not in name]
        assert not concrete, f"training knows methods.base only, not {concrete}"


def test_files_are_short_and_named_for_what_they_hold():
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 400, f"{file} is over 400 lines"
        assert file.stem not in {"utils", "helpers", "common", "misc"}
