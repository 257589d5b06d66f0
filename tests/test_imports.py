"""Imports go one way: pypubsub.py -> plugins -> core/http -> delivery -> auth -> events -> the ground floor.

Also those within functions, and those for type checkers only.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from daemon import ROOT

WINGS = ("events", "auth", "delivery", "http")  # of core/, each of which knows those before it
# library -> the one package that may import it, beside tests and clients
AT_HOME = {
    "aiohttp": "core.http",
    "sqlite3": "plugins.backlog",
    "ldap3": "plugins.ldap",
    "aioboto3": "plugins.sqs",
    "aiobotocore": "plugins.sqs",
    "botocore": "plugins.sqs",
    "argon2": "plugins.acl",
    "bcrypt": "plugins.acl",
}
LATE = {"sqlite3", "ldap3", "aioboto3", "aiobotocore", "botocore"}  # not before a section asks for them


def name_of(path: Path) -> str:
    """The module that a file is."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    name_of(path): path for part in ("core", "plugins") for path in sorted((ROOT / part).rglob("*.py"))
}


@cache
def imported(path: Path) -> set[str]:
    """The modules that a file imports: of `from core import logs` that is core.logs."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: no relative imports"
            module = node.module or ""
            parts = {f"{module}.{alias.name}" for alias in node.names}
            found |= (parts & MODULES.keys()) or {module}
    return found


def is_in(module: str, package: str) -> bool:
    """Whether it is that package, or something in it."""
    return module == package or module.startswith(f"{package}.")


def floor(module: str) -> int:
    """How high a module of core/ stands; 0 is the ground floor."""
    wing = module.split(".")[1:2]
    return WINGS.index(wing[0]) + 1 if wing and wing[0] in WINGS else 0


def test_each_directory_of_core_is_a_wing() -> None:
    """Whoever adds one says what it stands on."""
    assert {path.parent.name for path in MODULES.values() if path.parent.parent.name == "core"} == set(WINGS)


@pytest.mark.parametrize("module", [name for name in MODULES if is_in(name, "core")])
def test_core_knows_nothing_above_it(module: str) -> None:
    """No wing knows one that stands on it, and none knows a plugin."""
    for other in imported(MODULES[module]):
        assert not is_in(other, "plugins"), other
        assert not is_in(other, "core") or floor(other) <= floor(module), other


@pytest.mark.parametrize("module", [name for name in MODULES if is_in(name, "plugins")])
def test_plugins_do_not_import_one_another(module: str) -> None:
    """A plugin knows its own parts, and what a plugin is; that, in turn, imports none by its name."""
    own = ".".join(module.split(".")[:2])
    others = {other for other in imported(MODULES[module]) if is_in(other, "plugins")} - {"plugins"}
    assert not {other for other in others if own == "plugins" or not is_in(other, own)}


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_known_in_one_place(module: str) -> None:
    """aiohttp in core/http, and what a plugin needs in that plugin."""
    libraries = {other.split(".")[0] for other in imported(MODULES[module])}
    assert not {name for name in libraries & AT_HOME.keys() if not is_in(module, AT_HOME[name])}


def test_nobody_imports_the_server() -> None:
    """It runs as __main__: an import would load it a second time, with classes of its own."""
    for path in (*MODULES.values(), *(ROOT / "clients").rglob("*.py")):
        assert "pypubsub" not in imported(path), path


def test_there_is_no_circle_of_imports() -> None:
    """Each module can be read after those that it imports."""
    below = {name: imported(path) & MODULES.keys() for name, path in MODULES.items()}
    while ready := {name for name, others in below.items() if not others & below.keys()}:
        below = {name: others for name, others in below.items() if name not in ready}
    assert not below, f"a circle, or above one: {sorted(below)}"


def test_what_only_a_section_asks_for_is_imported_late() -> None:
    """A server without LDAP, SQS or a file starts where their libraries are not installed."""
    program = "import sys, pypubsub, plugins; plugins.sections(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "plugins.ldap" in loaded
    assert not LATE & set(loaded)
