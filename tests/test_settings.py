"""Settings come from the environment, are checked, and give way to the command line."""

from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, unknown_variables


def test_defaults_work_without_an_environment() -> None:
    assert Settings.from_environment({}) == Settings()


def test_the_environment_is_read_and_an_override_wins() -> None:
    environment = {"DARKROOM_PORT": "9000", "DARKROOM_DATA": "/tmp/x", "DARKROOM_HOST": "::1", "OTHER": "y"}
    settings = Settings.from_environment(environment, port=9001, host=None)
    assert (settings.port, settings.data, settings.host) == (9001, Path("/tmp/x"), "::1")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("DARKROOM_PORT", "eighty", "must be a whole number, not 'eighty'"),
        ("DARKROOM_PORT", "70000", "between 0 and 65535"),
        ("DARKROOM_MAX_ROWS", "1", "between 2 and 256"),
        ("DARKROOM_QUEUE_LIMIT", "0", "between 1 and 100000"),
        ("DARKROOM_VRAM_BUDGET", "12", 'like "12GB", "800MB", "80%" or "auto", not \'12\''),
        ("DARKROOM_VRAM_BUDGET", "120%", 'like "12GB"'),
        ("DARKROOM_RAM_BUDGET", "-1GB", 'like "12GB"'),
        ("DARKROOM_IDLE_UNLOAD", "-1", "between 0 and 10080"),
        ("DARKROOM_LOG_LEVEL", "loud", "debug, info, warning or error, not 'loud'"),
        ("DARKROOM_DEVICE", "gpu", "auto, cuda, cuda:N, mps or cpu, not 'gpu'"),
        ("DARKROOM_DEVICE", "cuda:x", "auto, cuda, cuda:N, mps or cpu"),
        ("DARKROOM_PUBLIC_URL", "foo", "http:// or https:// address"),
        ("DARKROOM_PUBLIC_URL", "ftp://a.example", "http:// or https:// address"),
        ("DARKROOM_PUBLIC_URL", "https://", "http:// or https:// address"),
        ("DARKROOM_PUBLIC_URL", "https://a.example/?x=1", "without . or #"),
        ("DARKROOM_PUBLIC_URL", "https://a.example:port", "http:// or https:// address"),
        ("DARKROOM_PUBLIC_URL", "https://a b.example", "http:// or https:// address"),
        ("DARKROOM_AUTH", "on", "off, keys or jwt, not 'on'"),
        ("DARKROOM_AUTH", "jwt", "off or keys as long as DARKROOM_JWT_SECRET, or .* are not set"),
        ("DARKROOM_HOST", "0.0.0.0", "a loopback address .*DARKROOM_AUTH=keys.*darkroom keys create"),
        ("DARKROOM_HOST", "pictures.example.org", "a loopback address"),
        ("DARKROOM_JWT_ISSUER", "accounts.example.org", "http:// or https:// address"),
        ("DARKROOM_JWT_JWKS", "file:///etc/passwd", "http:// or https:// address"),
        ("DARKROOM_JWT_OPERATORS", "admins", "claims such as groups=admins"),
        ("DARKROOM_LINK_HOURS", "0", "between 1 and 8760"),
        ("DARKROOM_REQUESTS_PER_HOUR", "-1", "between 0 and 1000000"),
        ("DARKROOM_JOBS_AT_ONCE", "two", "must be a whole number, not 'two'"),
        ("DARKROOM_CREDITS", "yes", "on or off, not 'yes'"),
        ("DARKROOM_WEBHOOK_HOSTS", "http://x", r"must be hosts \(hooks.lan\).* with commas, not 'http://x'"),
        ("DARKROOM_WEBHOOK_HOSTS", "10.0.0.0/99", "or networks"),
        ("DARKROOM_MODELS", "/nowhere/models.toml", "names /nowhere/models.toml, and there is no such file"),
    ],
)
def test_a_bad_value_names_the_variable_and_the_rule(name: str, value: str, rule: str) -> None:
    with pytest.raises(SettingsError, match=rule) as refused:
        Settings.from_environment({name: value})
    assert name in str(refused.value)


def test_a_secret_that_is_too_short_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError, match="DARKROOM_JWT_SECRET must have at least 32 bytes") as refused:
        Settings.from_environment({"DARKROOM_JWT_SECRET": "hunter2"})
    assert "hunter2" not in str(refused.value)
    assert "of at least thirty-two" not in repr(Settings(jwt_secret="a secret of at least thirty-two bytes"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.5", "::1"])
def test_others_are_let_in_only_once_they_are_asked_who_they_are(host: str) -> None:
    assert Settings.from_environment({"DARKROOM_HOST": host}).host == host
    assert Settings.from_environment({"DARKROOM_HOST": "0.0.0.0", "DARKROOM_AUTH": "keys"}).auth_enabled


def test_an_empty_variable_is_one_not_set() -> None:
    assert Settings.from_environment({"DARKROOM_PORT": ""}).port == 8000


@pytest.mark.parametrize("url", ["https://pictures.example.org", "http://10.0.0.7:8000/darkroom/", "http://[::1]:80"])
def test_a_public_url_may_have_a_port_and_a_path(url: str) -> None:
    assert Settings.from_environment({"DARKROOM_PUBLIC_URL": url}).public_url == url


def test_an_argument_is_blamed_by_its_own_name() -> None:
    with pytest.raises(SettingsError, match="^--port must be between 0 and 65535, not 70000"):
        Settings.from_environment({"DARKROOM_PORT": "80"}, port=70000)


def test_a_variable_that_is_no_setting_is_told_with_the_nearest_that_is() -> None:
    environment = {"DARKROOM_PROT": "1", "DARKROOM_PORT": "1", "OTHER": "y"}
    assert unknown_variables(environment) == [
        "DARKROOM_PROT is no setting and changes nothing; did you mean 'DARKROOM_PORT'?"
    ]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("::", "http://[::1]:9000"),
        ("pictures.local", "http://pictures.local:9000"),
    ],
)
def test_a_server_is_reached_where_it_listens(host: str, url: str) -> None:
    assert Settings(host=host, port=9000).url == url
