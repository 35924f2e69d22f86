from __future__ import annotations

import pytest

from stoker.api import multipart
from stoker.errors import BadRequest

TYPE = "multipart/form-data; boundary=xyz"


def _part(name: str, content: bytes, extra: str = "") -> bytes:
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def test_allowed_parts_pass_and_the_model_is_read() -> None:
    """Byte for byte; unknown parts are left out and named."""
    sound = _part("file", b"RIFF\r\n--not-it\x00\xff", '; filename="a.wav"')
    body = _part("model", b"whisper") + sound + _part("lora", b"x") + b"--xyz--\r\n"

    form = multipart.parse(TYPE, body)

    assert form.model == "whisper"
    assert form.ignored == ("lora",)
    assert form.body == sound + b"--xyz--\r\n"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--xyz--\r\n"),
        (TYPE, b""),
        (TYPE, b"--xyz\r\n"),
        (TYPE, _part("file", b"x")),
        (TYPE, b"junk" + _part("file", b"x") + b"--xyz--"),
        (TYPE, _part("file", b"x") * 40 + b"--xyz--"),
    ],
)
def test_malformed_bodies_are_refused(kind: str, body: bytes) -> None:
    """Cut, without a boundary, or with too many parts."""
    with pytest.raises(BadRequest):
        multipart.parse(kind, body)


def test_keep_alive_is_read_and_not_passed_on() -> None:
    body = _part("keep_alive", b"1h") + _part("file", b"RIFF") + b"--xyz--\r\n"

    form = multipart.parse(TYPE, body)

    assert form.keep_alive_s == 3600
    assert form.body == _part("file", b"RIFF") + b"--xyz--\r\n"
    assert multipart.parse(TYPE, _part("file", b"RIFF") + b"--xyz--\r\n").keep_alive_s is None


def test_keep_alive_that_is_no_time_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        multipart.parse(TYPE, _part("keep_alive", b"soon") + b"--xyz--\r\n")

    assert caught.value.facts["param"] == "keep_alive"


def test_for_a_server_with_several_models_the_upload_names_one() -> None:
    """As if the client had named it; the rest is byte for byte the same."""
    sound = _part("file", b"RIFF\x00", '; filename="a.wav"')
    form = multipart.parse(TYPE, _part("model", b"box/whisper") + sound + b"--xyz--\r\n")

    named = form.named("whisper")

    assert named == _part("model", b"whisper") + sound + b"--xyz--\r\n"
    assert multipart.parse(TYPE, named).model == "whisper"
