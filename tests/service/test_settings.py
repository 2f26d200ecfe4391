"""Settings: flags before environment before file, and one clear line for what is wrong."""

import pytest

from negvae.service.models import named_paths
from negvae.service.settings import read_settings


def test_flags_come_before_the_environment_and_the_environment_before_the_file(tmp_path, monkeypatch):
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\ntimeout: 2\nmax_batch: 3\napi_key: long enough\n")
    monkeypatch.setenv("NEGVAE_SERVE_PORT", "10")
    monkeypatch.setenv("NEGVAE_SERVE_TIMEOUT", "20")
    settings = read_settings(file, port=100)
    assert (settings.port, settings.timeout, settings.max_batch) == (100, 20, 3)
    assert settings.host == "127.0.0.1"
    assert settings.api_key.get_secret_value() == "long enough"
    assert "long enough" not in repr(settings)


@pytest.mark.parametrize(
    ("content", "variable", "flags", "message"),
    [
        ("ports: 1", {}, {}, "ports"),
        ("- 1", {}, {}, "expected a mapping"),
        ("port: [", {}, {}, "not a YAML file"),
        ("", {"NEGVAE_SERVE_PORT": "x"}, {}, "NEGVAE_SERVE_PORT: input should be a valid integer"),
        ("", {}, {"max_batch": 0}, "--max-batch: input should be greater than or equal to 1"),
        ("api_key: short", {}, {}, "api_key"),
        ("api_key:\nport: 1", {}, {}, "api_key has no value: give a key, or leave the line out"),
        ("", {"NEGVAE_SERVE_API_KEY": "short   \n"}, {}, "NEGVAE_SERVE_API_KEY: value should have at least 8"),
        ("api_key: long enough \u20ac", {}, {}, "api_key: must be of printable ASCII characters"),
        ('api_key: "long\\nenough"', {}, {}, "api_key: must be of printable ASCII characters"),
        ("", {"NEGVAE_SERVE_HOST": ""}, {}, "NEGVAE_SERVE_HOST: string should have at least 1 character"),
        ("", {}, {"host": "  "}, "--host: string should have at least 1 character"),
        ("", {}, {"timeout": float("inf")}, "--timeout: input should be less than or equal to 86400"),
        ("{1: 2}", {}, {}, "1 is no setting"),
        ("_env_file: x", {}, {}, "'_env_file' is no setting"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(content, variable, flags, message, tmp_path, monkeypatch):
    file = tmp_path / "serve.yaml"
    file.write_text(content, encoding="utf-8")
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(file, **flags)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file of settings"):
        read_settings(tmp_path / "none.yaml")


def test_the_end_of_the_line_of_a_mounted_key_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("NEGVAE_SERVE_API_KEY", "correct horse\n")
    assert read_settings().api_key.get_secret_value() == "correct horse"


def test_models_are_named_by_their_paths_and_never_twice():
    assert list(named_paths(["a/photos", "b/guard.onnx", "x=a/photos"])) == ["photos", "guard", "x"]
    for wrong in (["a/photos", "b/photos"], ["a/f o o"], ["x=a", "x=b"]):
        with pytest.raises(ValueError, match="NAME=PATH"):
            named_paths(wrong)
