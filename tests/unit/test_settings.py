"""The settings: file, environment, and errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stoker.errors import BadSetting
from stoker.settings import Settings, load


@pytest.fixture
def config_file(stoker_home: Path) -> Path:
    """A config file's place, with no STOKER_ variable but the home in the environment."""
    return stoker_home / "config.toml"


def test_without_a_file_the_defaults_hold(config_file: Path) -> None:
    """Nothing has to be set."""
    settings = load(config_file)

    assert settings == Settings()
    assert settings.host == "127.0.0.1"
    assert settings.port == 4328


def test_the_file_is_read(config_file: Path) -> None:
    """Values in the file replace the defaults, with TOML's own types."""
    config_file.write_text('port = 5000\nkeep_alive_s = -1\nallowed_hosts = ["box.lan"]\n')

    settings = load(config_file)

    assert (settings.port, settings.keep_alive_s) == (5000, -1)
    assert settings.allowed_hosts == ("box.lan",)


def test_the_environment_wins(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STOKER_<KEY> is stronger than the file."""
    config_file.write_text("port = 5000\n")
    monkeypatch.setenv("STOKER_PORT", "5001")

    assert load(config_file).port == 5001


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("STOKER_PORT", "many", "port"),
        ("STOKER_PORT", "70000", "port"),
        ("STOKER_ALLOWED_HOSTS", "not json", "allowed_hosts"),
        ("STOKER_TRUST", "none", "trust"),
    ],
)
def test_a_wrong_value_in_the_environment_is_named(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, key: str
) -> None:
    """The error names the key, and the hint says what the key is for."""
    monkeypatch.setenv(name, value)

    with pytest.raises(BadSetting, match=key) as caught:
        load(config_file)

    assert key in caught.value.hint


def test_an_unknown_key_names_the_nearest_one(config_file: Path) -> None:
    """A typing error is answered with what was probably meant."""
    config_file.write_text("prot = 5000\n")

    with pytest.raises(BadSetting, match="'prot'") as caught:
        load(config_file)

    assert "port" in caught.value.hint


def test_an_unknown_variable_is_an_error_too(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A misspelt STOKER_ variable does not silently do nothing."""
    monkeypatch.setenv("STOKER_KEEPALIVE_S", "5")

    with pytest.raises(BadSetting, match="keepalive_s") as caught:
        load(config_file)

    assert "keep_alive_s" in caught.value.hint


@pytest.mark.parametrize("name", ["STOKER_HOME", "STOKER_PREFIX", "STOKER_TEST_CACHE", "HOME"])
def test_variables_that_are_no_settings_are_let_through(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where the settings are, and what belongs to the installer or the tests, is no setting."""
    monkeypatch.setenv(name, str(config_file.parent))

    assert load(config_file) == Settings()


@pytest.mark.parametrize(
    "text", ["port = ", "= 1", 'port = "a"', "port = 1\nport = 2", "port = -1", "[port]\nx = 1"]
)
def test_a_broken_file_is_a_setting_error(config_file: Path, text: str) -> None:
    """Neither broken TOML nor a value of the wrong type ends in another exception."""
    config_file.write_text(text)

    with pytest.raises(BadSetting):
        load(config_file)


def test_a_file_that_is_not_text_is_a_setting_error(config_file: Path) -> None:
    """Bytes that are not UTF-8 are reported with the file's name."""
    config_file.write_bytes(b"\xff\xfe\x00")

    with pytest.raises(BadSetting, match=r"config\.toml"):
        load(config_file)


def test_a_folder_in_place_of_the_file_is_a_setting_error(config_file: Path) -> None:
    """What cannot be read is reported, not ignored."""
    config_file.mkdir()

    with pytest.raises(BadSetting):
        load(config_file)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200))
def test_any_file_gives_settings_or_a_setting_error(config_file: Path, text: str) -> None:
    """Whatever stands in the file, the outcome is one of two."""
    config_file.write_bytes(text.encode(errors="surrogatepass"))

    outcome: object
    try:
        outcome = load(config_file)
    except BadSetting as error:
        outcome = error

    assert isinstance(outcome, Settings | BadSetting)


@pytest.mark.parametrize("url", ["https://mirror.example/", "http://127.0.0.1:9", "http://[::1]:9"])
def test_a_hub_is_reached_by_https_or_on_this_machine(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """A final slash is dropped, so that paths can be joined."""
    monkeypatch.setenv("STOKER_HUB_ENDPOINT", url)

    assert load(config_file).hub_endpoint == url.rstrip("/")


@pytest.mark.parametrize("url", ["http://mirror.example", "ftp://x", "mirror.example", ""])
def test_a_hub_without_tls_is_refused(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Metadata and tokens travel encrypted."""
    monkeypatch.setenv("STOKER_HUB_ENDPOINT", url)

    with pytest.raises(BadSetting, match="hub_endpoint"):
        load(config_file)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", ""])
def test_no_setting_opens_the_endpoint_to_the_network(config_file: Path, host: str) -> None:
    """Leaving loopback is not a matter of one line in a file."""
    config_file.write_text(f'host = "{host}"\n')

    with pytest.raises(BadSetting, match="host"):
        load(config_file)


def test_settings_do_not_change(config_file: Path) -> None:
    """They are read once."""
    settings = load(config_file)

    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    """The description is the documentation."""
    fields: Mapping[str, object] = {
        name: field.description for name, field in Settings.model_fields.items()
    }

    assert [name for name, text in fields.items() if not str(text or "").endswith(".")] == []
