"""The machine that numbers are taken on, as reports tell it."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from fewbits import __version__
from fewbits.engines.cpu import Cpu
from fewbits.engines.engine import Engine
from fewbits.report import record as r


def this_machine(cpu: Cpu, threads: int, engines: Mapping[str, str]) -> r.Machine:
    """This machine with its CPU, so many threads, and the versions of what ran there, by name."""
    import psutil

    return r.Machine(
        cpu=cpu.name,
        isa=cpu.isa,
        threads=threads,
        cores=cpu.physical_cores,
        memory_bytes=psutil.virtual_memory().total,
        os=platform.system(),
        python=platform.python_version(),
        fewbits=__version__,
        engines=dict(engines),
    )


def versions(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Of engines, by name."""
    return {name: engine.version for name, engine in engines.items()}
