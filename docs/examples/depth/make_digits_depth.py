"""Write scikit-learn's digits to data/digits-depth, in the files of NYU-Depth V2.

A digit of 16x16 pixels is the colour image, the size of its gradient the "depth", and the label map
has the digit on strokes, class 11 on the background and no label between.
"""

from pathlib import Path

import h5py
import numpy as np
from mmcv import imresize
from scipy.io import savemat

from crd_plugin import Digits

root = Path('data/digits-depth')
root.mkdir(parents=True, exist_ok=True)
samples = []
for split in ('train', 'test'):
    digits = Digits(split)
    samples += [digits.get_data_info(i) for i in range(len(digits))]
    if split == 'train':
        # Ten of each digit first, so that indices=100 are a balanced part.
        rank = {id(s): 0 for s in samples}
        for label in range(10):
            of_label = [s for s in samples if s['gt_label'] == label]
            rank.update({id(s): place for place, s in enumerate(of_label)})
        samples.sort(key=lambda s: (rank[id(s)], s['gt_label']))
        num_train = len(samples)

images = np.stack([imresize(s['img'], (16, 16)) for s in samples])
grey = images[..., 0].astype(np.float32)
depths = np.hypot(*np.gradient(grey, axis=(1, 2))) / 32
labels = np.full(grey.shape, 11, np.uint16)
labels[grey > 40] = 0
digit = np.array([s['gt_label'] + 1 for s in samples], np.uint16)
labels = np.where(grey > 100, digit[:, None, None], labels)

with h5py.File(root / 'nyu_depth_v2_labeled.mat', 'w') as file:
    file['images'] = images.transpose(0, 3, 2, 1)
    file['depths'] = depths.transpose(0, 2, 1)
    file['labels'] = labels.transpose(0, 2, 1)
numbers = np.arange(1, len(samples) + 1)[:, None]
savemat(root / 'splits.mat', dict(trainNdxs=numbers[:num_train], testNdxs=numbers[num_train:]))
names = np.array([*map(str, range(10)), 'background'], object)[None]
savemat(root / 'classMapping40.mat', dict(mapClass=np.arange(1, 12)[None], className=names))
