"""Figures as a file, with the machine they are from, and two such files compared."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from bench.figures import Figures
from bench.servers import CPUS
from daemon import ROOT

Results = dict[str, Any]  # machine, short, measurements: name -> {settings, figures}


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code, and which code it is."""
    return {
        "cpu": _cpu_model(),
        "cores": len(CPUS),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str | None:
    """None outside of a clone. With a plus if files have changed since."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def write(path: Path, results: Results) -> None:
    """Make the file."""
    path.write_text(json.dumps(results, indent=1) + "\n")


def read(path: Path) -> Results:
    """The same back."""
    results: Results = json.loads(path.read_text())
    return results


def comparison(before: Results, after: Results) -> list[str]:
    """Lines to be read: every figure that both have, and how the second relates to the first."""
    lines = [f"{name:8} {results['machine']}" for name, results in (("A", before), ("B", after))]
    for name, measured in after["measurements"].items():
        if (earlier := before["measurements"].get(name)) is None:
            continue
        other = "" if measured["settings"] == earlier["settings"] else "   (with different settings)"
        lines.append(f"{name}{other}")
        lines += _compared(earlier["figures"], measured["figures"])
    return lines


def _compared(before: Figures, after: Figures) -> list[str]:
    lines = []
    for name, figure in after.items():
        if (earlier := before.get(name)) is None:
            continue
        text = f"  {name:32} {_change(earlier['value'], figure['value'])}"
        if "ratio" in figure and "ratio" in earlier:
            text += f"   to {figure['against']} {_change(earlier['ratio'], figure['ratio'])}"
        lines.append(text)
    return lines


def _change(before: dict[str, float], after: dict[str, float]) -> str:
    a, b = before["median"], after["median"]
    return f"A {a:g}  B {b:g}  B/A {b / a:.2f}" if a else f"A {a:g}  B {b:g}"
