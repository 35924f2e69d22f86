from __future__ import annotations

from dataclasses import replace

from stoker.hardware.facts import CompilerFacts, GpuFacts, HardwareFacts
from stoker.runtimes.manifest import Runtime
from stoker.runtimes.offers import offered
from stoker.runtimes.pins import pins
from stoker.runtimes.recipe import recipe
from tests.fakes.hardware import BASELINE, GIB, machine

GCC = CompilerFacts("/usr/bin/c++", "gcc", "12.2")
FAST = BASELINE | {
    *("sse4_2", "avx", "avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx512_vnni")
}


def here(**facts: object) -> HardwareFacts:
    return replace(machine(flags=FAST), compiler=GCC, **facts)  # type: ignore[arg-type]


def installed(hardware: HardwareFacts, version: str | None = None) -> Runtime:
    native = pins().native
    return Runtime(
        name="x",
        kind="native",
        engine="llama-server",
        version=version or native.version,
        variant=recipe(hardware.cpu, hardware.system, compiler=hardware.compiler).variant,
        folder=None,
        created_at="2026-01-01T00:00:00+00:00",
        cpu="",
    )


def kinds(hardware: HardwareFacts, *there: Runtime) -> list[tuple[str, bool]]:
    return [(offer.kind, offer.automatic) for offer in offered(hardware, there)]


def test_a_cpu_with_more_than_the_baseline_gets_a_native_build() -> None:
    (offer,) = offered(here(), ())

    assert (offer.kind, offer.automatic) == ("native", True)
    assert "AVX-512 and VNNI" in offer.why
    assert "about 2 min" in offer.why


def test_a_plain_cpu_gets_none() -> None:
    assert kinds(replace(machine(), compiler=GCC)) == []


def test_without_a_compiler_it_is_only_said() -> None:
    (offer,) = offered(machine(flags=FAST), ())

    assert not offer.automatic
    assert "needs a C++ compiler" in offer.why


def test_with_little_memory_it_is_not_done_by_itself() -> None:
    assert kinds(replace(machine(flags=FAST, available=GIB), compiler=GCC)) == [("native", False)]


def test_a_cpu_below_the_baseline_needs_it() -> None:
    (offer,) = offered(replace(machine(flags=frozenset({"avx", "sse4_2"})), compiler=GCC), ())

    assert offer.automatic
    assert "cannot run here: this CPU lacks" in offer.why


def test_arm_with_dot_products() -> None:
    arm = machine(arch="aarch64", flags=frozenset({"asimddp"}))

    assert kinds(replace(arm, compiler=GCC)) == [("native", True)]
    assert kinds(replace(machine(arch="aarch64", flags=frozenset({"asimd"})), compiler=GCC)) == []


def test_what_is_there_is_not_offered_again_until_it_is_outdated() -> None:
    assert kinds(here(), installed(here())) == []
    assert kinds(here(), installed(here(), "0.1.0")) == [("native", True)]
    moved = installed(replace(machine(), compiler=GCC))  # built on another processor
    assert kinds(here(), moved) == [("native", True)]


def test_graphics_processors() -> None:
    rtx = GpuFacts("Test RTX", "nvidia", driver="580.1")
    radeon = GpuFacts("Test Radeon", "amd", vram_total_bytes=16 * GIB)
    inside = GpuFacts("Test Graphics", "intel", vram_total_bytes=8 * GIB, unified=True)

    assert kinds(machine(gpus=(rtx,))) == [("cuda", True)]
    assert kinds(machine(gpus=(radeon,))) == [("vulkan", True)]
    assert kinds(machine(gpus=(inside,))) == [("vulkan", False)]
    assert kinds(machine(gpus=(rtx, inside))) == [("cuda", True), ("vulkan", False)]
    old = replace(rtx, driver="470.1")
    assert kinds(machine(gpus=(old,))) == [("vulkan", False)]


def test_nothing_on_macos_where_the_built_in_runtime_has_metal() -> None:
    mac = replace(here(), system="darwin", gpus=(GpuFacts("M4", "apple"),))

    assert kinds(mac) == []
