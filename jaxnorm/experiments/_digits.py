"""Scikit-learn's digits: 1,797 real images of 8 x 8 pixels."""

import numpy as np

NUM_TRAIN = 1297
NUM_CLASSES = 10
_SPLIT_SEED = 0


def load_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns `(images, labels)` for training, 1,297 of them, and for testing, 500; always the same ones.

    Images are `float32[B, 64]`, less the mean of the training images and over the standard deviation of all their pixels; labels
    are `int32[B]`.
    """
    from sklearn import datasets  # of the extra `demo`, and slow to import

    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(images))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    mean = images[train].mean(0)
    images = ((images - mean) / (images[train] - mean).std()).astype(np.float32)
    labels = labels.astype(np.int32)
    return (images[train], labels[train]), (images[test], labels[test])
