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
    ],
)
def test_what_is_wrong_is_named_with_its_place(content, variable, flags, message, tmp_path, monkeypatch):
    file = tmp_path / "serve.yaml"
    file.write_text(content)
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(file, **flags)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file of settings"):
        read_settings(tmp_path / "none.yaml")


def test_models_are_named_by_their_paths_and_never_twice():
    assert list(named_paths(["a/photos", "b/guard.onnx", "x=a/photos"])) == ["photos", "guard", "x"]
    for wrong in (["a/photos", "b/photos"], ["a/f o o"], ["x=a", "x=b"]):
        with pytest.raises(ValueError, match="NAME=PATH"):
            named_paths(wrong)
