"""What the documents say of one another and of the code: contents, links, the maps, the refusals."""

import ast
import re
from pathlib import Path

import pytest

from daemon import ROOT
from documents import DOCUMENTS, anchor, headings, without_blocks

CODE = [ROOT / "pypubsub.py", *(ROOT / "core").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    """To a file that is there and, behind a #, to one of its headings, as GitHub names them."""
    document = ROOT / name
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(document.read_text()))
    assert [target for target in targets if not leads_somewhere(target, document)] == []


def leads_somewhere(target: str, document: Path) -> bool:
    """Whether a link in a document does; what is not on this machine is believed."""
    if re.match(r"https?://", target):
        return True
    path, _, fragment = target.partition("#")
    file = (document.parent / path).resolve() if path else document
    if not file.exists() or ROOT not in file.parents:
        return False
    return not fragment or fragment in map(anchor, headings(file.read_text()))


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.startswith(("README", "docs/"))])
def test_contents_lead_to_every_part(name: str) -> None:
    """The list at the top has each heading of the second level below it, as GitHub names them."""
    before, _, after = (ROOT / name).read_text().partition("\n## ")
    parts = re.findall(r"^## (.*)$", f"## {after}", re.MULTILINE)
    entries = dict(re.findall(r"^- \[(.*)\]\(#(.*)\)$", before, re.MULTILINE))
    assert list(entries) == [heading for heading in parts if heading != "License"]
    for heading, fragment in entries.items():
        assert fragment == anchor(heading)


def test_every_document_is_reached_from_the_readme() -> None:
    """Without knowing its name."""
    linked = set(re.findall(r"\]\(([\w/.]+\.md)\b", (ROOT / "README.md").read_text()))
    assert set(DOCUMENTS) - {"README.md"} <= linked


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "docs/plugins.md"])
def test_files_that_are_named_are_there(name: str) -> None:
    """Whether or not by a link. The guide to plugins has an example that is not there."""
    named = re.findall(r"\b(?:core|plugins|tests|clients|docs)/[\w/.]+\.\w+", (ROOT / name).read_text())
    assert {file for file in named if not (ROOT / file).exists()} == set()


def test_the_map_of_core_is_complete() -> None:
    """core/__init__.py names every module, and in a wing none that is not there."""
    named = names_in_map("core")
    modules = {
        str(file.relative_to(ROOT / "core").with_suffix(""))
        for file in (ROOT / "core").rglob("*.py")
        if file.stem != "__init__"
    }
    assert modules - named == set()
    assert {name for name in named if "/" in name} - modules == set()


def test_the_map_of_the_plugins_is_complete() -> None:
    """plugins/__init__.py names every plugin."""
    plugins = {file.parent.name for file in (ROOT / "plugins").glob("*/__init__.py")}
    assert plugins - names_in_map("plugins") == set()


def names_in_map(package: str) -> set[str]:
    """The first words of the indented lines in a package's docstring."""
    about = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
    assert about is not None
    return set(re.findall(r"^ {4}([a-z0-9_/]+)", about, re.MULTILINE))


def test_protocol_lists_every_status_of_a_refusal() -> None:
    """The table of refusals has each status that the code refuses with."""
    code = "".join(file.read_text() for file in CODE)
    refused_with = set(re.findall(r"\bRefused\(\s*(\d{3})\b", code))
    table = (ROOT / "docs/protocol.md").read_text().partition("## Refusals")[2].partition("\n## ")[0]
    assert refused_with == set(re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE))
