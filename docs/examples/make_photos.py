"""Cut two photographs of scikit-learn into a small data set in STL-10's files: data/photos.

Each is cut into blocks of 64x64 pixels, black and white like a chess board: patches of 48x48 from
white blocks are for training, from black ones for tests, so no pixel is in both. The class is the
photograph and the vertical strip of it, ten in all.
"""

from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_images

COUNTS = dict(train=1000, unlabeled=1000, test=1000)
BLOCK, PATCH, ROWS, COLUMNS = 64, 48, 6, 10


def draw(rng, photos, black):
    """Draw a patch, enlarged to 96x96, and its class from 0 to 9."""
    photo, row = rng.integers(2), rng.integers(ROWS)
    column = 2 * rng.integers(COLUMNS // 2) + (row + black) % 2
    top, left = BLOCK * np.array([row, column]) + rng.integers(BLOCK - PATCH + 1, size=2)
    patch = photos[photo][top : top + PATCH, left : left + PATCH]
    return cv2.resize(patch, (96, 96)), 5 * photo + column // 2


if __name__ == '__main__':
    root, rng, photos = Path('data/photos'), np.random.default_rng(0), load_sample_images().images
    root.mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        patches, classes = zip(*(draw(rng, photos, split == 'test') for _ in range(count)))
        # Planes of red, green and blue, each column by column; classes from 1.
        (root / f'{split}_X.bin').write_bytes(np.stack(patches).transpose(0, 3, 2, 1).tobytes())
        if split != 'unlabeled':
            (root / f'{split}_y.bin').write_bytes(bytes(int(number) + 1 for number in classes))
