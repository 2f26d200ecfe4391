import pytest
import torch
from torch import nn

from negvae.config import preset
from negvae.fast import int8 as quantized
from negvae.fast.int8 import QuantizedEncoder, quantize
from negvae.fast.int8_decoder import QuantizedNetworks, quantize_decoder
from negvae.model import build_vae
from negvae.model.reparametrized import spectrally_normalized
from negvae.scoring import Scorer, calibrate, compute_scores, quantization
from negvae.scoring.metrics import detection_metrics
from negvae.scoring.quantization import Offer, quantize_model, try_int8
from tests.conftest import SHAPES, blobs, small_run

pytestmark = pytest.mark.skipif(not quantized.multiplies_integers(), reason="no exact 8-bit convolution here")
ENCODER = ("kl", "prior_ratio", "latent_norm")


def model_of(network):
    model = build_vae(small_run(network, initialization="he"), SHAPES[network])
    with torch.no_grad():
        model.encoder[-1].weight.mul_(10)  # codes that differ between images, as after training
    model.train()
    model.encode(model.prepare(blobs(64, SHAPES[network], seed=5)))  # statistics for the batch norms
    return model.eval()


END = [nn.Flatten(), nn.Linear(4, 4)]


class Squared(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).square()


# Neither spectral norm nor residual blocks: `quantize` refuses both.
@pytest.mark.parametrize("network", [each for each in SHAPES if "authors" not in each and each != "residual"])
def test_scores_are_those_of_float32_up_to_rounding(network):
    """Within 5% of the scores' standard deviation over inliers (root mean square)."""
    model = model_of(network)
    encoder = quantize(model.encoder, blobs(100, SHAPES[network], seed=1))
    images = blobs(100, SHAPES[network], seed=2)
    rounded = compute_scores(model, images, ENCODER, quantized=QuantizedNetworks(encoder))
    exact = compute_scores(model, images, ENCODER, precision="float32")
    for name in ENCODER:
        error = (rounded[name] - exact[name]).square().mean().sqrt() / exact[name].std()
        assert 0 < error < 0.05, (name, error)


@pytest.mark.parametrize("network", ["gray", "pyramid"])
def test_a_score_depends_on_the_image_alone(network):
    model = model_of(network)
    encoder = quantize(model.encoder, blobs(50, SHAPES[network], seed=1))
    images = blobs(41, SHAPES[network], seed=2)
    together = compute_scores(model, images, ENCODER, quantized=QuantizedNetworks(encoder))
    again = compute_scores(
        model, images, ENCODER, quantized=QuantizedNetworks(quantize(model.encoder, blobs(50, SHAPES[network], seed=1)))
    )
    for part in images.split(7):
        apart = compute_scores(model, part, ENCODER, quantized=QuantizedNetworks(encoder))
        first = next(index for index, image in enumerate(images) if torch.equal(image, part[0]))
        assert all(torch.equal(together[name][first : first + len(part)], apart[name]) for name in ENCODER)
    assert all(torch.equal(together[name], again[name]) for name in ENCODER)


def test_an_encoder_that_begins_otherwise_is_refused():
    model = build_vae(small_run("color-authors"), SHAPES["color-authors"]).eval()
    with pytest.raises(ValueError, match="first layer is a convolution, and not ZeroPad2d"):
        quantize(model.encoder, blobs(10, SHAPES["color-authors"]))


