from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.hardware.facts import CompilerFacts, CpuFacts
from stoker.runtimes.recipe import FIXED, beyond_baseline, recipe

AVX2 = {"sse4_2", "avx", "avx2", "bmi2", "fma", "f16c"}
AVX512 = {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
MORE = {"avx512vbmi", "avx512_vnni", "avx512_bf16"}
AMX = {"amx_tile", "amx_int8", "amx_bf16"}
ALL = AVX2 | AVX512 | MORE | AMX | {"avx_vnni"}


def cpu(flags: set[str], arch: str = "x86_64") -> CpuFacts:
    return CpuFacts(arch, "Test", 4, 4, None, frozenset(flags))


def values(flags: set[str], **more: object) -> dict[str, str]:
    made = recipe(cpu(flags), "linux", **more)  # type: ignore[arg-type]
    return dict(item.split("=", 1) for item in made.definitions)


def test_the_proven_parts_are_in_every_recipe() -> None:
    for flags, arch in ((ALL, "x86_64"), (set(), "aarch64"), (set(), "riscv64")):
        assert recipe(cpu(flags, arch), "linux").definitions[: len(FIXED)] == FIXED
    assert {"GGML_NATIVE=OFF", "LLAMA_TOOLS_INSTALL=ON", "LLAVA_BUILD=OFF"} <= set(FIXED)


def test_what_the_processor_lacks_is_switched_off_by_name() -> None:
    """CMake's own defaults switch AVX2 on when nothing is said."""
    found = values({"sse4_2", "avx"})

    assert found["GGML_AVX"] == "ON"
    for name in ("AVX2", "FMA", "F16C", "BMI2", "AVX_VNNI", "AVX512", "AVX512_VNNI"):
        assert found[f"GGML_{name}"] == "OFF"


@given(st.sets(st.sampled_from(sorted(ALL))))
def test_exactly_the_present_flags_and_never_amx(flags: set[str]) -> None:
    found = values(flags or {"nothing"})

    assert (found["GGML_AVX512"] == "ON") == (flags >= AVX512)
    assert (found["GGML_AVX512_BF16"] == "ON") == (flags >= AVX512 | {"avx512_bf16"})
    assert (found["GGML_FMA"] == "ON") == ("fma" in flags)
    assert all(found[f"GGML_{name.upper()}"] == "OFF" for name in AMX)


def test_amx_only_when_it_is_asked_for_and_there() -> None:
    assert values(ALL, allow_amx=True)["GGML_AMX_INT8"] == "ON"
    assert values(ALL - AMX, allow_amx=True)["GGML_AMX_INT8"] == "OFF"
    assert recipe(cpu(ALL), "linux", allow_amx=True).variant.endswith("-amx")


def test_what_is_blocked_stays_off() -> None:
    found = values(ALL, blocked={"GGML_AVX512_BF16"})

    assert found["GGML_AVX512_BF16"] == "OFF"
    assert found["GGML_AVX512_VNNI"] == "ON"
    assert values(ALL, blocked={"GGML_AVX512"})["GGML_AVX512_VNNI"] == "OFF"


@pytest.mark.parametrize(
    ("name", "version", "bf16", "avx_vnni"),
    [
        ("gcc", "12.2.0", "ON", "ON"),
        ("gcc", "10.2.1", "ON", "OFF"),
        ("gcc", "8.5", "OFF", "OFF"),
        ("clang", "11.0", "ON", "OFF"),
        ("apple clang", "9.0", "ON", "ON"),  # it counts otherwise
        ("clang", "?", "ON", "ON"),
    ],
)
def test_an_option_that_the_compiler_does_not_know_is_left_out(
    name: str, version: str, bf16: str, avx_vnni: str
) -> None:
    found = values(ALL, compiler=CompilerFacts("/usr/bin/c++", name, version))

    assert found["GGML_AVX512_BF16"] == bf16
    assert found["GGML_AVX_VNNI"] == avx_vnni


def test_unknown_flags_give_what_the_built_in_runtime_needs() -> None:
    found = values(set())

    assert found["GGML_AVX2"] == "ON"
    assert found["GGML_AVX512"] == "OFF"


@pytest.mark.parametrize(
    ("flags", "arch", "system", "variant", "option"),
    [
        ({"asimd", "fphp"}, "aarch64", "linux", "armv8", None),
        ({"asimddp"}, "aarch64", "linux", "armv8.2-dotprod", "armv8.2-a+dotprod"),
        (
            {"asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve", "sve2"},
            "aarch64",
            "linux",
            "armv8.2-dotprod-fp16-i8mm-bf16-sve-sve2",
            "armv8.2-a+dotprod+fp16+i8mm+bf16+sve+sve2",
        ),
        (set(), "arm64", "darwin", "armv8-metal", None),
    ],
)
def test_arm(flags: set[str], arch: str, system: str, variant: str, option: str | None) -> None:
    made = recipe(cpu(flags, arch), system)
    found = dict(item.split("=", 1) for item in made.definitions)

    assert made.variant == variant
    assert found.get("GGML_CPU_ARM_ARCH") == option
    assert ("GGML_METAL" in found) == (system == "darwin")


@pytest.mark.parametrize(
    ("flags", "variant"),
    [
        (ALL, "avx512-vbmi-vnni-bf16-avxvnni"),
        (AVX2 | AVX512, "avx512"),
        (AVX2 | {"avx_vnni"}, "avx2-avxvnni"),
        (AVX2, "avx2"),
        ({"sse4_2"}, "sse42"),
        ({"sse2"}, "x86-64"),
    ],
)
def test_the_variant_is_named_by_what_is_in_it(flags: set[str], variant: str) -> None:
    assert recipe(cpu(flags), "linux").variant == variant


def test_for_the_environment_it_is_one_line() -> None:
    line = recipe(cpu(ALL), "linux").cmake_args

    assert line.startswith("-DLLAVA_BUILD=OFF -D")
    assert all(word.startswith("-D") for word in line.split(" "))


def test_what_the_built_in_runtime_leaves_unused() -> None:
    assert beyond_baseline(cpu(AVX2)) == ()
    assert beyond_baseline(cpu(ALL)) == ("AVX-512", "VNNI", "AVX-VNNI", "BF16")
    assert beyond_baseline(cpu({"asimddp", "i8mm"}, "aarch64")) == ("dotprod", "i8mm")
    assert beyond_baseline(cpu(set(), "riscv64")) == ()
