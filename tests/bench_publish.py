"""Publishes a second: without a backlog, and with one that has every event on the disk before its 202."""

import argparse
import os
import tempfile
import time
from typing import NamedTuple

from bench_tools import (
    Published,
    body,
    cpu_seconds,
    publish,
    put,
    quantiles,
    repeat_for,
    report,
    running,
    spread,
)
from daemon import Daemon

_SIZE = 1_000_000  # events that the backlog may hold
_AT_ONCE = (1, 64)  # publishers


class _Round(NamedTuple):
    published: Published
    server_cpu_seconds: float

    @property
    def by_cpu(self) -> float:
        """Publishes in a second of the daemon's CPU time."""
        return len(self.published.answers_ms) / self.server_cpu_seconds


def publish_rates(arguments: argparse.Namespace) -> int:
    """One publisher and many, each as fast as it gets answers, in turn without a backlog and with a file."""
    report(measured="disk", **quantiles("sync_ms", _syncs_ms(arguments.directory)))
    request = put("/bench", body(0, arguments.size))
    with (
        running() as plain,
        running(arguments.directory, _SIZE, storage=True) as durable,
    ):
        for publishers in _AT_ONCE:
            without: list[_Round] = []
            stored: list[_Round] = []
            for _ in range(arguments.rounds):
                without.append(_round(plain, publishers, request, arguments.seconds))
                stored.append(_round(durable, publishers, request, arguments.seconds))
            _report_rounds(publishers, "none", without)
            _report_rounds(publishers, "file", stored)
            _report_ratios(publishers, list(zip(without, stored, strict=True)))
    return 0


def _round(daemon: Daemon, publishers: int, request: bytes, seconds: float) -> _Round:
    cpu_before = cpu_seconds(daemon)
    published = publish(daemon.port, publishers, repeat_for(seconds, request))
    return _Round(published, cpu_seconds(daemon) - cpu_before)


def _report_rounds(publishers: int, backlog: str, rounds: list[_Round]) -> None:
    all_published = [each.published for each in rounds]
    count = sum(len(each.answers_ms) for each in all_published)
    seconds = sum(each.seconds for each in all_published)
    server_cpu = sum(each.server_cpu_seconds for each in rounds)
    report(
        measured="publish",
        publishers=publishers,
        backlog=backlog,
        **spread("publishes_per_second", [each.rate for each in all_published]),
        **quantiles("answer_ms", [answer_ms for each in all_published for answer_ms in each.answers_ms]),
        server_cpu_percent=round(100 * server_cpu / seconds),
        server_cpu_us_per_publish=round(server_cpu / count * 1e6),
        publishers_cpu_percent=round(100 * sum(each.cpu_seconds for each in all_published) / seconds),
    )


def _report_ratios(publishers: int, pairs: list[tuple[_Round, _Round]]) -> None:
    """By CPU time too: if the machine is busy, a daemon of two threads gets more of the time than one."""
    report(
        measured="publish",
        publishers=publishers,
        **spread("file_to_none", [file.published.rate / none.published.rate for none, file in pairs], 2),
        **spread("file_to_none_by_cpu", [file.by_cpu / none.by_cpu for none, file in pairs], 2),
    )


def _syncs_ms(directory: str) -> list[float]:
    """What the disk takes to make a few KiB last: no commit is faster."""
    syncs_ms = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(100):
            begin = time.monotonic()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            syncs_ms.append(1000 * (time.monotonic() - begin))
    return syncs_ms
