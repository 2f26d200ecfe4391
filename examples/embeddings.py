"""Embeddings as input: does an input belong to the classes that a network was trained on?

A small network learns the digits 0 to 6. Its hidden layer is the embedding of an image, as a larger network's would
be. The detector is fitted on the embeddings of the training images and meets what the network has never seen: the
digits 7 to 9, and digits lying on their side.

    python examples/embeddings.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from negvae import NegVAEDetector


def embed(network: MLPClassifier, images: np.ndarray) -> np.ndarray:
    """The network's hidden layer (N x 32): ReLU of the first layer's output."""
    return np.maximum(images @ network.coefs_[0] + network.intercepts_[0], 0)


def turned(images: np.ndarray) -> np.ndarray:
    """Rows of 8 x 8 pixels, turned by 90 degrees."""
    return np.rot90(images.reshape(-1, 8, 8), axes=(1, 2)).reshape(len(images), -1)


def main() -> None:
    """Train the network, fit on its embeddings, and compare with its own confidence."""
    images, labels = load_digits(return_X_y=True)
    images = images / 16
    known, unknown = images[labels < 7], images[labels >= 7]
    train, test, train_labels, test_labels = train_test_split(known, labels[labels < 7], test_size=0.25, random_state=0)
    network = MLPClassifier((32,), max_iter=300, random_state=0).fit(train, train_labels)
    print(f"network: right on {network.score(test, test_labels):.1%} of {len(test)} images of the digits 0 to 6")

    detector = NegVAEDetector(target_fpr=0.05, epochs=40, random_state=0).fit(embed(network, train))
    strange = {"digits 7 to 9": unknown, "digits turned by 90 degrees": turned(test)}
    inliers, doubt = detector.ood_score(embed(network, test)), -network.predict_proba(test).max(axis=1)
    print(f"{'':<30}{'AUROC of the detector':>22}{'of its own doubt':>24}{'called outliers':>17}")
    for name, others in strange.items():
        scores, their_doubt = detector.ood_score(embed(network, others)), -network.predict_proba(others).max(axis=1)
        truth = np.r_[np.zeros(len(test)), np.ones(len(others))]
        by_score, by_doubt = (
            roc_auc_score(truth, np.r_[own, their]) for own, their in ((inliers, scores), (doubt, their_doubt))
        )
        called = (scores > detector.calibration_.threshold).mean()
        print(f"{name:<30}{by_score:>22.3f}{by_doubt:>24.3f}{called:>17.1%}")
    called = (detector.predict(embed(network, test)) == -1).mean()
    print(f"{'digits 0 to 6 (set for 5%)':<30}{'':>22}{'':>24}{called:>17.1%}")
    found = detector.predict_fdr(np.concatenate([embed(network, test), embed(network, unknown)]), fdr=0.1) == -1
    wrong = found[: len(test)].sum()
    print(f"0 to 6 and 7 to 9 together, false-discovery rate 10%: {found.sum()} called, {wrong} of them wrongly")


if __name__ == "__main__":
    main()
