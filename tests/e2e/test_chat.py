"""The endpoint as a user's own client sees it: real daemon, real engine, real model."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.fakes.daemon import Daemon

pytestmark = pytest.mark.e2e

QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France? Answer in one short sentence."}
]


def test_chat_answers(api: openai.OpenAI) -> None:
    """A plain chat gets the right answer from the real model."""
    answer = api.chat.completions.create(
        model="starter", messages=QUESTION, temperature=0, max_tokens=32
    )

    assert answer.model == "starter"
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_chat_streams(api: openai.OpenAI) -> None:
    """A streamed chat arrives in pieces that add up to the plain answer."""
    plain = api.chat.completions.create(
        model="starter", messages=QUESTION, temperature=0, max_tokens=32, seed=1
    )

    with api.chat.completions.create(
        model="starter", messages=QUESTION, temperature=0, max_tokens=32, seed=1, stream=True
    ) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]

    assert len(pieces) > 3
    assert "".join(pieces) == plain.choices[0].message.content


def test_completion(api: openai.OpenAI) -> None:
    """The older completions route works too."""
    answer = api.completions.create(
        model="starter", prompt="The capital of France is", temperature=0, max_tokens=8
    )

    assert "Paris" in answer.choices[0].text


def test_models_are_listed(api: openai.OpenAI) -> None:
    """The list and the single view name the stored model."""
    listed = [model.id for model in api.models.list()]

    assert listed == ["starter"]
    assert api.models.retrieve("starter").id == "starter"


def test_unknown_model_lists_what_there_is(api: openai.OpenAI) -> None:
    """A wrong name is a 404 whose text names the right ones."""
    with pytest.raises(openai.NotFoundError) as caught:
        api.chat.completions.create(model="startr", messages=QUESTION)

    assert caught.value.code == "model_not_found"
    assert "starter" in str(caught.value)


def test_too_long_a_prompt_is_refused_with_both_numbers(api: openai.OpenAI, daemon: Daemon) -> None:
    """What does not fit is a clear 400, never cut silently."""
    words = "word " * 20_000

    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(
            model="starter", messages=[{"role": "user", "content": words}], max_tokens=4
        )

    context = daemon.model("starter").context
    assert caught.value.code == "context_length_exceeded"
    assert str(context) in str(caught.value)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["n_prompt_tokens"] > 20_000


def test_embeddings(api: openai.OpenAI, daemon: Daemon, bert_gguf: Path) -> None:
    """An embedding model gives normalised vectors, the same for the same text."""
    daemon.add(bert_gguf, "tiny-bert")

    answer = api.embeddings.create(
        model="tiny-bert", input=["hello world", "good bye", "hello world"]
    )

    first, second, third = (item.embedding for item in answer.data)
    assert math.isclose(sum(x * x for x in first), 1, rel_tol=1e-3)
    assert first == pytest.approx(third, abs=1e-5)
    assert first != pytest.approx(second, abs=1e-2)


def test_embeddings_of_a_chat_model_are_refused(api: openai.OpenAI) -> None:
    """A model that cannot embed says so, with what to do."""
    with pytest.raises(openai.BadRequestError) as caught:
        api.embeddings.create(model="starter", input="hello")

    assert caught.value.code == "not_capable"


def test_messages_and_responses_pass_through(daemon: Daemon) -> None:
    """The engine's other routes are served under the same rules."""
    import httpx2

    base = daemon.base_url
    message = {"model": "starter", "max_tokens": 8, "messages": QUESTION}
    response = {"model": "starter", "max_output_tokens": 8, "input": "hello"}

    with httpx2.Client(timeout=60) as client:
        messages = client.post(f"{base}/messages", json=message)
        responses = client.post(f"{base}/responses", json=response)
        root = base.removesuffix("/v1")
        tokens = client.post(f"{root}/tokenize", json={"model": "starter", "content": "hi there"})

    assert messages.json()["type"] == "message"
    assert responses.json()["object"] == "response"
    assert len(tokens.json()["tokens"]) == 2


def test_curl(daemon: Daemon) -> None:
    """The command that the README shows works as written, with curl."""
    body = {"model": "starter", "messages": QUESTION, "temperature": 0, "max_tokens": 32}

    result = subprocess.run(
        [
            "curl", "-sS", "--fail-with-body", f"{daemon.base_url}/chat/completions",
            "-H", "Content-Type: application/json", "-d", json.dumps(body),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )  # fmt: skip

    assert "Paris" in json.loads(result.stdout)["choices"][0]["message"]["content"]
