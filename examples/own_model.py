"""A model of your own gets calibrated decisions: a small normalizing flow in plain torch, and what negvae adds to it.

The flow is trained on one half of the inliers; `ScoreDetector` takes the other half, which the flow has not seen.

    python examples/own_model.py [--steps 400] [--out own_model]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from negvae import ScoreDetector


class Coupling(nn.Module):
    """An affine coupling layer (Dinh et al. 2017): one half of the columns scales and shifts the other."""

    def __init__(self, columns: int, flip: bool) -> None:
        super().__init__()
        self.flip, self.half = flip, columns // 2
        self.net = nn.Sequential(nn.Linear(self.half, 64), nn.ReLU(), nn.Linear(64, 2 * (columns - self.half)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed rows (N x D) and the logarithm of the determinant (N)."""
        x = x.flip(1) if self.flip else x
        kept, changed = x[:, : self.half], x[:, self.half :]
        scale, shift = self.net(kept).chunk(2, 1)
        scale = scale.tanh()
        return torch.cat([kept, changed * scale.exp() + shift], 1), scale.sum(1)


class Flow(nn.Module):
    """A stack of couplings to a standard Gaussian; the output is -log p(x), so larger = more out-of-distribution."""

    def __init__(self, columns: int, layers: int = 6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(columns, bool(number % 2)) for number in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Return -log p(x) in nats (N)."""
        log_det = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, added = layer(x)
            log_det = log_det + added
        return 0.5 * (x**2).sum(1) + 0.5 * x.shape[1] * float(np.log(2 * np.pi)) - log_det


def ring(count: int, generator: torch.Generator) -> Tensor:
    """Draw rows of four columns, two of which lie near a circle."""
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    return torch.cat([circle, torch.zeros(count, 2)], 1) + 0.1 * torch.randn(count, 4, generator=generator)


def main() -> None:
    """Train the flow, calibrate its scores and use the detector."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps")
    parser.add_argument("--out", type=Path, default=Path("own_model"), help="folder to write")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    training, held_out, fresh = (ring(2000, generator) for _ in range(3))
    flow = Flow(4)
    optimizer = torch.optim.Adam(flow.parameters(), 3e-3)
    for _ in range(options.steps):
        rows = training[torch.randint(len(training), (256,), generator=generator)]
        loss = flow(rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    detector = ScoreDetector(flow.eval(), target_fpr=0.01, confidence=0.95).fit(held_out)
    center = 0.2 * torch.randn(500, 4, generator=generator)  # inside of the ring, where no inlier lies
    print(f"decision: {detector.calibration_.describe()}")
    print(f"false alarms on fresh inliers: {(detector.predict(fresh) < 0).mean():.2%}")
    print(f"found inside of the ring: {(detector.predict(center) < 0).mean():.2%}")
    print(f"moved: {', '.join(each.describe() for each in detector.drift(center) if each.moved)}")
    options.out.mkdir(parents=True, exist_ok=True)
    detector.report(torch.cat([fresh[:500], center]), options.out / "report.html")
    detector.export(options.out / "flow.onnx", fresh[:8])
    print(f"wrote {options.out / 'report.html'} and {options.out / 'flow.onnx'}")


if __name__ == "__main__":
    main()
