"""What the CPU of this machine is, how much of it this process may use, and what it can compute with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# One row per instruction set that a plan or an engine asks about: our word, then the flags of /proc/cpuinfo
# of which all of one tuple must be there. "avx512" is the set every AVX-512 kernel library requires.
_X86: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("sse41", (("sse4_1",), ("sse4.1",))),  # macOS has a dot in it
    ("avx2", (("avx2",),)),
    ("fma", (("fma",),)),
    ("avx512", (("avx512f", "avx512bw", "avx512dq", "avx512vl"),)),
    ("vnni", (("avx512_vnni",), ("avx_vnni",))),
    ("avx512_bf16", (("avx512_bf16",),)),
    ("avx512_fp16", (("avx512_fp16",),)),
    ("amx_int8", (("amx_tile", "amx_int8"),)),
    ("amx_bf16", (("amx_tile", "amx_bf16"),)),
    ("amx_fp16", (("amx_tile", "amx_fp16"),)),
)
_ARM: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("neon", (("asimd",), ("neon",))),
    ("fp16", (("asimdhp",),)),
    ("dotprod", (("asimddp",),)),
    ("i8mm", (("i8mm",),)),
    ("bf16", (("bf16",),)),
    ("sve", (("sve",),)),
)
# The same Arm sets as sysctl names them on macOS.
_MACOS = {
    "asimd": "hw.optional.AdvSIMD",
    "asimdhp": "hw.optional.arm.FEAT_FP16",
    "asimddp": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
}
# Windows tells these few (winnt.h, PF_*); what it does not tell counts as missing.
_WINDOWS = {"sse4_1": 37, "avx2": 40, "asimd": 19, "asimddp": 43}


@dataclass(frozen=True)
class Cpu:
    """A CPU as a process may use it.

    Attributes:
        name: the maker's model name.
        physical_cores: usable by this process, after CPU affinity and cgroup limits; at least 1.
        logical_cores: likewise, counting each hardware thread.
        isa: instruction sets that matter here, in a fixed order. x86: sse41, avx2, fma, avx512, vnni (8-bit dot
            products, in AVX-512 or AVX form), avx512_bf16, avx512_fp16, amx_int8, amx_bf16, amx_fp16;
            Arm: neon, fp16, dotprod, i8mm, bf16, sve.
    """

    name: str
    physical_cores: int
    logical_cores: int
    isa: tuple[str, ...]

    @property
    def is_arm(self) -> bool:
        """An Arm CPU."""
        return "neon" in self.isa

    @property
    def adds_pairs(self) -> bool:
        """An x86 CPU whose 8-bit products are added in pairs in 16 bits, which can overflow."""
        has = set(self.isa)
        return bool(has & {"sse41", "avx2", "avx512"}) and not has & {"vnni", "amx_int8"}

    def describe(self) -> str:
        """One sentence: the name, the cores, and what the CPU has and lacks for few-bit arithmetic."""
        cores = f"{self.physical_cores} core" + ("s" if self.physical_cores != 1 else "")
        if self.logical_cores != self.physical_cores:
            cores += f", {self.logical_cores} threads"
        return f"{self.name} ({cores} usable): {self._arithmetic()}."

    def _arithmetic(self) -> str:
        has = set(self.isa)
        vector = next(
            (
                word
                for name, word in (
                    ("avx512", "AVX-512"),
                    ("avx2", "AVX2"),
                    ("sse41", "SSE4.1"),
                    ("neon", "Neon"),
                )
                if name in has
            ),
            "no vector instructions known",
        )
        int8 = {
            "amx_int8": "AMX int8",
            "i8mm": "int8 matrix products",
            "vnni": "VNNI",
            "dotprod": "dot products",
        }
        found = [word for name, word in int8.items() if name in has]
        eight = (
            f"8-bit integers by {' and '.join(found)}" if found else "no instructions for 8-bit dot products"
        )
        sixteen = [
            word
            for word, names in (
                ("bf16", {"avx512_bf16", "amx_bf16", "bf16"}),
                ("fp16", {"avx512_fp16", "amx_fp16", "fp16"}),
            )
            if names & has
        ]
        return (
            f"{vector}, {eight}, {' and '.join(sixteen) + ' arithmetic' if sixteen else 'no 16-bit floats'}"
        )


def cpu() -> Cpu:
    """The CPU this process runs on: from /proc and /sys on Linux, sysctl on macOS, an API call on Windows."""
    readers: dict[str, Callable[[], Cpu]] = {"Linux": _linux, "Darwin": _macos, "Windows": _windows}
    return readers.get(platform.system(), _unknown)()


def isa_of(flags: Iterable[str]) -> tuple[str, ...]:
    """Our words for the instruction sets that ``flags``, spelled as in Linux's /proc/cpuinfo, amount to."""
    have = set(flags)
    # x86 has no flag "asimd" and Arm none of x86's, so both tables can be asked.
    return tuple(word for word, ways in _X86 + _ARM if any(have.issuperset(way) for way in ways))


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Model name and instruction sets in the text of Linux's /proc/cpuinfo (x86 or Arm)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or fields.get("hardware") or fields.get("cpu model") or platform.machine()
    return name, isa_of((fields.get("flags") or fields.get("features") or "").split())


