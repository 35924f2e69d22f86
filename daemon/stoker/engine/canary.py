"""The runtime's self-test: whether this CPU's fast layouts are sound.

Some builds crash or go wrong on some CPUs as soon as a batch holds two tokens or more, so one
decoded token proves nothing. The test runs prompts of about 2, 16 and 64 tokens, alone and as
several sequences at once, in a throw-away worker, once normally and once in safe mode (no extra
buffers, nothing on a GPU). The verdict is kept per runtime and CPU. A run that fails for reasons
of its own (the file, the memory) gives no verdict.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
import structlog

from stoker.engine.base import Worker
from stoker.engine.probe import client
from stoker.errors import CanaryFailed, GgufError, WorkerFailed, WorkerTimeout
from stoker.hardware.facts import CpuFacts
from stoker.late import late
from stoker.store.facts import model_facts
from stoker.store.gguf import read_header
from stoker.tuning.launch import LaunchPlan, MemoryNeed
from stoker.tuning.plan import is_embedder
from stoker.types import FailureKind

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = late("httpx2")

log = structlog.get_logger(__name__)

_RUN_TIMEOUT_S: Final = 300  # for one of the two runs; a cold 40 GB file and 300 tokens of prefill
_STOP_GRACE_S: Final = 2
_DEATH_S: Final = 10  # from a broken connection to its end; long where memory has run out
_FORMAT: Final = 1
_PREDICT: Final = 3  # tokens per answer; several sequences decode together for a while
_CONTEXT: Final = 1024  # cells; more than all sequences together
_ENCODER_CONTEXT: Final = 128  # tokens; the smallest encoders have no more
_SLOTS: Final = 4
_UBATCH: Final = 128
# Two sound layouts add up in another order, so a near tie may fall either way; a wrong one gets
# nearly every first token wrong.
_AGREEING_SHARE: Final = 0.75
_LEAST_COSINE: Final = 0.98

_SENTENCE: Final = "The quick brown fox jumps over the lazy dog while seven wise owls watch. "
_TEXTS: Final = ("Hello", _SENTENCE, _SENTENCE * 5)  # about 2, 16 and 75 tokens
_TEXTS_AT_ONCE: Final = tuple(f"{n}. {_SENTENCE * (1 + n // 2)}" for n in range(_SLOTS))

# Not the runtime's fault: the load that follows reports these with their own words.
_NO_VERDICT: Final = frozenset(
    {
        FailureKind.OUT_OF_MEMORY,
        FailureKind.BAD_FILE,
        FailureKind.UNSUPPORTED_ARCHITECTURE,
        FailureKind.KILLED,
    }
)

Answers = list[list[float]]  # per text: the tokens, or the vector


class _Launch(Protocol):
    def __call__(self, plan: LaunchPlan, *, timeout_s: float) -> Awaitable[Worker]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: what it answered, or how it ended."""

    answers: Answers | None
    failure: FailureKind | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What two runs say about the runtime on this machine."""

    safe_mode: bool
    why: str
    at: str = ""  # RFC 3339


class Canary:
    """Runs the test when there is no verdict yet, and remembers verdicts in a small JSON file."""

    def __init__(
        self,
        file: Path,
        key: str,
        cpu: CpuFacts,
        launch: _Launch,
        *,
        runtime: str = "",
        gpu_layers: int = 0,
    ) -> None:
        """``key`` names the runtime, and the build of it, that the verdict is kept for."""
        self._file = file
        self._key = f"{key}+{cpu_digest(cpu)}"
        self._launch = launch
        self._runtime = runtime
        self._gpu_layers = gpu_layers

    async def needs_safe_mode(self, model: Path, threads: int) -> bool:
        """See `Engine.prepare`. Raises CanaryFailed when the runtime is sound in neither mode."""
        finding = await self.examine(model, threads)
        return finding is not None and finding.safe_mode

    def verdict(self) -> Finding | None:
        """What is known already. Blocking."""
        return self._read().get(self._key)

    async def examine(self, model: Path, threads: int) -> Finding | None:
        """The verdict, after a test when there is none; None when the test says nothing.

        Raises CanaryFailed when the runtime is sound in neither mode.
        """
        known = await anyio.to_thread.run_sync(self.verdict)
        if known is not None:
            return known
        embedder = await anyio.to_thread.run_sync(_is_embedder, model)
        normal = await self._run(model, threads, embedder=embedder, safe=False)
        if normal.failure in _NO_VERDICT:
            return None
        safe = await self._run(model, threads, embedder=embedder, safe=True)
        if safe.failure in _NO_VERDICT:
            return None
        finding = judge(normal, safe, vectors=embedder)
        log.info("canary_done", runtime=self._key, safe_mode=finding.safe_mode, why=finding.why)
        await anyio.to_thread.run_sync(self._write, finding)
        return finding

    async def _run(self, model: Path, threads: int, *, embedder: bool, safe: bool) -> Outcome:
        plan = _plan(model, threads, embedder=embedder, safe=safe)
        layers = 0 if safe else self._gpu_layers
        plan = replace(plan, runtime=self._runtime, gpu_layers=layers)
        try:
            worker = await self._launch(plan, timeout_s=_RUN_TIMEOUT_S)
        except WorkerFailed as error:
            return Outcome(None, FailureKind(str(error.facts["kind"])))
        except WorkerTimeout:
            return Outcome(None, FailureKind.KILLED)
        try:
            with anyio.fail_after(_RUN_TIMEOUT_S):
                return Outcome(await _ask(worker, _vector if embedder else _tokens))
        except (httpx2.TransportError, EOFError):
            return Outcome(None, await _why(worker))
        except TimeoutError:
            return Outcome(None, FailureKind.KILLED)
        finally:
            await worker.stop(_STOP_GRACE_S)

    def _read(self) -> dict[str, Finding]:
        """All verdicts; none when the file is absent or damaged."""
        try:
            content = json.loads(self._file.read_bytes())
            results = content["results"] if content["format"] == _FORMAT else {}
            return {str(key): _finding(value) for key, value in results.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("canary_file_ignored", reason=type(error).__name__)
            return {}

    def _write(self, finding: Finding) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        results = {**self._read(), self._key: replace(finding, at=at)}
        kept = {key: asdict(value) for key, value in results.items()}
        text = json.dumps({"format": _FORMAT, "results": kept}, indent=1)
        try:
            _replace(self._file, text)
        except OSError as error:  # the next load tests again; nothing else is lost
            log.warning("canary_file_not_written", reason=str(error))


def _finding(value: dict[str, object]) -> Finding:
    return Finding(bool(value["safe_mode"]), str(value.get("why", "")), str(value.get("at", "")))


async def _why(worker: Worker) -> FailureKind:
    """What ended it. Connections break first: to stop it at once would hide the cause."""
    with anyio.move_on_after(_DEATH_S):
        report = await worker.wait()
        return report.kind or FailureKind.UNKNOWN
    return FailureKind.UNKNOWN


def cpu_digest(cpu: CpuFacts) -> str:
    """Changes when the CPU does, as a moved disk or a changed virtual machine may."""
    text = "\n".join((cpu.arch, cpu.model, *sorted(cpu.flags)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def judge(normal: Outcome, safe: Outcome, *, vectors: bool) -> Finding:
    """Pure. Raises CanaryFailed when neither mode works."""
    if normal.answers is None and safe.answers is None:
        msg = "The engine fails its self-test on this machine, with and without fast layouts."
        raise CanaryFailed(msg, normal=str(normal.failure), safe=str(safe.failure))
    if normal.answers is None:
        return Finding(safe_mode=True, why=f"the fast layouts fail ({normal.failure})")
    if safe.answers is None:
        return Finding(safe_mode=False, why=f"only the safe mode fails ({safe.failure})")
    if not agree(normal.answers, safe.answers, vectors=vectors):
        return Finding(safe_mode=True, why="the fast layouts give other results")
    return Finding(safe_mode=False, why="same results with and without fast layouts")


def agree(first: Answers, second: Answers, *, vectors: bool) -> bool:
    """Whether two runs computed the same, but for rounding. What both refused is no evidence."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a or b]
    if vectors:
        return all(_cosine(a, b) >= _LEAST_COSINE for a, b in pairs)
    same = sum(1 for a, b in pairs if a[:1] == b[:1])
    return same >= len(pairs) * _AGREEING_SHARE


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    if len(a) != len(b) or not lengths or not math.isfinite(lengths):
        return 0.0
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


