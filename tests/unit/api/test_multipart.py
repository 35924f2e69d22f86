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
