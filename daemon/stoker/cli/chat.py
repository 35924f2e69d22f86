"""`run`: ask a model in the terminal, once or in a conversation."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from stoker import errors
from stoker.cli import boundary, completion, connection, progress, pulls, recommend
from stoker.cli.output import clean, in_colour, note, paint, size

if TYPE_CHECKING:
    from stoker.client import StokerClient

_PROMPT: Final = ">>> "
_FILES = typer.Option(
    None, "--file", "-f", help="Add the text of a file to the prompt; may be repeated."
)
_HELP: Final = """\
/bye      end (Ctrl-D does too)
/clear    forget the conversation
/help     this list
Ctrl-C    stop the answer that is being written"""


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    model: str | None = typer.Argument(
        None, help="A model of `stoker list`; not needed while there is only one."
    ),
    prompt: str | None = typer.Argument(None, help="Ask this and end; `-` reads it from stdin."),
    file: list[Path] = _FILES,
    system: str | None = typer.Option(None, "--system", "-s", help="Instructions for the model."),
    temperature: float | None = typer.Option(None, "--temperature", min=0, max=5),
    max_tokens: int | None = typer.Option(None, "--max-tokens", min=1),
    stats: bool = typer.Option(False, "--stats", help="Say how fast each answer was."),
) -> None:
    """Chat with a model, or ask it once.

    With a PROMPT or piped text it answers once and ends.
    """
    question = _question(prompt, file or [])
    with connection.daemon() as client:
        name = _stored(client, model) if model else _only(client)
        with progress.waiting(f"Loading {name} …"):
            client.load(name)
        base_url = client.status().server.base_url
    talk = Conversation(base_url, name, system, {"temperature": temperature}, stats=stats)
    talk.options["max_tokens"] = max_tokens
    if question is not None:
        if not talk.say(question):
            raise typer.Exit(boundary.INTERRUPTED)
    else:
        converse(talk)


def _question(prompt: str | None, files: list[Path]) -> str | None:
    """What to ask once, or None for a conversation. Raises BadUsage when there is nothing."""
    if prompt == "-" or (prompt is None and not files and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    elif prompt is None and not files:
        return None
    try:
        parts = [prompt or "", *(file.read_text(encoding="utf-8") for file in files)]
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read the text: {error}"
        raise errors.BadUsage(msg, hint="--file takes text files in UTF-8.") from error
    question = "\n\n".join(part.strip() for part in parts if part.strip())
    if not question:
        msg = "there is nothing to ask"
        raise errors.BadUsage(msg, hint='Give a prompt: stoker run MODEL "your question".')
    return question


def _stored(client: StokerClient, model: str) -> str:
    """The model's id; offers to pull what is not there, and never does so unasked."""
    try:
        return client.model(model).id
    except errors.UnknownModel as unknown:
        wanted = _pullable(model)
        if wanted is None:
            raise
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            unknown.hint = f"Pull it first: `stoker pull {model}`."
            raise
        typer.confirm(f"{model} is not stored. Pull it now ({wanted})?", abort=True, err=True)
        done = pulls.watch(client, client.pull(model))
        return done.model or model


def _only(client: StokerClient) -> str:
    """The model that nobody had to name; with an empty store, offers the best fit."""
    names = [view.id for view in client.models()]
    if len(names) > 1:
        status = client.status()
        if status.default in names:
            return status.default
        names = [view.id for view in status.models if view.state == "ready"] or names
    if len(names) == 1:
        return names[0]
    if names:
        raise errors.BadUsage("which model?", hint=f"Name one of: {', '.join(names)}.")
    best = recommend.best(client)
    if best is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        command = f"stoker pull {best.name if best else 'starter'}"
        raise errors.BadUsage("there is no model yet", hint=f"Get one first: `{command}`.")
    note("There is no model yet. " + recommend.offer(best))
    typer.confirm("Pull it now?", abort=True, err=True)
    return pulls.watch(client, client.pull(best.name)).model or best.name


def _pullable(model: str) -> str | None:
    """How large it is where that is known, when it can be pulled by this name; else None."""
    from stoker import catalogue
    from stoker.types import HubRef, parse_model_ref

    entry = catalogue.load().find(model)
    if entry is not None:
        return size(entry.download_bytes) if entry.pinned else f"about {size(entry.download_bytes)}"
    with contextlib.suppress(errors.BadReference):
        if isinstance(parse_model_ref(model), HubRef):
            return "size unknown yet"
    return None


@dataclass(slots=True)
class Conversation:
    """The messages so far, and how to get the next answer."""

    base_url: str
    model: str
    system: str | None = None
    options: dict[str, float | None] = field(default_factory=dict)
    messages: list[completion.Message] = field(default_factory=list)
    stats: bool = field(default=False, kw_only=True)

    def clear(self) -> None:
        self.messages.clear()

    def say(self, text: str) -> bool:
        """Print the answer as it comes; False when Ctrl-C cut it short.

        A question that failed leaves the conversation as it was. Raises StokerError.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        first = [{"role": "system", "content": self.system}] if self.system else []
        whole = True
        with completion.ask(self.base_url, self.model, [*first, *asked], **self.options) as answer:
            try:
                _print(answer)
            except KeyboardInterrupt:
                whole = False
        print()
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        if answer.finish == "length":
            note("(cut at the token limit)")
        if self.stats:
            note(answer.stats())
        return whole


def _print(answer: completion.Answer) -> None:
    """Thoughts are shown dimmed on a terminal only: a pipe gets the answer alone."""
    last = "text"
    for kind, piece in answer.pieces:
        if kind == "thought" and not in_colour(sys.stdout):
            continue
        if last == "thought" and kind == "text":
            sys.stdout.write("\n\n")
        last = kind
        shown = clean(piece)
        sys.stdout.write(paint(shown, "dim") if kind == "thought" else shown)
        sys.stdout.flush()


def converse(talk: Conversation) -> None:
    """Read and answer until /bye or Ctrl-D; an error ends one question, not the conversation."""
    with contextlib.suppress(ImportError):  # line editing and history where the system has it
        import readline  # noqa: F401
    note(f"Talking to {talk.model}. /help lists the commands, Ctrl-D ends.")
    while True:
        try:
            line = input(_PROMPT).strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            note("Ctrl-D or /bye ends.")
            continue
        if line == "/bye":
            return
        if line.startswith("/"):
            _command(talk, line)
        elif line:
            _answer(talk, line)


def _command(talk: Conversation, line: str) -> None:
    if line == "/clear":
        talk.clear()
        note("The conversation is forgotten.")
    else:
        if line not in {"/help", "/?"}:
            note(f"There is no command {line}.")
        print(_HELP)


def _answer(talk: Conversation, line: str) -> None:
    try:
        talk.say(line)
    except KeyboardInterrupt:  # before the first piece
        print()
    except errors.StokerError as error:
        for text in boundary.two_lines(error):
            print(text, file=sys.stderr)
