"""Every error that Stoker raises on purpose. Imports nothing; clients may import it cheaply.

StokerError
├── InputError              what the user typed or sent
│   ├── BadReference            not a model reference
│   ├── BadRequest              a request body or parameter that cannot be served
│   ├── BodyTooLarge            over the body limit
│   ├── UnsupportedMediaType    not application/json
│   ├── ContextTooLong          the prompt does not fit the model's context
│   ├── NotCapable              the model cannot do what was asked
│   ├── UnknownModel            no such model in the store
│   ├── UnknownPull             no such pull
│   ├── UnknownRuntime          no such runtime, installed or offered
│   ├── BadTuningFile           a file of tuned settings that cannot be used here
│   ├── UnknownRoute            no such path
│   ├── MethodNotAllowed        the path exists, the method does not
│   ├── BadSetting              a setting with a wrong name or value
│   └── BadUsage                a command line that cannot be run
├── RefusedError            a policy said no
│   ├── HostNotAllowed          Host header outside the allow-list
│   ├── OriginNotAllowed        a browser page, not a local program
│   ├── PeerNotAllowed          another user, or no token, on the control plane
│   ├── ScanRefused             the Hub's scanners call the file unsafe or suspicious
│   ├── TemplateRefused         a chat template that no user should run
│   ├── FileKindRefused         a file kind that Stoker never downloads
│   ├── AutostartBlocked        the user switched start at login off in the system itself
│   └── RedirectRefused         a server sent us somewhere it must not
├── SourceError             the remote side
│   ├── SourceUnreachable       no answer, or cut too often
│   ├── SourceNotFound          no such repository, revision or file
│   ├── SourceGated             needs a token or an accepted licence
│   ├── SourceRateLimited       asked too often
│   ├── SourceInvalid           an answer that is not what the protocol says
│   └── SourceOffline           offline mode is on
├── VerificationError       bytes that are not what they should be
│   ├── DigestMismatch          the SHA-256 differs
│   ├── SizeMismatch            short, long or empty
│   ├── GgufError               not a sound GGUF file
│   └── BlobDamaged             a stored blob no longer matches its name
├── StoreError              this machine's store
│   ├── DiskFull                not enough room
│   ├── ManifestInvalid         a manifest that cannot be read
│   ├── StoreUnsafe             the folder belongs to someone else, or is open to all
│   ├── StoreTooNew             written by a newer Stoker
│   └── ModelInUse              loaded or being pulled right now
├── EngineError             an engine, a runtime or a worker
│   ├── RuntimeUnsupported      this machine's CPU or system cannot run the runtime
│   ├── CanaryFailed            the runtime gave wrong tokens or died in its self-test
│   ├── RuntimeRejected         a new runtime that is not sound or not faster here; nothing changed
│   ├── CompilerMissing         a runtime has to be compiled, and there is no compiler
│   ├── BuildFailed             a runtime could not be compiled or installed
│   ├── LabFailed               a dry run or a measurement came to nothing
│   ├── WorkerFailed            a worker ended on its own; carries the classified reason
│   ├── WorkerTimeout           a worker was not ready in time
│   └── WorkerLost              a worker went away in the middle of a request
├── UpstreamError           another server that requests are routed to
│   ├── UpstreamDown            it does not answer
│   └── UpstreamRefused         it does not take our key
├── CapacityError           not now, or not on this machine
│   ├── MemoryShort             does not fit in the memory that is free
│   ├── MachineBusy             a build or a measurement runs already
│   ├── QueueFull               too many requests are waiting
│   ├── WaitTimeout             waited too long for a model
│   ├── Overtaken               the user chose another model meanwhile
│   ├── ServerOff               the server is switched off
│   └── ShuttingDown            the daemon is stopping
└── DaemonError             the daemon itself, as its clients see it
    ├── DaemonNotRunning
    ├── DaemonAlreadyRunning
    ├── DaemonNotReady          started, but did not answer in time
    ├── PortTaken
    ├── AutostartFailed         the system's service manager did not do what was asked
    └── InternalError           our bug
"""

from __future__ import annotations


