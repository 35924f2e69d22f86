"""From what is known to what is shown: icon, tooltip and menu. Pure; no clock of its own.

A left click does nothing surprising: while the daemon runs no row is the default, so that the
click opens the menu. Copying the URL would overwrite what the user has just copied, and a switch
would change something by a slip of the hand. Without a daemon there is one thing to want: start it.
"""

from __future__ import annotations

import re
from typing import Final

from stoker.types import ModelState
from stoker_tray import rows
from stoker_tray.face import PROGRESS_STEPS, Badge, Command, Face, IconKey, IconState, Row, Verb
from stoker_tray.notices import Kind
from stoker_tray.rows import COMING, LOADED, RUNNING
from stoker_tray.shapes import Model, Pull, Resources, Server
from stoker_tray.state import State
from stoker_tray.words import known, left, line, listed, name, part, percent, plural, size, speed

LONGEST_TITLE: Final = 120  # Windows takes 127
TICK_S: Final = 1.0  # how often the time left of a load changes
_TITLE_NAME: Final = 32
_SENTENCE: Final = 110
_MOST_BYTES: Final = 10**18
_WEB_ADDRESS: Final = re.compile(r"https?://([!-.0-~]{1,100})(?:/[!-~]{0,100})?")
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+-]{0,30}")
_NOT_RUNNING: Final = "Stoker is not running"
_KINDS: Final[dict[Kind, str]] = {
    Kind.READY: "A model is ready after a long load",
    Kind.DOWNLOADED: "A download is finished",
    Kind.FAILED: "A load or a download failed",
    Kind.DAMAGED: "A new problem, such as a damaged model",
    Kind.EXPOSED: "Open to the network",
    Kind.UPDATE: "A newer version",
}


def face(state: State, now_s: float) -> Face:
    """What to show for this state at this time, on the clock that `state.apply` was given."""
    if state.connected:
        menu = (*_status_rows(state, now_s), *_action_rows(state), *_service_rows(state))
    else:
        menu = _rows_without_daemon(state, now_s)
    return Face(_icon(state, now_s), _title(state, now_s), menu)


def next_look_s(state: State, now_s: float) -> float | None:
    """Seconds until the face may change without any event; None when it will not."""
    waits = []
    if state.connected and _is_serving(state):
        model = current(state)
        if model is not None and _left_s(state, model, now_s) is not None:
            waits.append(TICK_S)
    if state.note_until_s is not None and _note(state, now_s):
        waits.append(max(0.0, state.note_until_s - now_s))
    return min(waits, default=None)


def current(state: State) -> Model | None:
    """The model that the headline is about: on its way, else the one used last, else any."""
    coming = [model for model in state.models if model.state in COMING]
    if coming:
        return min(coming, key=lambda model: model.state != ModelState.LOADING)
    loaded = [model for model in state.models if model.state in LOADED]
    ready = [model for model in loaded if model.state == ModelState.READY] or loaded
    return next((one for one in ready if one.id == state.latest), ready[0] if ready else None)


# --- icon ------------------------------------------------------------------------------------


def _icon(state: State, now_s: float) -> IconKey:
    shape = _shape(state)
    running = [pull for pull in state.pulls if pull.state in RUNNING]
    badge = None
    if _is_exposed(state):
        badge = Badge.EXPOSED
    elif running:
        badge = Badge.DOWNLOADING
    if shape is IconState.LOADING:
        return IconKey(shape, badge, _load_progress(state, now_s))
    return IconKey(shape, badge, _steps(running) if badge is Badge.DOWNLOADING else None)


def _shape(state: State) -> IconState:
    if not _is_serving(state):
        return IconState.OFF
    states = {model.state for model in state.models}
    if states & COMING:
        return IconState.LOADING
    if state.problems or ModelState.FAILED in states:
        return IconState.ATTENTION
    if any(model.in_flight > 0 for model in state.models if model.state in LOADED):
        return IconState.BUSY
    return IconState.READY if states & LOADED else IconState.IDLE


def _is_serving(state: State) -> bool:
    return state.connected and state.server is not None and state.server.enabled


def _is_exposed(state: State) -> bool:
    return _is_serving(state) and state.server is not None and state.server.lan


def _load_progress(state: State, now_s: float) -> int | None:
    model = current(state)
    expected = rows.expected_s(model) if model is not None else None
    if model is None or expected is None or model.id not in state.loading_since:
        return None
    elapsed = known(now_s - state.loading_since[model.id], 10**9) or 0.0
    return min(int(PROGRESS_STEPS * elapsed / expected), PROGRESS_STEPS - 1)  # full is ready