def test_rounding_by_images_beats_rounding_to_the_nearest():
    model = model_of("gray")
    training, images = blobs(200, SHAPES["gray"], seed=1), blobs(200, SHAPES["gray"], seed=2)
    encoder = quantize(model.encoder, training)
    nearest = dict(encoder.rounding)
    for index, layer in enumerate(quantized._convolutions(model.encoder)):
        scales = quantized._scales(layer).view(-1, 1, 1, 1)
        nearest[f"kernel.{index}"] = (layer.weight / scales).round().to(torch.int8).detach()
    exact = compute_scores(model, images, ["kl"], precision="float32")["kl"]
    errors = [
        (compute_scores(model, images, ["kl"], quantized=QuantizedNetworks(each))["kl"] - exact).square().mean()
        for each in (encoder, QuantizedEncoder(model.encoder, nearest))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_auroc_is_that_of_float32():
    """Inliers against images with two spots, within 0.005."""
    model = model_of("gray")
    inliers, others = blobs(300, SHAPES["gray"], seed=2), blobs(300, SHAPES["gray"], seed=3)
    others = torch.maximum(others // 2, others.flip(3) // 2)
    encoder = quantize(model.encoder, blobs(200, SHAPES["gray"], seed=1))
    for name in ENCODER:
        found = []
        for options in ({"precision": "float32"}, {"quantized": QuantizedNetworks(encoder)}):
            low, high = (compute_scores(model, x, [name], **options)[name].numpy() for x in (inliers, others))
            found.append(detection_metrics(low, high).auroc)
        assert abs(found[0] - 0.5) > 0.1
        assert abs(found[0] - found[1]) < 0.005


def test_dead_layers_and_blank_images_are_no_trouble():
    model = model_of("gray")
    with torch.no_grad():
        model.encoder[2].weight.zero_()
        model.encoder[2].bias.fill_(-1)
    scores = compute_scores(
        model,
        blobs(5, SHAPES["gray"]),
        quantized=QuantizedNetworks(quantize(model.encoder, torch.zeros_like(blobs(3, SHAPES["gray"])))),
        scores=["kl"],
    )
    assert scores["kl"].isfinite().all()
    assert (scores["kl"] == scores["kl"][0]).all()


def test_what_int8_is_not_for_is_refused(monkeypatch):
    model = model_of("gray")
    images = blobs(4, SHAPES["gray"])
    encoder = quantize(model.encoder, images)
    with pytest.raises(ValueError, match=r"score bpd needs the decoder.*kl, prior_ratio or latent_norm"):
        compute_scores(model, images, ["bpd"], quantized=QuantizedNetworks(encoder))
    with pytest.raises(ValueError, match=r"images are .*this model takes uint8"):
        compute_scores(model, images.float(), ["kl"], quantized=QuantizedNetworks(encoder))
    with pytest.raises(ValueError, match="not of this model"):
        QuantizedEncoder(model_of("pyramid").encoder, encoder.rounding)
    rows = build_vae(preset("features", "rows"), (5, 1, 1)).eval()
    with pytest.raises(ValueError, match="and not Flatten: use float32"):
        quantize(rows.encoder, torch.zeros(4, 5, 1, 1))
    with torch.no_grad():
        model.encoder[0].weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="finite"):
        quantize(model.encoder, images)
    monkeypatch.setattr(quantized, "multiplies_integers", lambda: False)
    with pytest.raises(ValueError, match="no exact 8-bit convolution"):
        quantize(model_of("gray").encoder, images)


@pytest.mark.parametrize("network", ["gray", "color", "pyramid", "deep"])
def test_scores_that_decode_are_those_of_float32_up_to_rounding(network):
    model, images = model_of(network), blobs(40, SHAPES[network], seed=2)
    model.train()
    model.decode(torch.randn(64, model.latent_size, generator=torch.Generator().manual_seed(0)))  # for batch norms
    model.eval()
    exact, rounded = Scorer(model), Scorer(model, quantized=quantize_model(model, blobs(50, SHAPES[network], seed=1)))
    references = exact.measure(images, ("dose", "prior_ratio"))
    names = ("combined", "dose", "bpd", "iwae")
    before, after = (Scorer(model, references, quantized=each.quantized)(images, names) for each in (exact, rounded))
    for name in names:
        error = ((after[name] - before[name]) ** 2).mean() ** 0.5 / before[name].std()
        assert 0 < error < 0.2, (name, error)
    part = Scorer(model, references, quantized=rounded.quantized)(images[3:8], names)
    for name in names:
        assert (part[name] == after[name][3:8]).all()


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(4, 8), nn.Unflatten(1, (8, 1, 1)), nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)],
        [nn.Linear(4, 8), nn.ReLU(), nn.Unflatten(1, (8, 1, 1)), nn.Conv2d(8, 8, 3, padding=1)],
        [nn.Unflatten(1, (4, 1, 1)), nn.ReLU(), nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1)],
        [nn.Unflatten(1, (4, 1, 1)), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)],
        [nn.Unflatten(1, (4, 1, 1)), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU()],
    ],
)
def test_decoders_it_does_not_know_are_refused(layers):
    if isinstance(layers[-1], nn.ReLU):
        assert quantize_decoder(nn.Sequential(*layers[:-1]), torch.ones(2, 4))(torch.ones(2, 4)).shape == (2, 8, 1, 1)
    with pytest.raises(ValueError, match=r"int8 (does not know|takes decoders)"):
        quantize_decoder(nn.Sequential(*layers), torch.ones(2, 4))


