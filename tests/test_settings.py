"""Settings come from the environment, are checked, and give way to the command line."""

from pathlib import Path

import pytest

from server.settings import Settings, SettingsError


def test_defaults_work_without_an_environment() -> None:
    assert Settings.from_environment({}) == Settings()


def test_the_environment_is_read_and_an_override_wins() -> None:
    environment = {"DARKROOM_PORT": "9000", "DARKROOM_DATA": "/tmp/x", "DARKROOM_HOST": "::1", "OTHER": "y"}
    settings = Settings.from_environment(environment, port=9001, host=None)
    assert (settings.port, settings.data, settings.host) == (9001, Path("/tmp/x"), "::1")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("DARKROOM_PORT", "eighty", "of type int"),
        ("DARKROOM_PORT", "70000", "between 0 and 65535"),
        ("DARKROOM_MAX_ROWS", "1", "between 2 and 256"),
        ("DARKROOM_QUEUE_LIMIT", "0", "between 1 and 100000"),
        ("DARKROOM_VRAM_BUDGET", "12", 'like "12GB", "800MB", "80%" or "auto", not .12.'),
        ("DARKROOM_VRAM_BUDGET", "120%", 'like "12GB"'),
        ("DARKROOM_RAM_BUDGET", "-1GB", 'like "12GB"'),
        ("DARKROOM_IDLE_UNLOAD", "-1", "between 0 and 10080"),
        ("DARKROOM_LOG_LEVEL", "loud", "debug, info, warning or error"),
    ],
)
def test_a_bad_value_names_the_variable_and_the_rule(name: str, value: str, rule: str) -> None:
    with pytest.raises(SettingsError, match=rule) as refused:
        Settings.from_environment({name: value})
    assert name in str(refused.value)


def test_an_empty_variable_is_one_not_set() -> None:
    assert Settings.from_environment({"DARKROOM_PORT": ""}).port == 8000
