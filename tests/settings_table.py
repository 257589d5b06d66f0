"""docs/settings.md, made from pypubsub.yaml: `.venv/bin/python tests/settings_table.py` writes it anew.

In pypubsub.yaml a key is a setting, or a section of them, if a comment stands right above it. Its default is
the value beside it, unless the comment ends with another one (`Default: []`) or with `Required.` A section
that is off is commented out, as a whole.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SETTINGS = ROOT / "pypubsub.yaml"
TABLE = ROOT / "docs" / "settings.md"
QUEUE = "sqs.NAME"  # in place of the name of a queue, which is the operator's choice
HEAD = """\
# Settings

Every key of `pypubsub.yaml`, with its default. This page is made from the comments in that file by
`tests/settings_table.py`: change them there.

All problems of a file are reported together, each with the key, what was found and what is accepted; an
unknown key is one too. Durations are seconds or have a unit (`45s`, `30m`, `12h`, `7d`), sizes are bytes or
have one (`64 KiB`, `1 MiB`). A key that is left out, or `~`, has the default shown here. A change needs a
restart.
"""


class Setting(NamedTuple):
    """A key of pypubsub.yaml. default: as YAML has it, or "required"; "" for a section."""

    path: str
    default: str
    meaning: str


def uncommented(text: str) -> str:
    """The file with the sections that are commented out put into force."""
    lines, inside = [], False
    for line, following in zip(text.splitlines(), [*text.splitlines()[1:], ""], strict=True):
        inside = re.match(r"\s*#   ", line) is not None if inside else begins_section(line, following)
        lines.append(re.sub("# ", "", line, count=1) if inside else line)
    return "\n".join([*lines, ""])


def begins_section(line: str, following: str) -> bool:
    """Whether a comment is a key with what stands below it, not words."""
    return bool(re.fullmatch(r"\s*# [a-z_]+:", line) and re.match(r"\s*#   ", following))


def settings(text: str) -> Iterator[Setting]:
    """Every key with a comment, sections too, in the order of the file."""
    above: list[tuple[int, str]] = []  # the keys around a line, with their indents
    comment: list[str] = []
    for line in uncommented(text).splitlines():
        if words := re.match(r"\s*# ?(.*)", line):
            comment.append(words[1])
        elif (key := re.match(r"( *)([a-z_]+):(?: (.+))?$", line)) and comment:
            while above and above[-1][0] >= len(key[1]):
                above.pop()
            above.append((len(key[1]), key[2]))
            path = ".".join(name for _, name in above)
            yield setting(re.sub(r"^sqs\.[a-z]+", QUEUE, path), key[3] or "", " ".join(comment))
            comment = []
        else:
            comment = []


def setting(path: str, value: str, comment: str) -> Setting:
    """A key with its value in the file and the comment above it."""
    if comment.endswith("Required."):
        return Setting(path, "required", comment.removesuffix("Required.").strip())
    if default := re.fullmatch(r"(.*) Default: (\S+)", comment):
        return Setting(path, default[2], default[1])
    return Setting(path, value, comment)


def table(text: str) -> str:
    """docs/settings.md for a pypubsub.yaml."""
    found = list(settings(text))
    around = {key.path.rpartition(".")[0] for key in found}
    names = [key.path for key in found if key.path in around - {"sqs"}]
    contents = [f"- [{name}](#{re.sub('[^a-z]', '', name.lower())})" for name in names]
    parts = ["\n".join(contents)]
    for name in names:
        rows = [key for key in found if key.path.rpartition(".")[0] == name and key.path not in names]
        (about,) = [section.meaning for section in found if section.path == name]
        lines = (f"| `{key.path}` | {shown(key.default)} | {marked_up(key.meaning)} |" for key in rows)
        head = "| key | default | meaning |\n| --- | --- | --- |"
        parts.append("\n".join([f"## {name}", "", marked_up(about), "", head, *lines]))
    return "\n\n".join([HEAD.rstrip(), *parts]) + "\n"


def shown(default: str) -> str:
    """A default in the table."""
    return default if default == "required" else f"`{default}`"


def marked_up(words: str) -> str:
    """A comment as Markdown, with links to the documents that it names."""
    return re.sub(r"docs/([a-z]+\.md)", r"[\1](\1)", words.replace("|", r"\|"))


if __name__ == "__main__":
    TABLE.write_text(table(SETTINGS.read_text()))