def cgroup_cores(cgroup: str, root: Path) -> float | None:
    """The CPU limit in cores that cgroups set, None where they set none.

    ``cgroup`` is the text of /proc/self/cgroup, ``root`` where the cgroup file system is mounted. The
    tightest limit of the process's own group and the groups above it counts, in both versions of cgroups.
    """
    limits: list[float] = []
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts, read = (root, root / "unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = (root / "cpu", root / controllers), _quota_v1
        else:
            continue
        for mount in mounts:
            group = mount / path.strip("/")
            for folder in (group, *group.parents):
                if folder != mount and mount not in folder.parents:
                    break
                limit = read(folder)
                if limit is not None:
                    limits.append(limit)
    return min(limits, default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.strip().isdigit() else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _linux() -> Cpu:
    name, isa = parse_cpuinfo(_read(Path("/proc/cpuinfo")))
    usable = sorted(os.sched_getaffinity(0))
    topology = Path("/sys/devices/system/cpu")
    siblings = {_read(topology / f"cpu{core}/topology/thread_siblings_list") or str(core) for core in usable}
    physical, logical = len(siblings), len(usable)
    limit = cgroup_cores(_read(Path("/proc/self/cgroup")), Path("/sys/fs/cgroup"))
    if limit is not None:
        whole = max(1, round(limit))
        physical, logical = min(physical, whole), min(logical, whole)
    return Cpu(name, physical, logical, isa)


def _macos() -> Cpu:
    def sysctl(key: str) -> str:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    flags = [flag for flag, key in _MACOS.items() if sysctl(key) == "1"]
    flags += (
        sysctl("machdep.cpu.features").lower().split() + sysctl("machdep.cpu.leaf7_features").lower().split()
    )
    logical = int(sysctl("hw.logicalcpu") or os.cpu_count() or 1)
    physical = int(sysctl("hw.physicalcpu") or logical)
    return Cpu(sysctl("machdep.cpu.brand_string") or platform.machine(), physical, logical, isa_of(flags))


def _windows() -> Cpu:
    import ctypes

    import psutil

    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009 - the attribute exists on Windows only
    flags = [flag for flag, number in _WINDOWS.items() if kernel.IsProcessorFeaturePresent(number)]
    logical = len(psutil.Process().cpu_affinity())
    physical = min(psutil.cpu_count(logical=False) or logical, logical)
    return Cpu(platform.processor() or platform.machine(), physical, logical, isa_of(flags))


def _unknown() -> Cpu:
    logical = os.cpu_count() or 1
    return Cpu(platform.processor() or platform.machine(), logical, logical, ())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
