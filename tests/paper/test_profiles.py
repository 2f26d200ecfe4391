import dataclasses

import pytest

from negvae.config import preset
from negvae.paper.profiles import PROFILES, choose_profile, parse_seeds
from negvae.paper.published import ENLARGED, cells, settings


def test_paper_is_the_recipe_of_the_paper():
    profile = PROFILES["paper"]
    gray = profile.config(cells()["table3/gaussian/generated"].setting, seed=3)
    assert gray == preset("gray-paper", "fashion-mnist", negatives="generated", likelihood="gaussian", seed=3)
    assert (gray.optimizer, gray.learning_rate, gray.batch_size, gray.epochs, gray.sigma) == (
        "rmsprop",
        1e-4,
        50,
        100,
        1,
    )
    color = profile.config(cells()["table4/quantized-gaussian/imagenet32"].setting)
    assert color == preset("color", "cifar10", negatives="imagenet32", likelihood="quantized-gaussian")
    assert (color.optimizer, color.learning_rate, color.batch_size, color.epochs) == ("adam", 1e-4, 50, 100)
    assert profile.seeds == 5


def test_long_is_the_recipe_that_the_authors_ran_with_a_light_decoder():
    profile = PROFILES["long"]
    gray = profile.config(cells()["table5/uniform-noise"].setting)
    assert gray == preset(
        "gray", "fashion-mnist", negatives="uniform-noise:254", optimizer="rmsprop-authors", epochs=30
    )
    assert (gray.learning_rate, gray.batch_size) == (1e-4, 50)
    color = profile.config(cells()["table4/quantized-gaussian/imagenet32"].setting)
    fields = dict(network="color-authors", epochs=30)
    assert color == preset("color", "cifar10", negatives="imagenet32", likelihood="dequantized-gaussian", **fields)
    assert profile.config(cells()["table4/gaussian/generated"].setting).network == "color-authors-spectral"
    assert profile.config(cells()["table2/svhn/bernoulli"].setting).epochs == 100
    assert {profile.seeds_of(setting) for setting in settings().values()} == {3}


def test_images_as_they_are_and_enlarged_have_names_of_their_own():
    for profile in PROFILES.values():
        plain, enlarged = (
            profile.config(cells()[f"table4/gaussian/{negatives}"].setting).negatives
            for negatives in ("imagenet32", ENLARGED)
        )
        assert (plain, enlarged) == ("imagenet32", "imagenet32+zoomed:imagenet32")


def test_learned_sigma():
    config = PROFILES["cpu"].config(cells()["sigma/fashion-mnist/none"].setting)
    assert (config.likelihood, config.learn_sigma) == ("gaussian", True)
    assert not PROFILES["cpu"].config(cells()["table1/fashion-mnist/gaussian"].setting).learn_sigma


def test_every_profile_makes_every_run():
    for profile in PROFILES.values():
        assert len({profile.config(setting, 1, "cpu") for setting in settings().values()}) == len(settings())


def test_a_source_of_negatives_may_have_its_own_recipe():
    profile = dataclasses.replace(PROFILES["cpu"], overrides={("gray", "generated"): {"epochs": 77}})
    epochs = {name: profile.config(cell.setting).epochs for name, cell in cells().items()}
    assert {name for name, count in epochs.items() if count == 77} == {
        "table3/bernoulli/generated", "table3/gaussian/generated", "table5/generated"
    }  # fmt: skip


def test_of_overrides_that_apply_a_later_one_counts():
    overrides = {("color",): {"epochs": 7}, ("cifar10", "bernoulli", "none"): {"epochs": 8}, ("svhn",): {"epochs": 9}}
    profile = dataclasses.replace(PROFILES["cpu"], overrides=overrides)
    epochs = {setting.name: profile.config(setting).epochs for setting in settings().values() if setting.color}
    assert epochs["cifar10-bernoulli-none"] == 8
    assert epochs["cifar10-gaussian-none"] == 7
    assert epochs["svhn-bernoulli-none"] == 9


@pytest.mark.parametrize(
    ("text", "seeds"),
    [(None, [0, 1, 2]), ("2", [0, 1]), ("0,2", [0, 2]), ("2,", [2]), (" 1 , 1,0", [1, 0]), ("0,", [0])],
)
def test_seeds(text, seeds):
    assert parse_seeds(text, PROFILES["cpu"]) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "a", "1,,2", ","])
def test_bad_seeds(text):
    with pytest.raises(ValueError, match=r"--seeds is .*a count such as 3"):
        parse_seeds(text, PROFILES["cpu"])


def test_unknown_profile():
    with pytest.raises(ValueError, match="Known: paper, cpu, long, smoke"):
        choose_profile("gpu")
