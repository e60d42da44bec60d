import dataclasses
import os
import subprocess
import sys

import pytest

from fewbits.engines.cpu import Cpu, cgroup_cores, cpu, isa_of, parse_cpuinfo

HASWELL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i5-4590 CPU @ 3.30GHz
flags\t\t: fpu sse sse2 ssse3 fma cx16 sse4_1 sse4_2 avx f16c bmi1 avx2 bmi2

processor\t: 1
model name\t: another one
flags\t\t: fpu
"""
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimddp sve i8mm bf16
CPU implementer\t: 0x41
"""
GENOA = "avx2 fma avx512f avx512dq avx512bw avx512vl avx512_bf16 avx512_vnni"


def test_avx2_only():
    name, isa = parse_cpuinfo(HASWELL)
    assert name == "Intel(R) Core(TM) i5-4590 CPU @ 3.30GHz"
    assert isa == ("sse41", "avx2", "fma")
    assert Cpu(name, 4, 4, isa).describe() == (
        "Intel(R) Core(TM) i5-4590 CPU @ 3.30GHz (4 cores usable): AVX2, "
        "no instructions for 8-bit dot products, no 16-bit floats."
    )


def test_arm():
    _, isa = parse_cpuinfo(GRAVITON)
    assert isa == ("neon", "fp16", "dotprod", "i8mm", "bf16", "sve")
    assert Cpu("Neoverse", 1, 2, isa).describe() == (
        "Neoverse (1 core, 2 threads usable): Neon, 8-bit integers by int8 matrix products and dot products, "
        "bf16 and fp16 arithmetic."
    )


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        (GENOA, ("avx2", "fma", "avx512", "vnni", "avx512_bf16")),
        (
            GENOA + " amx_bf16 amx_tile amx_int8",
            ("avx2", "fma", "avx512", "vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
        ),
        (GENOA.replace("avx512bw", ""), ("avx2", "fma", "vnni", "avx512_bf16")),
        ("avx2 avx_vnni", ("avx2", "vnni")),
        ("sse sse4_1", ("sse41",)),
        ("sse sse4.1", ("sse41",)),
        ("avx2 amx_int8", ("avx2",)),  # no tiles, no AMX
        ("", ()),
    ],
)
def test_flags(flags, isa):
    assert isa_of(flags.split()) == isa


def test_no_flags_are_told_as_such():
    assert "no vector instructions known" in Cpu("Mystery", 1, 1, ()).describe()


def test_cgroup_version_2(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert cgroup_cores("0::/a/b", tmp_path) is None
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cgroup_cores("0::/a/b", tmp_path) is None
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")  # the group above limits as well
    assert cgroup_cores("0::/a/b", tmp_path) == 1.5
    (tmp_path / "a" / "b" / "cpu.max").write_text("50000 100000\n")
    assert cgroup_cores("0::/a/b", tmp_path) == 0.5


def test_cgroup_version_1(tmp_path):
    group = tmp_path / "cpu,cpuacct" / "box"
    group.mkdir(parents=True)
    text = "5:memory:/box\n3:cpu,cpuacct:/box\n0::/"
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_cores(text, tmp_path) is None
    (group / "cpu.cfs_quota_us").write_text("200000\n")
    assert cgroup_cores(text, tmp_path) == 2


def test_this_machine():
    here = cpu()
    assert here.name
    assert 1 <= here.physical_cores <= here.logical_cores <= (os.cpu_count() or 1)
    assert dataclasses.replace(here, isa=()).isa == ()  # a plain record, so any CPU can be pretended


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity_counts():
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from fewbits.engines.cpu import cpu; print(cpu().physical_cores, cpu().logical_cores)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
