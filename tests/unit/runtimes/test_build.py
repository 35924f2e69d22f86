from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stoker.errors import BuildFailed, CompilerMissing, DiskFull
from stoker.hardware.facts import CompilerFacts
from stoker.runtimes import build, pip, tidy
from stoker.runtimes.running import Ended, Limits, Pulse, run
from tests.fakes.hardware import GIB, machine

# --- how far -------------------------------------------------------------------------------------


def test_phases_follow_the_lines_of_pip_and_ninja() -> None:
    phases = build.Phases()

    assert phases.see("Processing ./x.tar.gz") is None
    assert phases.see("[1/2] a test of CMake's own") is None
    assert phases.see("*** Configuring CMake...") == (0.06, "configuring")
    assert phases.see("[1/2] another one") is None
    assert phases.see("*** Building project with Ninja...") == (0.08, "compiling")
    share, words = phases.see("[134/268] /usr/bin/g++ -DX -c y.cpp") or (0.0, "")
    assert (round(share, 3), words) == (0.53, "compiling, 134 of 268 steps")
    assert phases.see("y.cpp:3: warning: [2/3] is no step") is None
    share, words = phases.see("[268/268] link") or (0.0, "")
    assert (round(share, 3), words) == (0.98, "compiling, 268 of 268 steps")
    assert phases.see("*** Installing project into wheel...") == (0.98, "installing")
    assert phases.see("[1/1] cmake --install") is None


@pytest.mark.parametrize("line", ["[0/0] x", "[9/3] x", "[99999999/1] x"])
def test_nonsense_steps_do_no_harm(line: str) -> None:
    phases = build.Phases()
    phases.see("*** Building project with Ninja...")

    step = phases.see(line)
    assert step is None or 0 <= step[0] <= 1


@pytest.mark.parametrize(
    ("cores", "free", "jobs"), [(8, 16 * GIB, 8), (8, 2 * GIB, 3), (2, GIB // 4, 1), (1, GIB, 1)]
)
def test_as_many_compilers_as_run_and_fit(cores: int, free: int, jobs: int) -> None:
    assert build.jobs_for(machine(cores=cores, available=free)) == jobs


# --- compilers ---------------------------------------------------------------------------------


def test_without_a_compiler_the_hint_names_this_system_s_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)

    with pytest.raises(CompilerMissing) as caught:
        build.check_compiler(machine(), 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n')

    assert "sudo apt install build-essential" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ID=fedora", "gcc-c++"),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"', "dnf"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"', "zypper"),
        ("ID=arch", "base-devel"),
        ("ID=alpine", "build-base"),
        ("ID=unheard-of", "build-essential"),
        ("", "build-essential"),
    ],
)
def test_hints_per_distribution(text: str, word: str) -> None:
    assert word in build.compiler_hint(machine(), text)


def test_a_compiler_that_came_later_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    build.check_compiler(machine())

    known = replace(machine(), compiler=CompilerFacts("/opt/bin/c++", "gcc", "13"))
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    build.check_compiler(known)


# --- what an end means ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("c++: fatal error: Killed signal terminated program cc1plus", "out_of_memory"),
        ("virtual memory exhausted: Cannot allocate memory", "out_of_memory"),
        ("gcc: error: unrecognized command line option '-mavx512bf16'", "compiler_too_old"),
        ("clang: error: unknown argument: '-mavxvnni'", "compiler_too_old"),
        (
            "cc1: error: invalid feature modifier 'i8mm' in '-march=armv8.2-a+i8mm'",
            "compiler_too_old",
        ),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "hash"),
        ("ERROR: No matching distribution found for cmake==4.4.4", "not_found"),
        ("NewConnectionError('Temporary failure in name resolution')", "network"),
        ("/usr/bin/python3: No module named ensurepip", "no_pip"),
        ("x.cpp:1:1: error: expected unqualified-id", "unknown"),
    ],
)
def test_failures_are_told_apart(line: str, reason: str) -> None:
    error = pip.failure("compile the runtime", Ended(1, ("before", line, "after")))

    assert isinstance(error, BuildFailed)
    assert error.facts["reason"] == reason
    assert line in str(error.facts["tail"])
    assert error.hint


def test_secrets_in_an_index_s_address_are_not_repeated() -> None:
    line = "ERROR: cannot read https://me:secret@index.example/simple/cmake"
    error = pip.failure("install", Ended(1, (line, line.replace("secret", "se@cret"))))

    assert "secret" not in error.message
    assert "secret" not in str(error.facts)
    assert "cret@" not in str(error.facts)
    assert pip.redacted([line]) == ["ERROR: cannot read https://index.example/simple/cmake"]


def test_an_index_is_never_part_of_a_command_line(tmp_path: Path) -> None:
    """Everybody on the machine can read those, and an address may hold a password."""
    index = "https://me:secret@index.example/simple"
    found = pip.environment(tmp_path, {"PIP_INDEX_URL": "https://other"}, index=index)

    assert found["PIP_INDEX_URL"] == index
    assert "PIP_INDEX_URL" not in pip.environment(tmp_path, {})
    assert "--index-url" not in pip.arguments("install", "--require-hashes")


def test_a_full_disk_and_a_broken_compiler_are_errors_of_their_own() -> None:
    full = pip.failure("compile", Ended(1, ("as: x.o: No space left on device",)), free_bytes=7)
    assert isinstance(full, DiskFull)
    assert full.facts["free_bytes"] == 7

    lines = ("CMake Error", "The C++ compiler is not able to compile a simple test program.")
    assert isinstance(pip.failure("compile", Ended(1, lines)), CompilerMissing)