def _sums(pulls: list[Pull]) -> tuple[float, float] | None:
    """Bytes done and in all, of the downloads whose size is known."""
    pairs = [
        (known(pull.bytes_done, _MOST_BYTES) or 0, whole)
        for pull in pulls
        if (whole := known(pull.bytes_total, _MOST_BYTES))
    ]
    if not pairs:
        return None
    return sum(min(done, whole) for done, whole in pairs), sum(whole for _, whole in pairs)


def _steps(pulls: list[Pull]) -> int | None:
    sums = _sums(pulls)
    return None if sums is None else int(PROGRESS_STEPS * sums[0] / sums[1])


def _left_s(state: State, model: Model, now_s: float) -> float | None:
    """How much longer the load should take; None when nobody knows, or it is late."""
    expected = rows.expected_s(model)
    if model.state != ModelState.LOADING or expected is None:
        return None
    since = state.loading_since.get(model.id, now_s)
    return known(expected - max(0.0, now_s - since), 10**9)


# --- tooltip ---------------------------------------------------------------------------------


def _title(state: State, now_s: float) -> str:
    """What matters most comes first; what does not fit is left out."""
    if not state.connected:
        return _NOT_RUNNING
    title = f"Stoker: {_doing(state, now_s)}"
    running = [pull for pull in state.pulls if pull.state in RUNNING]
    more = (
        "open to the network" if _is_exposed(state) else "",
        plural(len(state.problems), "problem") if state.problems else "",
        f"downloading {percent(*(_sums(running) or (0, None)))}".rstrip() if running else "",
    )
    for one in more:
        longer = listed([title, one])
        title = longer if len(longer) <= LONGEST_TITLE else title
    return title


def _doing(state: State, now_s: float) -> str:
    if not _is_serving(state):
        return "server off"
    model = current(state) or _failed(state)
    if model is None:
        return "no model loaded"
    called = name(model.id, _TITLE_NAME)
    match model.state:
        case ModelState.LOADING:
            time = left(_left_s(state, model, now_s))
            said = f"loading {called} ({time})" if time else f"loading {called}"
        case ModelState.QUEUED:
            said = f"{called} waiting to load"
        case ModelState.DRAINING:
            said = f"unloading {called}"
        case ModelState.FAILED:
            said = f"{called} failed"
        case _ if model.in_flight > 0:
            said = listed([f"{called} answering", speed(model.tokens_per_s)])
        case _:
            said = listed([f"{called} ready", rows.memory(model)])
    return said


def _failed(state: State) -> Model | None:
    return next((one for one in state.models if one.state == ModelState.FAILED), None)


# --- menu: what is -----------------------------------------------------------------------------


def _status_rows(state: State, now_s: float) -> tuple[Row, ...]:
    usage = _usage(state.resources) if state.resources is not None else ""
    found = [Row("header", _headline(state, now_s)), *_own_rows(state, now_s)]
    if memory := _memory(state):
        found.append(Row("memory", memory))
    if usage:
        found.append(Row("usage", usage))
    return (*found, Row("separator-status", separator=True))


def _headline(state: State, now_s: float) -> str:
    if not _is_serving(state):
        return "Server is off"
    model = current(state) or _failed(state)
    if model is None:
        return "No model loaded"
    match model.state:
        case ModelState.READY:
            said = rows.answering(model)
        case ModelState.LOADING:
            said = listed(["loading", left(_left_s(state, model, now_s))])
        case _:
            said = rows.model_detail(model)
    others = sum(one.state in LOADED for one in state.models if one is not model)
    return f"{name(model.id)} — {said}{f', and {others} more' if others else ''}"


def _own_rows(state: State, now_s: float) -> list[Row]:
    """What the tray itself is doing, and what it could not do."""
    found = []
    if state.busy is not None:
        found.append(Row("busy", f"{line(state.busy, _SENTENCE) or 'Working'} …"))
    if note := _note(state, now_s):
        found.append(Row("note", note))
    return found


def _note(state: State, now_s: float) -> str:
    is_old = state.note_until_s is not None and now_s >= state.note_until_s
    return "" if is_old else line(state.note or "", _SENTENCE)


