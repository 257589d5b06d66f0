"""The benchmark measures, writes a file, compares two, and fails if an event is lost. No figure counts."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import clients as clients_module
from bench import command_line
from bench.clients import Request, WrongError, body, clients, put
from bench.command_line import ALL, DEFAULT, Measurement, main
from bench.servers import Reference, bare
from daemon import ROOT

PATHS = ["/bench"] * 3


def bench(*arguments: str | Path) -> str:
    """Run it; what it prints."""
    command = [sys.executable, "tests/bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def is_spread(value: dict[str, float]) -> bool:
    """Whether it is a median with what it lies between."""
    return value.keys() == {"median", "min", "max"} and value["min"] <= value["median"] <= value["max"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("names", [[], ["years"]], ids=["all", "years"])
def test_the_short_form_measures(names: list[str], tmp_path: Path) -> None:
    """All that `make bench` measures, if nothing is named; the file has it, and can be compared."""
    file = tmp_path / "figures.json"
    printed = bench(*names, "--short", "--directory", tmp_path, "--out", file)
    results: dict[str, Any] = json.loads(file.read_text())
    assert results.keys() == {"machine", "short", "measurements"}
    assert results["machine"].keys() == {"cpu", "cores", "system", "python", "commit"}
    assert list(results["measurements"]) == (names or list(DEFAULT))
    compared = bench("--compare", file, file)
    for name, measured in results["measurements"].items():
        assert measured["settings"].keys() == ALL[name].usual.keys()
        assert measured["figures"]
        for figure_name, figure in measured["figures"].items():
            assert {"value"} <= figure.keys() <= {"value", "base", "against", "ratio"}
            assert all(is_spread(value) for key, value in figure.items() if key != "against")
            assert figure_name in printed
            assert figure_name in compared


def test_a_backlog_file_is_measured_again(tmp_path: Path) -> None:
    """It stays, with what was published beside its readers, and is not filled again."""
    file = tmp_path / "backlog"
    arguments: list[str | Path] = ["years", "--short", "--events", "500", "--replayed", "300", "--file", file]
    assert "filled_per_second" in bench(*arguments)
    assert "filled_per_second" not in bench(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-thing"],
        ["publish", "--subscribers", "3"],
        ["publish", "--events", "0"],
        ["--compare", "none", "none"],
    ],
)
def test_what_cannot_be_measured_is_an_error_of_usage(arguments: list[str]) -> None:
    """Nothing is measured then."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


@pytest.fixture
def reference() -> Iterator[Reference]:
    """The reference, which delivers whatever comes."""
    with bare("each") as running:
        yield running


def publishing(*numbers: int) -> Request:
    """Publishes events of these numbers, whatever is asked for."""
    return lambda n: put("/bench", body(numbers[n], 100))


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [((0, 2), "event 2 came where 1 was due"), ((0, 0), "event 0 came where 1"), ((1, 0), "event 1 came")],
    ids=["lost", "twice", "out of order"],
)
def test_wrong_streams_are_seen(reference: Reference, numbers: tuple[int, ...], complaint: str) -> None:
    """By the subscribers, at the first event that is not the one that is due."""
    with (
        pytest.raises(WrongError, match=complaint),
        clients(reference, publishing(*numbers), paths=PATHS) as connected,
    ):
        connected.run(2)


def test_an_event_that_does_not_come_is_seen(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some time."""
    monkeypatch.setattr(clients_module, "_PATIENCE", 0.1)
    with (
        pytest.raises(WrongError, match="3 deliveries and 0 answers have not come"),
        clients(reference, lambda _: put("/bench", b"{}"), paths=PATHS) as connected,
    ):
        connected.run(1)


def test_an_event_too_many_is_seen(reference: Reference) -> None:
    """At the end."""
    with (
        pytest.raises(WrongError, match="more events came"),
        clients(reference, publishing(0), paths=PATHS) as connected,
        clients(reference, publishing(1)) as another,  # whose event the first ones do not wait for
    ):
        assert [each.run(1).events for each in (connected, another)] == [1, 1]


def test_loss_is_exit_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And is told of."""

    def lossy() -> dict[str, Any]:
        """A measurement."""
        raise WrongError("subscriber 3 has missed one")

    monkeypatch.setattr(command_line, "_prepare", lambda: None)
    monkeypatch.setitem(command_line.ALL, "fanout", Measurement(lossy, {}, {}))
    assert main(["fanout"]) == 1
    assert capsys.readouterr().err == "fanout failed: subscriber 3 has missed one\n"
