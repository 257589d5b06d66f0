"""pypubsub.yaml explains every key, and docs/settings.md is made from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from core.config import Section, build
from core.settings import file_model, load
from plugins import sections
from plugins.sqs.settings import QueueConfig, build_queues
from settings_table import QUEUE, SETTINGS, TABLE, settings, table, uncommented

FILE = file_model(sections())
TEXT = SETTINGS.read_text()
EXPLAINED = {key.path: key.default for key in settings(TEXT)}


def key_paths(model: type[Section], above: str = "") -> Iterator[str]:
    """Every key of a section and the sections in it, but for those below names."""
    for name, field in model.model_fields.items():
        if field.annotation is Any:  # a section that is read apart
            continue
        kinds = [field.annotation, *get_args(field.annotation)]
        below = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if below and get_origin(field.annotation) is not dict:
            yield from key_paths(below[0], f"{above}{name}.")
        else:
            yield f"{above}{name}"


def defaults_of(section: str) -> dict[str, str]:
    """What pypubsub.yaml says of the keys in a section, by their names in it."""
    names = {path.rpartition(".")[0] for path in EXPLAINED}
    return {
        path.removeprefix(f"{section}."): default
        for path, default in EXPLAINED.items()
        if path.startswith(f"{section}.") and path not in names
    }


def test_the_table_is_up_to_date() -> None:
    """`.venv/bin/python tests/settings_table.py` makes it anew after a change of pypubsub.yaml."""
    assert TABLE.read_text() == table(TEXT)


def test_the_table_has_every_key_once() -> None:
    """Whatever section it is in."""
    rows = [line.split("`")[1] for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    queue = (f"{QUEUE}.{key}" for key in QueueConfig.model_fields)
    assert sorted(rows) == sorted([*key_paths(FILE), *queue])


def test_configuration_reference_is_complete() -> None:
    """Every key is explained, with the default that it has."""
    described = {
        f"{section}.{key}": default
        for section in ("server", "clients")
        for key, default in defaults_of(section).items()
    }
    assert sorted(described) == sorted(key_paths(FILE))
    required = {path for path, default in described.items() if default == "required"}
    tls = {"cert": "cert.pem", "key": "key.pem"}
    ldap = {"uri": "ldaps://example.org", "user_dn": "uid=%s", "base_scope": "dc=example", "acl": {}}
    assert required == {f"server.tls.{key}" for key in tls} | {f"clients.ldap.{key}" for key in ldap}
    content: dict[str, Any] = {"server": {"tls": tls, "backlog": {}}, "clients": {"ldap": ldap}}
    without = build(FILE, content, Path("without the defaults"))
    for path in described.keys() - required:
        *above, key = path.split(".")
        section = content
        for name in above:
            section = section[name]
        if (default := yaml.safe_load(described[path])) is not None:
            section[key] = default
    assert build(FILE, content, Path("with those of pypubsub.yaml")) == without


def test_reference_of_queues_is_complete() -> None:
    """Every key of a queue is explained, with the default that it has."""
    described = defaults_of(QUEUE)
    assert sorted(described) == sorted(QueueConfig.model_fields)
    assert [key for key, default in described.items() if default == "required"] == ["queue"]
    defaults = {key: yaml.safe_load(default) for key, default in described.items()}
    with_them = {key: value for key, value in defaults.items() if value is not None} | {"queue": "a"}
    without = build_queues({"a": {"queue": "a"}}, Path("without the defaults"))
    assert build_queues({"a": with_them}, Path("with those of pypubsub.yaml")) == without


def test_sections_that_are_commented_out_are_sound(tmp_path: Path) -> None:
    """Whoever takes the marks of a comment away has a file that is accepted."""
    file = tmp_path / "pypubsub.yaml"
    file.write_text(uncommented(TEXT))
    config = load(file, sections())
    assert config.server.tls
    assert [*config.sections] == ["server.backlog", "clients.ldap", "sqs"]
    assert [*config.sections["sqs"].queues] == ["builds"]  # type: ignore[attr-defined]
