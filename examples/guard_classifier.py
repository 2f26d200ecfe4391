"""Guard a classifier: it answers only what looks like its training data.

A logistic regression learns scikit-learn's digits (8 x 8 pixels, here rows of 64 numbers). It gives an answer to
anything, and often a confident one. A detector fitted on the same training data says which inputs are not digits.

    python examples/guard_classifier.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from negvae import NegVAEDetector


def main() -> None:
    """Fit classifier and guard, and ask both about digits and about what is none."""
    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(images, labels, test_size=0.25, random_state=0)
    classifier = LogisticRegression(max_iter=2000).fit(train / 16, train_labels)
    guard = NegVAEDetector(target_fpr=0.05, epochs=40, random_state=0).fit(train)

    passed = guard.predict(test) == 1
    right = classifier.predict(test / 16) == test_labels
    print(f"{len(test)} test digits: classifier right on {right.mean():.1%}")
    print(
        f"guard: {1 - passed.mean():.1%} of them stopped (set for 5%); right on {right[passed].mean():.1%} of the rest"
    )

    draw = np.random.default_rng(0)
    squares = test.reshape(-1, 8, 8)
    outliers = {
        "turned by 90 degrees": np.rot90(squares, axes=(1, 2)).reshape(len(test), -1),
        "white on black swapped": 16 - test,
        "halves of two digits": np.concatenate([squares[:, :4], squares[::-1, 4:][:, ::-1]], axis=1).reshape(-1, 64),
        "pixels in random order": draw.permuted(test, axis=1),
        "noise": draw.uniform(0, 16, test.shape),
    }
    print(f"{'not digits':<24}{'classifier is 90% sure of':>28}{'guard stops':>14}")
    for name, rows in outliers.items():
        sure = classifier.predict_proba(rows / 16).max(axis=1) > 0.9
        stopped = guard.predict(rows) == -1
        print(f"{name:<24}{sure.mean():>28.0%}{stopped.mean():>14.0%}")


if __name__ == "__main__":
    main()
