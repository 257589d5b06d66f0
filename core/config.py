"""From a YAML file to frozen sections: every wrong value and unknown key is reported, all in one go.

Each part of the program owns a Section, a pydantic model of the keys it reads; the model is the only place
where a default stands. Nothing here opens anything but the YAML file itself.
"""

import difflib
import errno
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from core.errors import ConfigError
from core.yaml_file import Document, TooMuchError, parse

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_MAX_SIZE = 1024**4
DURATION_FORM = "a number of seconds, or a number with a unit (45s, 30m, 12h, 7d)"
MEANT = ", did you mean"  # how a suggestion of one key begins
SIZE_FORM = "a number of bytes, or a number with a unit (64 KiB, 1 MiB)"


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and nothing changes after the start."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    shows_values: ClassVar[bool] = True  # in errors; a section with passwords does not


def parse_duration(value: object) -> float:
    """Seconds from a number or from text such as "30m". Raises ValueError that says what is accepted."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([smhd]?)", str(value), re.ASCII | re.IGNORECASE)
    if isinstance(value, bool) or match is None:
        raise ValueError(DURATION_FORM)
    return float(match[1]) * _SECONDS[match[2].lower() or "s"]


def _parse_positive_duration(value: object) -> float:
    if (seconds := parse_duration(value)) <= 0:
        raise ValueError(f"{DURATION_FORM}, more than 0")
    return seconds


def _parse_size(value: object) -> int:
    match = re.fullmatch(r"([0-9]+) ?(B|KiB|MiB|GiB|)", str(value), re.ASCII)
    if isinstance(value, bool) or match is None or len(match[1]) > 15:
        raise ValueError(SIZE_FORM)
    size = int(match[1]) * _BYTES[match[2]]
    if not 0 < size <= _MAX_SIZE:
        raise ValueError(f"{SIZE_FORM}, more than 0 and at most 1 TiB")
    return size


Duration = Annotated[float, BeforeValidator(parse_duration)]  # seconds, 0 or more
PositiveDuration = Annotated[float, BeforeValidator(_parse_positive_duration)]  # seconds, more than 0
Size = Annotated[int, BeforeValidator(_parse_size)]  # bytes, more than 0


def read_yaml(path: Path, keys: str) -> dict[Any, Any] | None:
    """The mapping in a YAML file, None if there is nothing in it. Raises ConfigError: file, line and reason.

    keys: what is expected in it, in words. Nulls are left out.
    """
    content: dict[Any, Any] | None = _document(path, keys, secret=False).content
    return content


def read_secret_yaml(path: Path, keys: str) -> Document:
    """The mapping in a YAML file with passwords in it, of which no error shows anything; perhaps None.

    No key may stand twice, and nulls are left in. Raises ConfigError.
    """
    return _document(path, keys, secret=True)


def _document(path: Path, keys: str, *, secret: bool) -> Document:
    try:
        text = _read_regular(path) if secret else path.read_bytes()
        document = parse(text, keys_once=secret)
        content = document.content if secret else _without_nulls(document.content)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        reason = _unquoted(str(error.problem or error.context), secret)
        raise ConfigError([f"{path}: {line}not YAML: {reason}"]) from error
    except TooMuchError as error:
        raise ConfigError([f"{path}: {error}"]) from error
    except Exception as error:  # PyYAML's tags (!!int, !!bool) fail with whatever their conversion raises
        reason = type(error).__name__
        if not secret and str(error):
            reason = _unquoted(str(error).splitlines()[0], secret)
        raise ConfigError([f"{path}: not YAML: {reason}"]) from error
    if content is not None and not isinstance(content, dict):
        found = kind_of(content) if secret else _found(content)
        raise ConfigError([f"{path}: expected {keys}, got {found}"])
    return Document(content, document.aliased)


def _read_regular(path: Path) -> bytes:
    """All of a file. Raises OSError, also for a pipe, whose end may never come."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        return file.read()


