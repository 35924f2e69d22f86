"""What to tell CMake, so that a runtime is compiled for exactly this processor. Pure.

The compiler's own "native" is never used: on processors with AMX it makes an engine that dies at
the first batch of two tokens. Instead every instruction set that the processor names is switched
on, and every other one off.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from stoker.hardware.assess import X86_BASELINE
from stoker.hardware.facts import CompilerFacts, CpuFacts

# What was proven to work: the server and its own library, the tools, and bindings beside them.
FIXED: Final = (
    "LLAVA_BUILD=OFF",  # with the tools on, the target mtmd would be defined twice
    "LLAMA_BUILD_TOOLS=ON",
    "LLAMA_BUILD_SERVER=ON",
    "LLAMA_TOOLS_INSTALL=ON",  # without it the server's own library is not installed
    "LLAMA_USE_PREBUILT_UI=OFF",  # a build must not download anything
    "LLAMA_OPENSSL=OFF",  # a worker serves this machine only; one system library less to break
    "GGML_NATIVE=OFF",
    "GGML_CCACHE=OFF",  # it would fill the user's own cache
)

# CMake's name, the processor flags (Linux's names) that it needs, and its word in a variant.
_X86: Final = (
    ("GGML_SSE42", ("sse4_2",)),
    ("GGML_AVX", ("avx",)),
    ("GGML_AVX2", ("avx2",)),
    ("GGML_BMI2", ("bmi2",)),
    ("GGML_FMA", ("fma",)),
    ("GGML_F16C", ("f16c",)),
    ("GGML_AVX_VNNI", ("avx_vnni", "avx2")),
    ("GGML_AVX512", ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw")),
    ("GGML_AVX512_VBMI", ("avx512vbmi",)),
    ("GGML_AVX512_VNNI", ("avx512_vnni",)),
    ("GGML_AVX512_BF16", ("avx512_bf16",)),
)
_AMX: Final = (
    ("GGML_AMX_TILE", ("amx_tile",)),
    ("GGML_AMX_INT8", ("amx_int8", "amx_tile")),
    ("GGML_AMX_BF16", ("amx_bf16", "amx_tile")),
)
_NEEDS_AVX512: Final = frozenset({"GGML_AVX512_VBMI", "GGML_AVX512_VNNI", "GGML_AVX512_BF16"})
_WORDS: Final = {
    "GGML_AVX512_VBMI": "vbmi",
    "GGML_AVX512_VNNI": "vnni",
    "GGML_AVX512_BF16": "bf16",
    "GGML_AVX_VNNI": "avxvnni",
    "GGML_AMX_TILE": "amx",
}
_LEVELS: Final = (
    ("GGML_AVX512", "avx512"),
    ("GGML_AVX2", "avx2"),
    ("GGML_AVX", "avx"),
    ("GGML_SSE42", "sse42"),
)

# Extensions of ARM: the compiler's name, and Linux's names of the flag. The base stays at 8.2, for
# a later one would allow instructions that no flag vouches for.
_ARM: Final = (
    ("dotprod", ("asimddp",)),
    ("fp16", ("asimdhp", "fphp")),
    ("i8mm", ("i8mm",)),
    ("bf16", ("bf16",)),
    ("sve", ("sve",)),
    ("sve2", ("sve2", "sve")),
)
_ARM_NAMES: Final = frozenset({"aarch64", "arm64"})

# The first version of each compiler that knows the option.
_COMPILERS: Final = {
    "GGML_AVX_VNNI": {"gcc": 11, "clang": 12},
    "GGML_AVX512_VBMI": {"gcc": 5, "clang": 4},
    "GGML_AVX512_VNNI": {"gcc": 8, "clang": 6},
    "GGML_AVX512_BF16": {"gcc": 10, "clang": 9},
    "GGML_AMX_TILE": {"gcc": 11, "clang": 11},
    "GGML_AMX_INT8": {"gcc": 11, "clang": 11},
    "GGML_AMX_BF16": {"gcc": 11, "clang": 11},
    "dotprod": {"gcc": 8, "clang": 6},
    "i8mm": {"gcc": 10, "clang": 11},
    "bf16": {"gcc": 10, "clang": 11},
    "sve2": {"gcc": 10, "clang": 9},
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Definitions for CMake, each ``NAME=VALUE``, and a short word for what they make."""

    definitions: tuple[str, ...]
    variant: str

    @property
    def cmake_args(self) -> str:
        """As the build reads it from the environment; no value holds a space."""
        return " ".join(f"-D{definition}" for definition in self.definitions)


