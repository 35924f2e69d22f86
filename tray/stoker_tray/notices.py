"""Which changes are worth a notification: what a person waits for, or must act on. Pure.

What was there when the tray connected is no news, so nothing is told twice after a reconnect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from stoker.types import ModelState, PullState
from stoker_tray.face import Notice
from stoker_tray.rows import COMING, load_s, pull_name
from stoker_tray.shapes import Failure, Model
from stoker_tray.state import State
from stoker_tray.words import duration, line, name, size

LONGEST_TITLE: Final = 60
LONGEST_TEXT: Final = 240
LONG_LOAD_S: Final = 10.0  # for a shorter one a person looks on
SAME_FAILURE_S: Final = 5.0  # the daemon's event and the answer to the tray's own call are one
_NAME: Final = 32


class Kind(StrEnum):
    """Each can be switched off by itself."""

    READY = "ready"  # after a long load
    DOWNLOADED = "downloaded"  # and verified
    DAMAGED = "damaged"  # a model, or whatever else the status calls a problem
    EXPOSED = "exposed"  # the endpoint was opened to the network
    FAILED = "failed"  # a load, a download, or what was asked for in the menu
    UPDATE = "update"


Moved = tuple[Model, Model | None]  # now, and before


@dataclass(frozen=True, slots=True)
class Memory:
    """What has been told already."""

    failed: frozenset[str] = frozenset()  # models, until they are ready again
    failed_at_s: float = float("-inf")  # the last one
    noted_at_s: float = float("-inf")  # the last thing asked for here that did not happen
    version: str | None = None


def notices(
    before: State, after: State, now_s: float, memory: Memory | None = None
) -> tuple[list[Notice], Memory]:
    """What to tell about the step from one state to the next, and what to remember of it.

    Call it for every step, with the memory of the last call. Muted kinds are remembered, too, so
    that one that is switched on again does not catch up.
    """
    memory = memory or Memory()
    moved = _moved(before, after)
    noted = list(_own_failure(before, after))
    failed: list[Notice] = []
    others: list[Notice] = []
    if before.connected and after.connected:
        failed += _failed_loads(moved, memory)
        others += [*_long_loads(moved, before, now_s), *_pull_news(before, after)]
        others += [*_problem_news(before, after), *_exposed(before, after)]
        others += _update(after, memory)
    found = [
        *([] if failed or now_s - memory.failed_at_s < SAME_FAILURE_S else noted),
        *([] if now_s - memory.noted_at_s < SAME_FAILURE_S else failed),
        *others,
    ]
    if failed:
        memory = replace(memory, failed_at_s=now_s)
    if noted:
        memory = replace(memory, noted_at_s=now_s)
    told = [one for one in found if one.kind not in after.muted]
    return told, _remembered(memory, before, after, moved)


def _remembered(memory: Memory, before: State, after: State, moved: list[Moved]) -> Memory:
    if not after.connected:
        return memory
    kept = memory.failed if before.connected else frozenset()
    good = {model.id for model, _ in moved if model.state == ModelState.READY}
    bad = {model.id for model, _ in moved if model.state == ModelState.FAILED}
    failed = (kept | bad) - good
    version = (after.daemon.update if after.daemon is not None else None) or memory.version
    if (failed, version) == (memory.failed, memory.version):
        return memory
    return replace(memory, failed=failed, version=version)


def _notice(kind: Kind, title: str, text: str) -> Notice:
    """The title is ours but for a short name; the text may hold anybody's words."""
    return Notice(kind.value, title[:LONGEST_TITLE], line(text, LONGEST_TEXT))


def _sentences(*texts: str) -> str:
    return " ".join(f"{text.rstrip('. ')}." for text in texts if text)


def _own_failure(before: State, after: State) -> Iterator[Notice]:
    if after.note and after.note != before.note:
        yield _notice(Kind.FAILED, "That did not work", _sentences(after.note))


# --- models ----------------------------------------------------------------------------------


def _moved(before: State, after: State) -> list[Moved]:
    """The models whose state changed, each with what it was. Cheap when few are new."""
    if before.models is after.models:
        return []
    pairs: list[Moved]
    pairs = [
        (now, was) for now, was in zip(after.models, before.models, strict=False) if now is not was
    ]
    if len(before.models) != len(after.models) or any(
        was and now.id != was.id for now, was in pairs
    ):
        old = {model.id: model for model in before.models}
        pairs = [(model, old.get(model.id)) for model in after.models]
    return [(now, was) for now, was in pairs if was is None or was.state != now.state]


def _failed_loads(moved: list[Moved], memory: Memory) -> Iterator[Notice]:
    for model, _ in moved:
        if model.state == ModelState.FAILED and model.id not in memory.failed:
            title = f"{name(model.id, _NAME)} could not be loaded"
            yield _notice(Kind.FAILED, title, _why(model.error))


def _long_loads(moved: list[Moved], before: State, now_s: float) -> Iterator[Notice]:
    for model, was in moved:
        if model.state == ModelState.READY and was is not None and was.state in COMING:
            took = load_s(model)
            if took is None:
                took = now_s - before.loading_since.get(model.id, now_s)
            if took > LONG_LOAD_S:
                title = f"{name(model.id, _NAME)} is ready"
                yield _notice(Kind.READY, title, f"It took {duration(took) or 'long'} to load.")


def _why(error: Failure | None) -> str:
    return "See the logs." if error is None else _sentences(error.message, error.hint)


# --- downloads -------------------------------------------------------------------------------


def _pull_news(before: State, after: State) -> Iterator[Notice]:
    if before.pulls is after.pulls:
        return
    under_way = {pull.id for pull in before.pulls if not pull.ended}
    for pull in after.pulls:
        if pull.id not in under_way:
            continue
        called = name(pull_name(pull), _NAME)
        if pull.state == PullState.DONE:
            text = f"{size(pull.bytes_total)}, verified and ready to use.".lstrip(", ")
            yield _notice(Kind.DOWNLOADED, f"{called} is downloaded", text)
        elif pull.state == PullState.FAILED:
            yield _notice(Kind.FAILED, f"{called} could not be downloaded", _why(pull.error))


# --- the store, the endpoint, the version ----------------------------------------------------


def _problem_news(before: State, after: State) -> Iterator[Notice]:
    known = set(before.problems)
    news = [text for text in after.problems if text not in known]
    if news:
        more = f" And {len(news) - 1} more." if len(news) > 1 else ""
        text = f"{_sentences(line(news[0], LONGEST_TEXT - 30))}{more}"
        yield _notice(Kind.DAMAGED, "Something is wrong", text)


def _exposed(before: State, after: State) -> Iterator[Notice]:
    if before.server is None or after.server is None:
        return
    is_open = after.server.lan and after.server.enabled
    if is_open and not (before.server.lan and before.server.enabled):
        text = "Other machines can reach it now, with a key."
        yield _notice(Kind.EXPOSED, "The endpoint is open to the network", text)


def _update(after: State, memory: Memory) -> Iterator[Notice]:
    version = after.daemon.update if after.daemon is not None else None
    if version and version != memory.version:
        text = "The icon's menu leads to its page."
        yield _notice(Kind.UPDATE, f"Stoker {name(version, 20)} is there", text)
