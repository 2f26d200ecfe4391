"""The VAE as tutorials write it: float32, contiguous, a DataLoader, one optimizer, the loss read every step.

With generated negatives, it makes the paper's two updates as they are written down: an encoder step, then a decoder
step, each with forward passes of its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from .networks import FEATURES, gray_decoder, gray_encoder
from .protocol import Turns, images_for, rate_of, specification


class TextbookVAE(nn.Module):
    """A VAE of an encoder, two heads and a decoder."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.encoder = gray_encoder()
        self.mean = nn.Linear(FEATURES, latent_size)
        self.log_var = nn.Linear(FEATURES, latent_size)
        self.decoder = gray_decoder(latent_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the logits of the pixels, and the posterior's mean and log-variance."""
        features = self.encoder(x)
        mean, log_var = self.mean(features), self.log_var(features)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.decoder(z), mean, log_var


def loss_function(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Return the negative ELBO in nats per image, averaged over the batch."""
    reconstruction = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
    return (reconstruction + kl) / len(x)


def kl(mean: Tensor, log_var: Tensor, shift: float = 0.0) -> Tensor:
    """Return the KL divergence to N(shift 1, I) in nats per image, averaged over the batch."""
    return 0.5 * torch.sum((mean - shift) ** 2 + log_var.exp() - log_var - 1) / len(mean)


def adversarial_step(
    model: TextbookVAE, encoder: torch.optim.Optimizer, decoder: torch.optim.Optimizer, x: Tensor, shift: float
) -> float:
    """Take one step of the encoder against generated negatives, then one of the decoder."""
    codes = torch.randn(len(x), model.mean.out_features, device=x.device)
    features = model.encoder(x)
    mean, log_var = model.mean(features), model.log_var(features)
    z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
    generated = torch.sigmoid(model.decoder(codes)).detach()
    features = model.encoder(generated)
    loss = loss_function(x, model.decoder(z), mean, log_var)
    loss = loss + kl(model.mean(features), model.log_var(features), shift)
    encoder.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    encoder.step()
    features = model.encoder(torch.sigmoid(model.decoder(codes)))
    reconstruction = functional.binary_cross_entropy_with_logits(model.decoder(z.detach()), x, reduction="sum")
    decoder.zero_grad()
    (reconstruction / len(x) + kl(model.mean(features), model.log_var(features))).backward()  # type: ignore[no-untyped-call]
    decoder.step()
    return loss.item()


def main() -> None:
    """Train for one epoch in each round."""
    spec = specification()
    device, batch = spec["device"], spec["batch"]
    model = TextbookVAE(spec["latent_size"]).to(device)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=spec["learning_rate"])
    parts = (model.encoder, model.mean, model.log_var)
    encoder = torch.optim.RMSprop([p for part in parts for p in part.parameters()], lr=spec["learning_rate"])
    decoder = torch.optim.RMSprop(model.decoder.parameters(), lr=spec["learning_rate"])

    def loader(images: npt.NDArray[np.uint8]) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.from_numpy(images).float() / 255), batch_size=batch, shuffle=True)

    def epoch(data: DataLoader[tuple[Tensor, ...]]) -> None:
        model.train()
        total = 0.0
        for (x,) in data:
            x = x.to(device)
            if "negative_shift" in spec:
                total += adversarial_step(model, encoder, decoder, x, spec["negative_shift"])
                continue
            optimizer.zero_grad()
            loss = loss_function(x, *model(x))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()

    images = np.load(spec["images"])
    rate = rate_of(lambda few: epoch(loader(few)), images, batch)
    images = images_for(images, rate, spec["seconds"], batch)
    data = loader(images)

    def work() -> float:
        epoch(data)
        return len(images)

    Turns(device, torch=str(torch.__version__), precision="float32", threads=torch.get_num_threads()).serve(work)


if __name__ == "__main__":
    main()