def _memory(state: State) -> str:
    workers = [model for model in state.models if model.memory is not None]
    held = size(rows.total(rows.memory_bytes(model) for model in workers) or None)
    label = "Model" if len(workers) == 1 else "Models"
    machine = ""
    if state.resources is not None:
        machine = part(state.resources.ram_used_bytes, state.resources.ram_total_bytes)
    return _dotted(f"{label} {held}" if held else "", f"Memory {machine}" if machine else "")


def _usage(resources: Resources) -> str:
    cpu = known(resources.cpu_percent, 100_000)
    gpus = [gpu for gpu in resources.gpus if known(gpu.vram_total_bytes, _MOST_BYTES)]
    whole = rows.total(gpu.vram_total_bytes for gpu in gpus)
    used = rows.total(gpu.vram_used_bytes for gpu in gpus)
    video = part(used, whole) or size(whole)
    label = f"{len(gpus)} GPUs" if len(gpus) > 1 else "GPU"
    return _dotted("" if cpu is None else f"CPU {cpu:.0f} %", f"{label} {video}" if video else "")


def _dotted(*parts: str) -> str:
    return " · ".join(one for one in parts if one)


# --- menu: what can be done --------------------------------------------------------------------


def _action_rows(state: State) -> tuple[Row, ...]:
    """Models can be used while the server is on; downloads go on without it."""
    found: list[Row | None] = [rows.models_row(state)] if _is_serving(state) else []
    found += [rows.offers_row(state), *rows.pull_rows(state)]
    if state.server is not None:
        found += _server_rows(state.server)
    if _is_serving(state) and any(_is_idle(model) for model in state.models):
        found.append(Row("free", "Free memory now", Command(Verb.FREE)))
    found.append(Row("separator-actions", separator=True))
    return tuple(row for row in found if row is not None)


def _is_idle(model: Model) -> bool:
    return model.state == ModelState.READY and model.in_flight <= 0 and model.queued <= 0


def _server_rows(server: Server) -> list[Row]:
    address = _WEB_ADDRESS.fullmatch(server.base_url)
    place = f" on {line(address[1], _SENTENCE)}" if address else ""
    command = Command(Verb.SERVER, "off" if server.enabled else "on")
    reach = ", open to the network" if server.enabled and server.lan else ""
    found = [Row("server", f"Serve{place}{reach}", command, checked=server.enabled)]
    if address:
        found.append(Row("url", "Copy endpoint URL", Command(Verb.COPY_URL, server.base_url)))
    return found


def _service_rows(state: State) -> tuple[Row, ...]:
    found = [*_login_rows(state), _notices_row(state), Row("logs", "Open logs", _LOGS)]
    version = state.daemon.update if state.daemon is not None else None
    if version is not None and _VERSION.fullmatch(version):
        text = f"Version {version} is there …"
        found.append(Row("update", text, Command(Verb.OPEN_UPDATE)))
    problems = rows.problems_row(state)
    if problems is not None:
        found.append(problems)
    return (
        *found,
        Row("separator-end", separator=True),
        Row("quit", "Quit icon (Stoker keeps running)", Command(Verb.QUIT)),
        Row("stop", "Stop Stoker", Command(Verb.STOP)),
    )


def _login_rows(state: State) -> list[Row]:
    """Left out where it is not known whether they are on: a tick must never lie."""
    switches = (
        ("autostart", "Start at login", Verb.AUTOSTART, state.autostart),
        ("autostart-tray", "Show this icon at login", Verb.AUTOSTART_TRAY, state.autostart_tray),
    )
    return [
        Row(key, text, Command(verb, "off" if is_on else "on"), checked=is_on)
        for key, text, verb, is_on in switches
        if is_on is not None
    ]


def _notices_row(state: State) -> Row:
    return Row(
        "notices",
        "Notifications",
        children=tuple(
            Row(
                f"notice:{kind.value}",
                text,
                Command(Verb.UNMUTE if kind in state.muted else Verb.MUTE, kind.value),
                checked=kind not in state.muted,
            )
            for kind, text in _KINDS.items()
        ),
    )


_LOGS: Final = Command(Verb.OPEN_LOGS)


def _rows_without_daemon(state: State, now_s: float) -> tuple[Row, ...]:
    found = [Row("header", _NOT_RUNNING), *_own_rows(state, now_s)]
    if state.busy is None:
        found.append(Row("start", "Start Stoker", Command(Verb.START), default=True))
    return (
        *found,
        Row("separator-status", separator=True),
        *_login_rows(state),
        Row("logs", "Open logs", _LOGS),
        Row("separator-end", separator=True),
        Row("quit", "Quit icon", Command(Verb.QUIT)),
    )