class StokerError(Exception):
    """Base of all. ``code`` is stable and documented; ``hint`` says what to do next.

    A class gives a default hint; a raiser that knows better passes its own. ``facts`` are plain
    JSON values (numbers, names) that a client may show or act on; they never hold secrets.
    """

    code = "error"
    hint = "See `stoker logs` for what happened before."

    def __init__(self, message: str, *, hint: str | None = None, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint if hint is not None else type(self).hint
        self.facts = facts

    def __str__(self) -> str:
        return self.message


# --- what the user typed or sent -------------------------------------------------------------


class InputError(StokerError):
    code = "input_error"
    hint = "Correct the input and try again."


class BadReference(InputError):
    code = "bad_reference"
    hint = "Use owner/repo[:quant-or-file][@revision], a name from `stoker list`, or a file path."


class BadRequest(InputError):
    code = "bad_request"
    hint = "Correct the request and send it again."


class BodyTooLarge(InputError):
    code = "body_too_large"
    hint = "Send a smaller request, or raise max_body_bytes in config.toml."


class UnsupportedMediaType(InputError):
    code = "unsupported_media_type"
    hint = "Send JSON with the header Content-Type: application/json."


class ContextTooLong(InputError):
    code = "context_length_exceeded"
    hint = "Shorten the prompt, or use a model with a longer context."


class NotCapable(InputError):
    code = "not_capable"
    hint = "Choose a model that can do this; `stoker show MODEL` lists what each one can do."


class UnknownModel(InputError):
    code = "model_not_found"
    hint = "Pull it with `stoker pull MODEL`, or choose one from `stoker list`."


class UnknownPull(InputError):
    code = "pull_not_found"
    hint = "See the running pulls with `stoker status`."


class UnknownRuntime(InputError):
    code = "runtime_not_found"
    hint = "See what there is with `stoker runtime list`."


class BadTuningFile(InputError):
    code = "bad_tuning_file"
    hint = "Use a file that `stoker tune --export` wrote on a machine like this one."


class UnknownRoute(InputError):
    code = "not_found"
    hint = "The API is described in docs/api.md; the base URL ends in /v1."


class MethodNotAllowed(InputError):
    code = "method_not_allowed"
    hint = "See docs/api.md for the methods of this path."


class BadSetting(InputError):
    code = "bad_setting"
    hint = "See the settings with `stoker config show`."


class BadUsage(InputError):
    code = "bad_usage"
    hint = "See `stoker --help`."


# --- a policy said no ------------------------------------------------------------------------


class RefusedError(StokerError):
    code = "refused"
    hint = "Stoker refuses this on purpose; docs/security.md says why."


class HostNotAllowed(RefusedError):
    code = "host_not_allowed"
    hint = "Call http://127.0.0.1 or http://localhost, or add the name to allowed_hosts."


class OriginNotAllowed(RefusedError):
    code = "origin_not_allowed"
    hint = "Web pages may not call Stoker; to allow one, add its origin to allowed_origins."


class PeerNotAllowed(RefusedError):
    code = "peer_not_allowed"
    hint = "Only the user who started the daemon can control it."


class ScanRefused(RefusedError):
    code = "scan_refused"
    hint = "Choose another repository or revision; the Hub's scanners object to this file."


class TemplateRefused(RefusedError):
    code = "template_refused"
    hint = "Choose another build of this model; its chat template is not safe to run."


class FileKindRefused(RefusedError):
    code = "file_kind_refused"
    hint = "Stoker runs GGUF files only; choose a repository that holds one."


class AutostartBlocked(RefusedError):
    code = "autostart_blocked"
    hint = "It was switched off in the system's own settings; switch it on there."


class RedirectRefused(RefusedError):
    code = "redirect_refused"
    hint = "The server sent the download to a place it must not; check hub_endpoint."


# --- the remote side -------------------------------------------------------------------------


class SourceError(StokerError):
    code = "source_error"
    hint = "Try again later; what was downloaded is kept."


class SourceUnreachable(SourceError):
    code = "source_unreachable"
    hint = "Check the network and pull again; the download goes on where it stopped."


class SourceNotFound(SourceError):
    code = "source_not_found"
    hint = "Check the spelling of the repository, the revision and the file."


class SourceGated(SourceError):
    code = "source_gated"
    hint = "Accept the licence on the model's page, then set HF_TOKEN or log in with `hf auth`."


class SourceRateLimited(SourceError):
    code = "source_rate_limited"
    hint = "Wait a few minutes and pull again; the download goes on where it stopped."


class SourceInvalid(SourceError):
    code = "source_invalid"
    hint = "The server's answer makes no sense; check hub_endpoint, a proxy or a login page."


class SourceOffline(SourceError):
    code = "source_offline"
    hint = "Offline mode is on; turn it off with `stoker config set offline false`."


# --- bytes that are not what they should be --------------------------------------------------


class VerificationError(StokerError):
    code = "verification_failed"
    hint = "Pull the model again; if it repeats, do not use this source."


class DigestMismatch(VerificationError):
    code = "digest_mismatch"
    hint = "Pull again; if it repeats, the source or the network alters the file."


class SizeMismatch(VerificationError):
    code = "size_mismatch"
    hint = "Pull again; if it repeats, the source serves another file than it lists."


class GgufError(VerificationError):
    code = "gguf_invalid"
    hint = "The file is not a sound GGUF model; choose another file or repository."


class BlobDamaged(VerificationError):
    code = "blob_damaged"
    hint = "Pull the model again to repair it; check the disk if it repeats."


# --- this machine's store --------------------------------------------------------------------


class StoreError(StokerError):
    code = "store_error"


class DiskFull(StoreError):
    code = "disk_full"
    hint = "Free some space (`stoker rm MODEL` helps) and pull again; nothing was lost."


class ManifestInvalid(StoreError):
    code = "manifest_invalid"
    hint = "Pull the model again; its blobs are reused when they are sound."


class StoreUnsafe(StoreError):
    code = "store_unsafe"
    hint = "The store folder must be yours and closed to others (chmod 700)."


class StoreTooNew(StoreError):
    code = "store_too_new"
    hint = "This store was written by a newer Stoker; upgrade Stoker."


class ModelInUse(StoreError):
    code = "model_in_use"
    hint = "Unload it first with `stoker unload MODEL`, or wait for the pull to end."


# --- an engine, a runtime or a worker --------------------------------------------------------


class EngineError(StokerError):
    code = "engine_error"
    hint = "Send the request again; `stoker logs` has the engine's last words."


class RuntimeUnsupported(EngineError):
    code = "runtime_unsupported"
    hint = "`stoker doctor` says what this machine lacks."


class CanaryFailed(EngineError):
    code = "canary_failed"
    hint = "The engine fails its self-test on this machine; `stoker doctor` has the details."


class RuntimeRejected(EngineError):
    """``facts["reason"]`` is ``unsound`` or ``slower``."""

    code = "runtime_rejected"
    hint = "The runtime that served before goes on serving; `stoker runtime list` shows both."


class CompilerMissing(EngineError):
    code = "compiler_missing"
    hint = "Install a C++ compiler, such as the package build-essential, and try again."


class BuildFailed(EngineError):
    """``facts["tail"]`` holds the last lines of the build."""

    code = "build_failed"
    hint = (
        "The runtime that served before goes on serving; `stoker logs` has the build's last words."
    )


class LabFailed(EngineError):
    """``facts["tail"]`` holds the last lines of the process that measured."""

    code = "lab_failed"
    hint = "Models are served with estimated settings; `stoker logs` has the details."


class WorkerFailed(EngineError):
    """``facts["kind"]`` is a `stoker.types.FailureKind` value."""

    code = "worker_failed"


class WorkerTimeout(EngineError):
    code = "worker_timeout"
    hint = "The model took too long to load; see `stoker logs`, or choose a smaller one."


class WorkerLost(EngineError):
    code = "worker_lost"
    hint = "The engine stopped in the middle; send the request again."


# --- another server --------------------------------------------------------------------------


class UpstreamError(StokerError):
    code = "upstream_error"
    hint = "The other server's own log says more; `stoker status` shows whether it is up."


class UpstreamDown(UpstreamError):
    code = "upstream_down"
    hint = "Start the other server, or remove it from `upstreams` in config.toml."


class UpstreamRefused(UpstreamError):
    code = "upstream_refused"
    hint = "Set its key in config.toml: `key` or `key_file` of this upstream."


# --- not now, or not on this machine ---------------------------------------------------------


class CapacityError(StokerError):
    code = "capacity"
    hint = "Try again in a moment."


class MemoryShort(CapacityError):
    code = "memory_short"
    hint = "Close other programs, unload another model, or choose a smaller one."


class MachineBusy(CapacityError):
    code = "machine_busy"
    hint = "Wait until it is done: `stoker runtime list` and `stoker tune` show the progress."


class QueueFull(CapacityError):
    code = "queue_full"


class WaitTimeout(CapacityError):
    code = "wait_timeout"


class Overtaken(CapacityError):
    code = "overtaken"


class ServerOff(CapacityError):
    code = "server_off"
    hint = "Switch it on with `stoker server on`."


class ShuttingDown(CapacityError):
    code = "shutting_down"
    hint = "Start Stoker again with `stoker start`."


# --- the daemon, as its clients see it -------------------------------------------------------


class DaemonError(StokerError):
    code = "daemon_error"


class DaemonNotRunning(DaemonError):
    code = "daemon_not_running"
    hint = "Start it with `stoker start`."


class DaemonAlreadyRunning(DaemonError):
    code = "daemon_already_running"
    hint = "Nothing to do; `stoker status` shows it."


class DaemonNotReady(DaemonError):
    code = "daemon_not_ready"


class PortTaken(DaemonError):
    code = "port_taken"
    hint = "Stop the other program, or choose a port: `stoker config set port 4329`."


class AutostartFailed(DaemonError):
    code = "autostart_failed"
    hint = "See `stoker autostart status`; Stoker itself runs without it: `stoker start`."


class InternalError(DaemonError):
    code = "internal_error"
    hint = "This is a fault in Stoker; please report it with the output of `stoker logs`."


def all_errors() -> dict[str, type[StokerError]]:
    """Every error class by its code, the abstract families included."""
    found: dict[str, type[StokerError]] = {}
    stack: list[type[StokerError]] = [StokerError]
    while stack:
        cls = stack.pop()
        if "code" in vars(cls):  # a module's own subclass for its own use is not on the wire
            found[cls.code] = cls
        stack.extend(cls.__subclasses__())
    return found


def from_wire(code: str, message: str, hint: str, facts: dict[str, object]) -> StokerError:
    """The error that the daemon reported, as its own class; an unknown code gives the base."""
    error = all_errors().get(code, StokerError)(message, hint=hint)
    error.facts = facts
    if type(error) is StokerError:
        error.code = code  # a newer daemon's code must not be lost
    return error
