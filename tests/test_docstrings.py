"""Every example in a docstring is run, and the packages that people use from Python have some."""

import doctest
import importlib
import pkgutil
from functools import cache

import benchmarks.bench
import pytest

import negvae

EXTRAS = {
    "fastapi", "huggingface_hub", "onnx", "onnxruntime", "onnxscript", "prometheus_client", "pydantic",
    "pydantic_settings", "pyod", "pytorch_ood", "ray", "starlette", "uvicorn",
}  # fmt: skip
NOT_HERE = ("__main__", "pyod_vae", "pythae_vae")
"""Commands, and the peers that the bench runs in environments of their own."""
WITH_EXAMPLES = (
    "negvae.cluster", "negvae.fast", "negvae.training", "negvae.negatives", "negvae.report", "negvae.registry",
    "negvae.parts", "negvae.files", "negvae.messages", "negvae.device", "negvae.config", "negvae.data", "negvae.runs",
    "negvae.cli", "negvae.scoring", "negvae.detector", "negvae.model", "negvae.paper", "negvae.service",
    "benchmarks.bench",
)  # fmt: skip


def _names() -> list[str]:
    walked = [
        module.name
        for package in (negvae, benchmarks.bench)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return ["negvae", *(name for name in walked if not name.endswith(NOT_HERE))]


@cache
def _examples(name: str) -> list[doctest.DocTest]:
    """The docstrings of a module that have examples; skipped where the module needs an extra that is not here."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")
    return doctest.DocTestFinder(exclude_empty=True).find(module, name)


@pytest.mark.parametrize("name", _names())
def test_examples_give_what_they_show(name: str) -> None:
    for example in _examples(name):
        report: list[str] = []
        failed, _ = doctest.DocTestRunner().run(example, out=report.append, clear_globs=True)
        assert not failed, "".join(report)


@pytest.mark.parametrize("package", WITH_EXAMPLES)
def test_packages_have_examples(package: str) -> None:
    within = [name for name in _names() if f"{name}.".startswith(f"{package}.")]
    assert any(example.examples for name in within for example in _examples(name))
