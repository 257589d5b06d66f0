"""Imports go one way: pypubsub.py -> plugins -> core -> libraries."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "core").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: no relative imports"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_knows_no_plugin_and_no_server(path: Path) -> None:
    """core/ is what the others name. One wing of it knows aiohttp."""
    foreign = {"plugins", "pypubsub"} | ({"aiohttp"} if path.parent.name != "http" else set())
    assert not {name.split(".")[0] for name in imported(path)} & foreign


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.name)
def test_plugins_do_not_import_the_server(path: Path) -> None:
    """The server runs as __main__: importing it would load it a second time."""
    assert "pypubsub" not in {name.split(".")[0] for name in imported(path)}


@pytest.mark.parametrize(
    "path", [path for path in PLUGINS if path.stem != "__init__"], ids=lambda path: path.name
)
def test_plugins_do_not_import_one_another(path: Path) -> None:
    """Only parts of the same plugin, which are in the same directory."""
    others = {name.split(".")[1] for name in imported(path) if name.startswith("plugins.")}
    assert others <= {path.parent.name}


def test_core_has_no_circle_of_imports() -> None:
    """Each module of core/ can be read after those it imports."""
    edges = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): {
            name for name in imported(path) if name.startswith("core.")
        }
        for path in CORE
    }

    def reach(name: str, above: tuple[str, ...] = ()) -> None:
        assert name not in above, " -> ".join([*above, name])
        for below in edges.get(name, ()):
            reach(below, (*above, name))

    for name in edges:
        reach(name)