def test_a_trial_says_what_int8_changes(monkeypatch):
    model, shape = model_of("gray"), SHAPES["gray"]
    training, held_out = blobs(120, shape, seed=1), blobs(200, shape, seed=2)
    tried = try_int8(Scorer(model), training, held_out, "combined", ("dose",), 0.05)
    assert 0 < tried.moved < 0.2
    assert 0 <= tried.changed <= 0.1
    assert tried.quicker > 0
    assert "int8 scores combined" in tried.describe()
    assert try_int8(Scorer(model), training, held_out[:20], "combined", ("dose",), 0.05) is None
    assert try_int8(Scorer(model), training, held_out, "waic", ("dose",), 0.05) is None
    monkeypatch.setattr("negvae.scoring.quantization.multiplies_integers", lambda: False)
    assert try_int8(Scorer(model), training, held_out, "combined", ("dose",), 0.05) is None


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 6)], "Conv2d in this place"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten()], "Conv2d in this"),
        ([nn.Conv2d(1, 4, 3, padding="same"), nn.ReLU(), nn.Flatten()], "Conv2d in this place"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Sequential(nn.ReLU()), nn.Flatten()], "Sequential in this place"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()], "a linear layer as the encoder's last, not ReLU and Flatten"),
        ([nn.Conv2d(1, 4, 3)], "a linear layer as the encoder's last, not Conv2d"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), *END], "BatchNorm2d in this place"),
        ([nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(), *END], "Conv2d in this place"),
        ([nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), *END], "Conv2d in this place"),
        ([nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)], "Conv2d in this place"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(26, 4)], "not ReLU and Linear"),
        ([spectrally_normalized(nn.Conv2d(1, 4, 3)), nn.BatchNorm2d(4), nn.ReLU(), *END], "Conv2d in this place"),
        ([Squared(1, 4, 3), nn.ReLU(), *END], "Squared in this place"),
    ],
)
def test_layers_it_does_not_know_are_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        quantize(nn.Sequential(*layers).eval(), blobs(4, SHAPES["gray"]))


def test_networks_that_are_more_than_their_layers_are_refused():
    class Centered(nn.Sequential):
        def forward(self, x):
            return super().forward(2 * x - 1)

    with pytest.raises(ValueError, match="what the encoder's Centered computes"):
        quantize(Centered(nn.Conv2d(1, 4, 3), nn.ReLU(), *END), blobs(4, SHAPES["gray"]))
    with pytest.raises(ValueError, match="what the decoder's Centered computes"):
        quantize_decoder(Centered(nn.Linear(4, 8), nn.ReLU()), torch.ones(2, 4))
    layers = [nn.Unflatten(1, (4, 1, 1)), nn.ReLU(), Squared(4, 1, 1)]
    with pytest.raises(ValueError, match="Squared in this place"):
        quantize_decoder(nn.Sequential(*layers), torch.ones(2, 4))


def test_the_last_layer_needs_no_bias():
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 4, bias=False))
    images = blobs(20, SHAPES["gray"])
    mean, log_var = quantize(encoder, images)(images)
    torch.testing.assert_close(torch.cat([mean, log_var], 1), encoder(images.float() / 255), rtol=0, atol=0.02)


def test_a_kernel_that_overflows_or_is_missing_is_noticed(monkeypatch):
    class Saturating(quantized._Layer):
        def __call__(self, x):
            return super().__call__(x).clamp(max=2**15)

    monkeypatch.setattr(quantized, "_Layer", Saturating)
    assert not quantized.multiplies_integers.__wrapped__()
    monkeypatch.setattr(quantized._Layer, "of", lambda *arguments: torch.ops.onednn.no_such_operator())
    assert not quantized.multiplies_integers.__wrapped__()


def test_an_encoder_that_int8_refuses_is_never_tried():
    assert quantization.is_possible(model_of("gray"), "kl")
    assert not quantization.is_possible(model_of("residual"), "kl")


def test_without_a_decoder_in_int8_scores_of_the_encoder_are_calibrated():
    model, images = model_of("gray"), blobs(60, SHAPES["gray"])
    whole = quantize_model(model, images[:40])
    for networks, decodes in ((QuantizedNetworks(whole.encode), False), (whole, True)):
        scorer = Scorer(model, quantized=networks)
        calibration = calibrate(scorer, images[:40], images[40:], score="kl", target_fpr=0.2)
        assert {"kl", "prior_ratio"} <= set(calibration.scores)
        assert ("bpd" in calibration.scores) == decodes


def test_int8_is_offered_for_speed_that_keeps_the_figures():
    good = {"score": "kl", "quicker": 1.3, "moved": 0.1, "changed": 0.02, "false_alarms": (0.05, 0.05)}
    assert Offer(**good).holds
    for worse in ({"quicker": 1.2}, {"moved": 0.11}, {"changed": 0.03}):
        assert not Offer(**good | worse).holds, worse


def test_a_trial_of_int8_measures_on_images_from_all_over_the_training_set(monkeypatch):
    images, seen, scored = blobs(64, SHAPES["gray"]), [], []
    model = build_vae(small_run("gray", initialization="he"), SHAPES["gray"]).eval()
    monkeypatch.setattr(quantization, "_MEASURED", 8)
    monkeypatch.setattr(quantization, "_ENOUGH", 10)
    measure = Scorer.measure
    monkeypatch.setattr(Scorer, "measure", lambda self, given, *rest: seen.append(given) or measure(self, given, *rest))
    score = Scorer.__call__
    monkeypatch.setattr(
        Scorer, "__call__", lambda self, given, *rest: scored.append(len(given)) or score(self, given, *rest)
    )
    try_int8(Scorer(model), images, images[:20], "kl", (), 0.2)
    assert len(seen) == 2
    assert scored[-1] == 16  # of the held-out ones, twice as many as measured on
    assert all(torch.equal(each, images[::8]) for each in seen)
