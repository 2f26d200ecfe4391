import dataclasses

import pytest

from negvae.config import PRESETS, RunConfig, preset


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_round_trip_through_yaml(name):
    config = preset(name, "mnist", negatives="0.5*augmented+generated", limit=100)
    assert RunConfig.from_yaml(config.to_yaml()) == config


def test_gray_is_the_papers_recipe():
    config = preset("gray", "fashion-mnist")
    assert (config.optimizer, config.learning_rate, config.batch_size, config.epochs) == (
        "rmsprop",
        1e-4,
        50,
        100,
    )
    assert (config.latent_size, config.negative_shift, config.likelihood) == (10, 8.0, "bernoulli")
    assert config.calibration == 0  # the paper trains on all of it


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"likelihood": "bernouli"}, "did you mean bernoulli"), ({"network": "grey"}, "did you mean gray"),
        ({"epochs": 0}, "at least 1"), ({"epochs": 1.5}, "whole number"), ({"learning_rate": -1.0}, "above 0"),
        ({"learning_rate": float("nan")}, "above 0"), ({"sigma": "big"}, "a number"), ({"device": "tpu"}, "cuda"),
        ({"learn_sigma": True}, "these have: gaussian"),
        ({"calibration": 1.0}, "fraction"), ({"calibration": -0.1}, "fraction"),
        ({"transformations": "turns,tiles,turns"}, "turns is there twice"),
        ({"network": "mlp"}, "gaussian"), ({"network": "mlp", "likelihood": "quantized-gaussian"}, "gaussian"),
        ({"batch": 3}, "did you mean batch_size"), ({"batch_size": 1}, "at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(values, word):
    with pytest.raises(ValueError, match=word):
        RunConfig.from_dict({"data": "mnist", **values})


def test_an_unknown_field_stands_after_the_file_that_has_it():
    with pytest.raises(ValueError, match=r"^a/b\.yaml: unknown field 'epoch': did you mean epochs\? Known: batch_size"):
        RunConfig.from_dict({"data": "mnist", "epoch": 3}, "a/b.yaml")
    with pytest.raises(ValueError, match=r"^images: unknown field 'hight': did you mean height\? Known: fit"):
        RunConfig.from_dict({"data": "mnist", "images": {"hight": 3}})


@pytest.mark.parametrize("text", ["data: [", "- a list", "epochs: 3", "1: 2"])
def test_yaml_that_describes_no_run_is_refused(text):
    with pytest.raises(ValueError, match="config"):
        RunConfig.from_yaml(text)


@pytest.mark.parametrize("field", dataclasses.fields(RunConfig), ids=lambda field: field.name)
def test_each_field_says_what_it_means(field):
    assert field.metadata["panel"].istitle()
    assert field.metadata["help"].endswith(".")
    for name in field.metadata["choices"]:
        # A network of features takes a Gaussian likelihood.
        likelihood = {"likelihood": "gaussian"} if name in ("mlp", "linear") else {}
        assert getattr(RunConfig(data="mnist", **{field.name: name, **likelihood}), field.name) == name


@pytest.mark.parametrize("name", ["likelihood", "network", "initialization", "update", "optimizer", "precision"])
def test_a_field_of_names_has_those_and_no_others(name):
    choices = next(field.metadata["choices"] for field in dataclasses.fields(RunConfig) if field.name == name)
    assert getattr(RunConfig(data="mnist"), name) in choices
    with pytest.raises(ValueError, match=", ".join(choices)):
        RunConfig(data="mnist", **{name: "nonsense"})


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E-3", 2e-3), ("1.5e1", 15.0), ("1.0e-4", 1e-4)])
def test_numbers_with_an_exponent_are_numbers_in_yaml_too(text, value):
    assert RunConfig.from_yaml(f"data: mnist\nlearning_rate: {text}").learning_rate == value
    with pytest.raises(ValueError, match="a whole number"):
        RunConfig.from_yaml(f"data: mnist\nepochs: {text}")


def test_a_data_set_named_like_a_number_stays_a_name():
    config = RunConfig(data="1e5")
    assert RunConfig.from_yaml(config.to_yaml()).data == "1e5"
