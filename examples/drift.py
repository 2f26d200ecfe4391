"""Batch drift: an alarm when a batch as a whole is no longer what the model was trained on.

Batches of 60 digits arrive, 16 x 16 pixels. From the sixth on a lamp ages: every batch is darker than the one before,
by 6% of the light at first. The alarm judges the mean of a batch's scores (typicality: Nalisnick et al. 2019).

    python examples/drift.py
"""

import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from negvae import NegVAEDetector

BATCH, STEADY, AGEING = 60, 5, 5


def main() -> None:
    """Fit, then watch ten batches go by."""
    digits = zoom(load_digits().images / 16, (1, 2, 2), order=1).clip(0, 1)
    images = (digits * 255).round().astype(np.uint8)
    train, stream = train_test_split(images, test_size=BATCH * (STEADY + AGEING), random_state=0)
    detector = NegVAEDetector(negatives="none", epochs=15, random_state=0).fit(train)
    print("batch  light  single images called  typicality  limit")
    for number, batch in enumerate(np.split(stream, STEADY + AGEING)):
        light = 1 - 0.06 * max(number - STEADY + 1, 0)
        seen = (light * batch).astype(np.uint8)
        drift = detector.drift(seen, target_fpr=0.01)
        called = (detector.predict(seen) == -1).mean()
        print(
            f"{number + 1:>5}  {light:>5.0%}  {called:>20.0%}  {drift.typicality:>10.3f}  {drift.threshold:>5.3f}"
            f"  {'ALARM' if drift.alarm else ''}"
        )


if __name__ == "__main__":
    main()
