"""Draw images of four textures, 60 each to train and 20 to test: python make_images.py."""

from pathlib import Path

import numpy as np
from PIL import Image

TEXTURES = dict(
    stripes_across=lambda x, y: np.sin(y),
    stripes_down=lambda x, y: np.sin(x),
    checks=lambda x, y: np.sign(np.sin(x) * np.sin(y)),
    rings=lambda x, y: np.sin(np.hypot(x - x.mean(), y - y.mean())),
)

random = np.random.default_rng(0)
y, x = np.mgrid[:80, :80]
for split, number in (('train', 60), ('val', 20)):
    for name, texture in TEXTURES.items():
        folder = Path('data/textures', split, name)
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(number):
            period, color = random.uniform(1, 3), random.uniform(0.2, 1, 3)
            image = 0.5 + 0.5 * texture(x / period, y / period)[..., None] * color
            image = (image + random.normal(0, 0.2, image.shape)).clip(0, 1)
            Image.fromarray((255 * image).astype(np.uint8)).save(folder / f'{index:03}.png')