async def _ask(
    worker: Worker, ask: Callable[[httpx2.AsyncClient, str], Awaitable[list[float]]]
) -> Answers:
    """All texts: first one after the other, then several at once."""
    async with client(worker.address, worker.key) as http:
        answers = [await ask(http, text) for text in _TEXTS]
        together: Answers = [[] for _ in _TEXTS_AT_ONCE]

        async def one(number: int, text: str) -> None:
            together[number] = await ask(http, text)

        try:
            async with anyio.create_task_group() as group:
                for number, text in enumerate(_TEXTS_AT_ONCE):
                    group.start_soon(one, number, text)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return answers + together


async def _tokens(http: httpx2.AsyncClient, text: str) -> list[float]:
    body = {"prompt": text, "n_predict": _PREDICT, "temperature": 0, "cache_prompt": False}
    answer = await _post(http, "/completion", {**body, "return_tokens": True})
    return list(answer["tokens"]) if answer else []


async def _vector(http: httpx2.AsyncClient, text: str) -> list[float]:
    answer = await _post(http, "/v1/embeddings", {"input": text})
    return list(answer["data"][0]["embedding"]) if answer else []


async def _post(http: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer; {} when the engine refused, as it does a text too long for a small encoder."""
    answer = await http.post(path, json=body)
    if answer.is_client_error or "too large" in answer.text:  # the latter comes as a 500
        return {}
    if not answer.is_success:
        # As good as a crash: a decode that a sound runtime would have done.
        raise EOFError
    content: dict[str, Any] = answer.json()
    return content


def _plan(model: Path, threads: int, *, embedder: bool, safe: bool) -> LaunchPlan:
    context = _ENCODER_CONTEXT if embedder else _CONTEXT
    ubatch = _ENCODER_CONTEXT if embedder else _UBATCH
    return LaunchPlan(
        model_id="canary",
        model_path=model,
        mmproj_path=None,
        context=context,
        parallel=_SLOTS,
        threads=threads,
        threads_batch=threads,
        batch=context,
        ubatch=ubatch,
        n_outputs_max=ubatch if embedder else _SLOTS,
        cache_ram_mib=0,
        checkpoints=0,
        kv_unified=True,
        embedding=embedder,
        pooling=None,
        extra_buffers=not safe,
        gpu_layers=0,
        memory=MemoryNeed(0, 0, 0, 0, 0, 0),
    )


def _is_embedder(model: Path) -> bool:
    try:
        with model.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return is_embedder(model_facts(read_header(stream, size), size))
    except (OSError, GgufError):
        return False  # the run will say what is wrong with the file


def _replace(file: Path, text: str) -> None:
    """Write in one step: a reader sees the old file or the new one."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).replace(file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
