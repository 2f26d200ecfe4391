"""A score, a p-value and a decision depend on the input alone: not on batch, order, shard or number of threads."""

import threading

import numpy as np
import pytest
import torch

from negvae.config import preset
from negvae.model import build_vae
from negvae.scoring import SCORES, Scorer, SharedDraws, calibrate, compute_scores
from negvae.scoring.blocks import IMAGES, MANY, ROWS, WIDE, blocks, in_this_thread, map_blocks, mapped, wider_size
from negvae.scoring.compute import over_blocks
from negvae.scoring.table import names_of
from tests.conftest import PRECISIONS, SHAPES, blobs, small_run

CPU = torch.device("cpu")
NETWORKS = ["gray", "color", "pyramid", "deep", "mlp"]
CHEAP = names_of(lambda score: score.calibrated and {"features", "transformations"}.isdisjoint(score.needs))


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def model_of(network):
    if network == "mlp":
        return build_vae(preset("features", "rows", latent_size=3), (7, 1, 1)).double().eval()
    return build_vae(small_run(network, initialization="he", latent_size=5), SHAPES[network]).eval()


def inputs_of(network, count, seed=0):
    if network == "mlp":
        return torch.randn(count, 7, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return blobs(count, SHAPES[network], seed)


def calibrated(model, network, precision="float32"):
    plain = Scorer(model, precision=precision)
    calibration = calibrate(plain, inputs_of(network, 40, 1), inputs_of(network, 40, 2), target_fpr=0.2)
    return Scorer(model, calibration.reference, precision=precision), calibration


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_scores_do_not_depend_on_batch_order_and_threads(network, precision):
    model, inputs = model_of(network), inputs_of(network, IMAGES + 5)
    scorer, calibration = calibrated(model, network, precision)
    names = (*CHEAP, "neighbors") if network == "mlp" else CHEAP
    together = scorer(inputs, names)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(threads))
        shuffled = scorer(inputs[order], names)
        alone = [scorer(inputs[i : i + 1], names) for i in (0, IMAGES + 4)]
        shard = scorer(inputs[3:20], names)
        for name in names:
            np.testing.assert_array_equal(shuffled[name], together[name][order.numpy()], err_msg=name)
            np.testing.assert_array_equal(shard[name], together[name][3:20], err_msg=name)
            for row, values in zip((0, IMAGES + 4), alone, strict=True):
                assert values[name][0] == together[name][row], name
    p = calibration.p_values(together[calibration.score])
    alone = scorer(inputs[7:8], [calibration.score])[calibration.score]
    assert np.array_equal(calibration.p_values(alone), p[7:8])


def test_equal_rows_have_one_p_value_in_any_company():
    """Where all held-out scores are alike, the last bit of a score would decide."""
    model = model_of("mlp")
    rows = torch.full((300, 7, 1, 1), 0.1, dtype=torch.float64)
    model.inputs.measure(rows)
    calibration = calibrate(Scorer(model), rows[:200], rows[200:], target_fpr=0.05)
    scorer = Scorer(model, calibration.reference)
    for name in ("neighbors", "combined", "dose", "bpd", "kl"):
        here = calibration.decide_by(name, 0.05)
        for count in (1, 2, 31, ROWS + 1):
            scores = scorer(rows[:1].expand(count, -1, -1, -1), [name])[name]
            assert (here.p_values(scores) == 1).all(), (name, count)
            assert not here.is_outlier(scores).any()


def test_every_place_in_a_block_gives_the_same_bits():
    """With the awkward sizes at which kernels treat the last rows and columns of a product in another way."""
    for latent_size in (1, 3, 5, 10, 13):
        model = build_vae(small_run("gray", initialization="he", latent_size=latent_size), SHAPES["gray"]).eval()
        image = blobs(1, SHAPES["gray"]).expand(IMAGES, -1, -1, -1)
        scores = Scorer(model)(image, ["bpd", "kl", "reconstruction"])
        assert all((values == values[0]).all() for values in scores.values()), latent_size
    for features in (1, 2, 3, 6, 10):
        model = build_vae(preset("features", "rows", latent_size=3), (features, 1, 1)).double().eval()
        scores = Scorer(model)(torch.rand(1, features, 1, 1).double().expand(ROWS, -1, -1, -1), ["bpd", "kl"])
        assert all((values == values[0]).all() for values in scores.values()), features