def recipe(
    cpu: CpuFacts,
    system: str,
    *,
    compiler: CompilerFacts | None = None,
    blocked: Collection[str] = (),
    allow_amx: bool = False,
) -> Recipe:
    """For this processor on this system ("linux", "darwin", "windows").

    `blocked` are names as CMake has them (``GGML_AVX512_BF16``, or ``i8mm`` on ARM) that must stay
    off although the processor has them: what an earlier self-test objected to.
    """
    definitions = list(FIXED)
    words: list[str] = []
    if cpu.is_x86:
        on = _x86(cpu, compiler, blocked, allow_amx=allow_amx)
        definitions += [f"{name}={'ON' if value else 'OFF'}" for name, value in on.items()]
        words += _x86_words(on)
    elif cpu.arch in _ARM_NAMES:
        found = _arm(cpu, compiler, blocked)
        if found:
            definitions.append("GGML_CPU_ARM_ARCH=" + "+".join(("armv8.2-a", *found)))
        words += ["armv8.2" if found else "armv8", *found]
    else:
        words.append(re.sub(r"[^a-z0-9]+", "", cpu.arch) or "cpu")
    if system == "darwin" and cpu.arch in _ARM_NAMES:
        definitions.append("GGML_METAL=ON")
        words.append("metal")
    return Recipe(tuple(definitions), "-".join(words))


def beyond_baseline(cpu: CpuFacts) -> tuple[str, ...]:
    """Instruction sets that this processor has and the built-in runtime's code does not use.

    In words for people; only those that engines gain from.
    """
    if cpu.is_x86:
        on = _x86(cpu, None, (), allow_amx=False)
        names = {"GGML_AVX512": "AVX-512", "GGML_AVX512_VNNI": "VNNI", "GGML_AVX_VNNI": "AVX-VNNI"}
        names["GGML_AVX512_BF16"] = "BF16"
        return tuple(word for name, word in names.items() if on[name])
    if cpu.arch in _ARM_NAMES:
        useful = {"dotprod", "i8mm", "sve2"}
        return tuple(name for name in _arm(cpu, None, ()) if name in useful)
    return ()


def _x86(
    cpu: CpuFacts, compiler: CompilerFacts | None, blocked: Collection[str], *, allow_amx: bool
) -> dict[str, bool]:
    # A system that tells no flags runs the built-in runtime all the same, so its baseline is there.
    flags = cpu.flags or {"sse4_2", "avx", *X86_BASELINE}
    on = {
        name: flags.issuperset(needs) and name not in blocked and _knows(compiler, name)
        for name, needs in (*_X86, *_AMX)
    }
    for name in _NEEDS_AVX512:
        on[name] = on[name] and on["GGML_AVX512"]
    for name, _ in _AMX:
        on[name] = on[name] and allow_amx
    return on


def _x86_words(on: dict[str, bool]) -> list[str]:
    level = next((word for name, word in _LEVELS if on[name]), "x86-64")
    return [level, *(word for name, word in _WORDS.items() if on[name])]


def _arm(
    cpu: CpuFacts, compiler: CompilerFacts | None, blocked: Collection[str]
) -> tuple[str, ...]:
    return tuple(
        name
        for name, needs in _ARM
        if cpu.flags.issuperset(needs) and name not in blocked and _knows(compiler, name)
    )


def _knows(compiler: CompilerFacts | None, name: str) -> bool:
    """Whether the compiler has the option; yes when nothing is known about it."""
    if compiler is None:
        return True
    first = _COMPILERS.get(name, {}).get(compiler.name, 0)  # Apple numbers its clang otherwise
    match = re.match(r"\d+", compiler.version)
    return match is None or int(match[0]) >= first