def _unquoted(reason: str, secret: bool) -> str:
    """A complaint of PyYAML's, without the file's own words: of `password: *x` and `!x` it shows the x."""
    shortest = 1 if secret else 3  # so that '@' and ']' stay, which PyYAML says of its own
    return re.sub(rf"""(['"])(?!<).{{{shortest},}}\1""", "'...'", reason)


def _without_nulls(value: Any) -> Any:
    """`key: ~`, and `section:` with nothing below it, mean the same as no such key at all."""
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(below) for key, below in value.items() if below is not None}


S = TypeVar("S", bound=Section)


def build(model: type[S], content: Any, path: Path, above: tuple[str, ...] = ()) -> S:
    """The section a model describes. Raises ConfigError with a line for each problem, in the file's order.

    above: the keys in the file under which the content stands.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [f"{path}: {_explain(model, problem, above)}" for problem in error.errors()]
        raise ConfigError(problems) from error


def _subsection(model: type[Section], key: object) -> type[Section] | None:
    """The model of a key that holds a section of its own, else None."""
    field = model.model_fields.get(str(key))
    if field and get_origin(field.annotation) is dict:
        return None  # of several, by names that are no keys
    for kind in (field.annotation, *get_args(field.annotation)) if field else ():
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


# pydantic's names of errors -> what would have been accepted
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (in quotes if it looks like a number)",
    "tuple_type": "a list",
    "dict_type": "keys below it",
    "too_short": "a list that is not empty",
    "string_too_short": "text that is not empty",
    "model_type": "keys below it",
    "invalid_key": "a key that is text",
}


def _explain(model: type[Section], problem: Any, above: tuple[str, ...]) -> str:
    """One pydantic error as a line: key path, what is accepted, what was found."""
    location = (*above, *problem["loc"])
    if not model.shows_values:
        location = tuple(map(shown_key, location))
    key_path = _key_path(location)
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = suggestion(model, problem["loc"])
        if not (model.shows_values or known.startswith(MEANT)):
            return f"{_key_path(location[:-1])}: has an unknown key{known}"
        return f"{key_path}: unknown key{known}"
    if kind == "missing":
        return f"{key_path}: is missing"
    if kind == "value_error":
        expected = str(problem["ctx"]["error"])
    elif kind in _EXPECTED:
        expected = _EXPECTED[kind]
    else:
        message = str(problem["msg"])
        expected = message.removeprefix("Input should be ")
    found = _found(problem["input"]) if model.shows_values else kind_of(problem["input"])
    return f"{key_path}: expected {expected}, got {found}"


def shown_key(key: int | str) -> int | str:
    """A key of a file with passwords: a slip may have made one of `alice: secret`, so only its beginning."""
    if isinstance(key, int):
        return key
    beginning = re.split(r"[\s:=]", key, maxsplit=1)[0]
    return beginning if beginning == key else f"{beginning}..."


def _key_path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def _found(value: object) -> str:
    """What stands in the file, as YAML would show it and short."""
    if isinstance(value, dict | list | tuple) or value is None:
        return kind_of(value)
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: object) -> str:
    """What stands in the file, without its value."""
    if isinstance(value, dict):
        return "a section with keys"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "text" if isinstance(value, str) else "what YAML reads as a date"


def suggestion(model: type[Section], location: tuple[int | str, ...]) -> str:
    """Behind an unknown key: the known one that was probably meant, or all of them.

    That is a near miss in this section, or the same key in another.
    """
    known = _key_paths(model)
    *section, key = (str(part) for part in location)
    beside = {path[-1]: path for path in known if list(path[:-1]) == section}
    anywhere = {path[-1]: path for path in known}
    for candidates, cutoff in ((anywhere, 1.0), (beside, 0.6), (anywhere, 0.85)):
        if near := difflib.get_close_matches(key, candidates, n=1, cutoff=cutoff):
            return f"{MEANT} {'.'.join(candidates[near[0]])}?"
    return f"; known here: {', '.join(sorted(beside))}"


def _key_paths(model: type[Section], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    paths = []
    for name in model.model_fields:
        paths.append((*above, name))
        if subsection := _subsection(model, name):
            paths += _key_paths(subsection, (*above, name))
    return paths