def test_blocks_have_one_shape_and_the_last_is_filled():
    model, inputs = model_of("gray"), inputs_of("gray", IMAGES + 3)
    first, second = blocks(model, inputs)
    assert (len(first[0]), first[1]) == (IMAGES, IMAGES)
    assert (len(second[0]), second[1]) == (IMAGES, 3)
    assert torch.equal(second[0][:3], inputs[IMAGES:])
    assert list(blocks(model, inputs[:0])) == []
    with pytest.raises(ValueError, match="uint8 N x 1x28x28"):
        list(blocks(model, inputs.float()))
    assert mapped(model, inputs, lambda x: x.mean((1, 2, 3))).shape == (IMAGES + 3,)
    assert mapped(model, inputs[:0], lambda x: x).shape == (0,)


@pytest.mark.parametrize("network", ["color", "mlp"])
def test_scores_do_not_depend_on_how_inputs_lie_in_memory(network):
    model, count = model_of(network), ROWS if network == "mlp" else IMAGES
    inputs = inputs_of(network, count)
    scorer, _ = calibrated(model, network)
    names = (*CHEAP, "neighbors") if network == "mlp" else CHEAP
    expected = scorer(inputs, names)
    for axes in ((1, 2, 3, 0), (0, 2, 3, 1)):  # one input's numbers lie apart; channels come last, as in image files
        back = [axes.index(axis) for axis in range(4)]
        found = scorer(inputs.permute(axes).contiguous().permute(back), names)
        for name in names:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_threads_take_whole_blocks_in_turn_and_leave_the_program_as_it_was():
    torch.set_num_threads(3)
    inside, alive, most = set(), [0], [0]

    def items():
        for number in range(40):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield number

    def work(number):
        inside.add((threading.current_thread().name, torch.get_num_threads()))
        alive[0] -= 1
        return number * number

    assert map_blocks(work, items(), CPU) == [number * number for number in range(40)]
    assert {threads for _, threads in inside} == {1}
    assert most[0] <= 4  # items are made when they are needed
    assert torch.get_num_threads() == 3
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [3]


def test_calls_in_threads_side_by_side_leave_the_program_as_it_was():
    torch.set_num_threads(3)
    first_computes, second_ended = threading.Event(), threading.Event()
    workers, seen, of_operators = set(), [], []

    def slow(number):
        first_computes.set()
        assert second_ended.wait(30)
        of_operators.append(torch.get_num_threads())

    def work(number):
        workers.add(threading.current_thread().name)
        meeting.wait()

    meeting = threading.Barrier(3, timeout=30)
    first = threading.Thread(target=lambda: map_blocks(slow, iter(range(3)), CPU))
    first.start()
    assert first_computes.wait(30)
    second = threading.Thread(target=lambda: seen.append(map_blocks(work, iter(range(3)), CPU)))
    second.start()
    second.join()
    second_ended.set()
    first.join()
    assert of_operators == [1, 1, 1]
    assert (len(workers), len(seen)) == (3, 1)  # one that begins meanwhile has all threads, too
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen[1] == 3


def test_an_error_in_one_block_ends_the_call():
    done = []

    def work(number):
        if number == 1:
            raise ValueError("block 1 is bad")
        done.append(number)

    torch.set_num_threads(1)
    with pytest.raises(ValueError, match="block 1 is bad"):
        map_blocks(work, iter(range(1000)), CPU)
    assert done == [0]
    assert torch.get_num_threads() == 1