def test_a_deadline_is_told_as_one() -> None:
    error = pip.failure("compile", Ended(None, ("[3/9] x",), "it said nothing for 5 s"))

    assert error.facts["reason"] == "too_slow"
    assert "said nothing" in error.message


# --- the environment ---------------------------------------------------------------------------


def test_only_what_finds_programs_and_the_network_is_kept(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin",
        "https_proxy": "http://proxy",
        "PIP_INDEX_URL": "https://index",
        "PIP_TARGET": "/elsewhere",
        "PIP_CONSTRAINT": "/rules",
        "CXXFLAGS": "-O0",
        "CMAKE_ARGS": "-DX=Y",
        "LD_PRELOAD": "/evil.so",
        "PYTHONPATH": "/mine",
        "STOKER_HOME": "/home",
        "HF_TOKEN": "secret",
    }
    found = pip.environment(tmp_path, given)

    assert found["PATH"] == "/bin"
    assert found["https_proxy"] == "http://proxy"
    assert found["PIP_INDEX_URL"] == "https://index"
    assert found["PIP_CONSTRAINT"] == os.devnull
    assert found["TMPDIR"] == str(tmp_path)
    gone = {"PIP_TARGET", "CXXFLAGS", "CMAKE_ARGS", "LD_PRELOAD", "PYTHONPATH", "STOKER_HOME"}
    assert not (gone | {"HF_TOKEN"}) & set(found)
    assert pip.path_with(Path("/env/bin"), found)["PATH"] == f"/env/bin{os.pathsep}/bin"


# --- running -------------------------------------------------------------------------------------

LIMITS = Limits(total_s=60, silence_s=60)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.anyio
async def test_lines_of_both_streams_come_and_the_code_is_kept(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('one'); print('two', file=sys.stderr); print('x' * 9000); sys.exit(3)"

    ended = await run(
        python(code), cwd=tmp_path, environ=os.environ, limits=LIMITS, on_line=lines.append
    )

    assert ended.code == 3
    assert sorted(lines)[:2] == ["one", "two"]
    assert max(map(len, lines)) == 2000
    assert set(ended.tail) == set(lines)


@pytest.mark.anyio
async def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    ended = await run(["/no/such"], cwd=tmp_path, environ=os.environ, limits=LIMITS)

    assert ended.code == 127
    assert "/no/such" in ended.tail[-1]


@pytest.mark.anyio
async def test_growth_counts_as_a_sign_of_life(tmp_path: Path) -> None:
    counts: list[int] = []
    numbers = iter(range(1000))

    ended = await run(
        python("import time; time.sleep(3)"),
        cwd=tmp_path,
        environ=os.environ,
        limits=Limits(total_s=60, silence_s=1.5),
        pulse=Pulse(lambda: next(numbers), counts.append),
    )

    assert ended.code == 0
    assert counts == sorted(counts)
    assert len(counts) >= 2


@pytest.mark.anyio
@pytest.mark.timeout(700)
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_what_runs_gently_runs_last(tmp_path: Path) -> None:
    code = (
        "import os; print(os.nice(0), os.sched_getscheduler(0) == os.SCHED_IDLE, "
        "open('/proc/self/oom_score_adj').read().strip())"
    )
    plain = await run(python(code), cwd=tmp_path, environ=os.environ, limits=LIMITS)
    slow = Limits(total_s=600, silence_s=600)  # it gets next to nothing where others compute
    gentle = await run(python(code), cwd=tmp_path, environ=os.environ, limits=slow, gently=True)

    assert gentle.tail[-1] == "19 True 800"
    assert "True" not in plain.tail[-1]


# --- tidying ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no links are made there")
def test_copies_become_links_and_what_only_built_it_goes(tmp_path: Path) -> None:
    files = {
        "bin/llama-server": "s",
        "bin/llama-cli": "c",
        "lib/libllama.so": "same",
        "lib/libllama.so.0": "same",
        "lib/libllama.so.0.5.0": "same",
        "lib/libggml.so": "other",
        "lib/libstatic.a": "a",
        "lib/cmake/x/y.cmake": "x",
        "llama_cpp/__init__.py": "",
        "llama_cpp/__pycache__/a.pyc": "p",
        "llama_cpp/lib/libllama.so": "same",
        "include/llama.h": "h",
        "x-1.dist-info/RECORD": "r",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    tidy.strip(tmp_path)

    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "bin/llama-server",
        "lib/libllama.so",
        "lib/libllama.so.0",
        "lib/libllama.so.0.5.0",
        "lib/libggml.so",
        "llama_cpp/__init__.py",
        "llama_cpp/lib/libllama.so",
        "x-1.dist-info/RECORD",
    }
    assert not (tmp_path / "lib/libllama.so.0.5.0").is_symlink()
    assert str((tmp_path / "lib/libllama.so").readlink()) == "libllama.so.0.5.0"
    assert (tmp_path / "llama_cpp/lib/libllama.so").samefile(tmp_path / "lib/libllama.so")
    assert not (tmp_path / "llama_cpp/lib/libllama.so").readlink().is_absolute()
    assert tidy.sync(tmp_path) == len("s" + "same" + "other" + "r")
