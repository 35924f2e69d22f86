"""macOS and Windows, from what their tools say."""

from __future__ import annotations

import sys

import pytest

from stoker.hardware import probe_others
from stoker.hardware.facts import CpuFacts, GpuFacts
from stoker.hardware.probe_linux import with_classes
from stoker.hardware.probe_others import macos_cpu, windows_cpus, windows_gpus
from tests.fakes.hardware import GIB

from .test_cores import HYBRID

M3_PRO = {
    "hw.nperflevels": "2\n",
    "hw.perflevel0.physicalcpu": "6\n",
    "hw.perflevel1.physicalcpu": "6\n",
    "machdep.cpu.brand_string": "Apple M3 Pro\n",
}
OLD_INTEL = {
    "machdep.cpu.brand_string": "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz\n",
    "machdep.cpu.features": "FPU SSE4.1 SSE4.2 FMA F16C AVX1.0\n",
    "machdep.cpu.leaf7_features": "AVX2 BMI2\n",
}


def test_an_apple_processor_has_two_kinds_of_cores() -> None:
    cpu = macos_cpu(CpuFacts("arm64", "arm", 12, 12), M3_PRO.get)

    assert (cpu.model, cpu.performance_cores, cpu.core_classes) == ("Apple M3 Pro", 6, (6, 6))


def test_an_intel_mac_tells_its_instruction_sets() -> None:
    cpu = macos_cpu(CpuFacts("x86_64", "i386", 6, 12), OLD_INTEL.get)

    assert cpu.performance_cores is None
    assert cpu.flags == {"fpu", "sse4_1", "sse4_2", "fma", "f16c", "avx", "avx2", "bmi2"}


def test_a_mac_that_tells_nothing_stays_as_it_was() -> None:
    generic = CpuFacts("arm64", "arm", 8, 8)

    assert macos_cpu(generic, lambda _: None) == generic


def test_windows_tells_efficiency_classes() -> None:
    cpu = with_classes(CpuFacts("amd64", "Intel64 Family 6", 6, 8), HYBRID)

    assert (cpu.performance_cores, cpu.core_classes) == (2, (2, 4))
    assert with_classes(cpu, ()).performance_cores is None


@pytest.mark.skipif(sys.platform == "win32", reason="elsewhere")
def test_windows_is_not_asked_elsewhere() -> None:
    assert windows_cpus() == ()
    assert windows_gpus() == ()


VIDEO = "\\Registry\\Machine\\System\\CurrentControlSet\\Control\\Video\\"
RADEON, ARC = "PCI\\VEN_1002&DEV_744C&SUBSYS_24141458", "pci\\ven_8086&dev_56a0"


def test_windows_tells_of_each_card_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each output is listed by itself; two cards that are alike are two."""
    outputs = [
        (RADEON, "AMD Radeon RX 7900 XTX", f"{VIDEO}{{AAA}}\\0000"),
        (RADEON, "AMD Radeon RX 7900 XTX", f"{VIDEO}{{AAA}}\\0001"),
        (RADEON, "AMD Radeon RX 7900 XTX", f"{VIDEO}{{BBB}}\\0000"),
        (ARC, "Intel(R) Arc(TM) A770 Graphics ", f"{VIDEO}{{CCC}}\\0000"),
        ("ROOT\\BasicDisplay", "Microsoft Basic Display Driver", f"{VIDEO}{{DDD}}\\0000"),
        ("", "Remote screen", ""),
    ]
    memory = {"AAA": 24 * GIB, "BBB": (24 * GIB).to_bytes(8, "little"), "CCC": None}

    def registry_value(key: str, name: str) -> object:
        return "31.0.1" if name == "DriverVersion" else memory.get(key.partition("{")[2][:3])

    monkeypatch.setattr(probe_others, "_windows_outputs", lambda: iter(outputs))
    monkeypatch.setattr(probe_others, "_registry_value", registry_value)

    radeon = GpuFacts("AMD Radeon RX 7900 XTX", "amd", 24 * GIB, driver="31.0.1")
    arc = GpuFacts("Intel(R) Arc(TM) A770 Graphics", "intel", driver="31.0.1")
    assert windows_gpus() == (radeon, radeon, arc)