def test_threads_compute_passes_side_by_side(monkeypatch):
    torch.set_num_threads(2)
    model = build_vae(small_run(), (1, 28, 28)).eval()
    encode, meeting = model.encode, threading.Barrier(2, timeout=30)

    def together(images):
        meeting.wait()  # both threads are in the encoder at once, or this breaks
        return encode(images)

    scorer = Scorer(model)
    monkeypatch.setattr(model, "encode", together)
    assert len(scorer(blobs(2 * IMAGES, (1, 28, 28)), ["kl"])["kl"]) == 2 * IMAGES


@pytest.mark.parametrize("network", ["gray", "color", "deep"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_images_get_the_bits_of_few(network, precision):
    model = model_of(network).float()
    images = blobs(MANY + 1, model.shape)
    scorer = Scorer(model, precision=precision)
    many, few = scorer(images, ["kl", "bpd"]), scorer(images[::73], ["kl", "bpd"])
    assert all(np.array_equal(many[name][::73], few[name]) for name in few)


def test_wider_blocks_are_for_many_small_images_whose_bits_a_trial_finds_the_same():
    small, asked = model_of("gray"), []

    def compute(same):
        def of(count, size):
            asked.append((count, size))
            return {"kl": torch.tensor([1.0 if same else float(size)])}

        return of

    assert wider_size(small, MANY - 1, ("few",), compute(True)) == IMAGES
    assert not asked
    assert wider_size(small, MANY, ("same",), compute(True)) == WIDE
    assert wider_size(small, MANY, ("same",), compute(True)) == WIDE
    assert asked == [(WIDE, IMAGES), (WIDE, WIDE)]  # one trial
    assert wider_size(small, MANY, ("other",), compute(False)) == IMAGES
    assert wider_size(model_of("mlp"), 10**4, ("rows",), compute(True)) == ROWS
    assert wider_size(model_of("color"), MANY, ("32x32",), compute(True)) == WIDE
    large = build_vae(preset("general", "x"), (1, 64, 64)).eval()
    assert wider_size(large, 10**4, ("large",), compute(True)) == IMAGES


def test_a_service_computes_in_the_thread_that_asks():
    torch.set_num_threads(1)

    def where(item):
        return threading.get_ident()

    assert set(map_blocks(where, range(3), CPU)) != {threading.get_ident()}
    with in_this_thread():
        assert set(map_blocks(where, range(3), CPU)) == {threading.get_ident()}
    assert set(map_blocks(where, range(3), CPU)) != {threading.get_ident()}


def test_scores_that_take_gradients_are_computed_in_inference_mode_too(monkeypatch):
    monkeypatch.setattr("negvae.scoring.regret.STEPS", 2)
    torch.set_num_threads(1)
    model, images = model_of("gray"), blobs(3, (1, 28, 28))
    expected = compute_scores(model, images, ["likelihood_regret"])["likelihood_regret"]
    with in_this_thread(), torch.inference_mode():  # as on a GPU, where no other thread computes
        found = compute_scores(model, images, ["likelihood_regret"])["likelihood_regret"]
    assert torch.equal(found, expected)


def test_samples_of_each_block_are_drawn_once_and_in_order():
    sizes = []

    def drawing(count):
        sizes.append(count)
        return SharedDraws()

    functions = {"bpd": SCORES["bpd"].read}
    over_blocks(
        model_of("gray"), blobs(MANY + 1, (1, 28, 28)), functions,
        draws=SharedDraws(), block_draws=drawing,
    )  # fmt: skip
    assert sum(sizes) == MANY + 1  # no trial of a larger block has drawn any


def test_many_images_may_have_samples_of_their_own():
    model = model_of("gray")
    images = blobs(MANY + 1, (1, 28, 28))
    many, few = (
        compute_scores(model, some, ["bpd"], generator=torch.Generator().manual_seed(3))["bpd"]
        for some in (images, images[:IMAGES])
    )
    assert torch.equal(many[:IMAGES], few)
    assert many.isfinite().all()
