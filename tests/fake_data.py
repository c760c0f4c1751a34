"""Small data sets in the on-disk formats of the real ones, written to the ``root`` of a config.

Pictures are noise over a colour of the class, so a network can learn from them.
"""

import gzip
import pickle
from pathlib import Path

import crd_plugin  # isort: skip  # noqa: F401  repairs the imports below
import h5py
import numpy as np
from mmpretrain.datasets import CIFAR10, CIFAR100
from PIL import Image
from scipy.io import savemat

# Ten classes of Tiny-ImageNet, in the order of its wnids.txt.
WNIDS = tuple(
    'n02124075 n04067472 n04540053 n04099969 n07749582 '
    'n01641577 n02802426 n09246464 n07920052 n03970156'.split()
)
WORDS = tuple(
    'Egyptian cat;reel;volleyball;rocking chair, rocker;lemon;bullfrog, Rana catesbeiana;'
    "basketball;cliff, drop, drop-off;espresso;plunger, plumber's helper".split(';')
)


def without_md5(monkeypatch):
    """Let mmpretrain's CIFAR classes, which know the MD5 sums of the real files, take any."""
    for cls in (CIFAR10, CIFAR100):
        for files in ('train_list', 'test_list'):
            monkeypatch.setattr(cls, files, [[name, None] for name, _ in getattr(cls, files)])


def pictures(labels, height, width, seed=0):
    """Return noisy pictures of one colour per class, ``(N, height, width, 3)`` uint8, RGB."""
    generator = np.random.RandomState(seed)
    labels = np.asarray(labels)
    colour = np.stack([labels * 37 % 200, labels * 91 % 200, labels * 53 % 200], axis=-1)
    noise = generator.randint(0, 56, size=(len(labels), height, width, 3), dtype=np.uint8)
    return colour.astype(np.uint8)[:, None, None] + noise


def write_cifar10(root, num_train=50, num_test=20):
    """Write CIFAR-10, ``num_train`` a multiple of five; return (images, labels) of each split."""
    folder = Path(root) / 'cifar-10-batches-py'
    written = _arrays(dict(train=num_train, test=num_test), 32)
    train = zip(*(np.split(array, 5) for array in written['train']))
    batches = {f'data_batch_{number}': part for number, part in enumerate(train, start=1)}
    for name, (images, labels) in {**batches, 'test_batch': written['test']}.items():
        _pickle(folder / name, batch_label=name, labels=labels.tolist(), **_cifar_rows(images))
    label_names = list(CIFAR10.METAINFO['classes'])
    _pickle(folder / 'batches.meta', label_names=label_names, num_vis=3072)
    return written


def write_cifar100(root, num_train=200, num_test=100):
    """Write CIFAR-100; return (images, fine labels) of each split."""
    folder = Path(root) / 'cifar-100-python'
    written = _arrays(dict(train=num_train, test=num_test), 32, num_classes=100)
    for split, (images, labels) in written.items():
        _pickle(
            folder / split,
            batch_label=split,
            fine_labels=labels.tolist(),
            coarse_labels=(labels // 5).tolist(),
            **_cifar_rows(images),
        )
    _pickle(folder / 'meta', fine_label_names=list(CIFAR100.METAINFO['classes']))
    return written


def write_fashion_mnist(root, num_train=50, num_test=20):
    """Write Fashion-MNIST, packed; return (grey images, labels) of each split."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    written = _arrays(dict(train=num_train, t10k=num_test), 28)
    for split, (images, labels) in written.items():
        written[split] = images[..., 0], labels
        write_idx(root / f'{split}-images-idx3-ubyte.gz', images[..., 0])
        write_idx(root / f'{split}-labels-idx1-ubyte.gz', labels.astype(np.uint8))
    return written


def write_idx(path, array):
    """Write bytes in the IDX format of MNIST, packed if the name says so."""
    header = np.array([0x800 + array.ndim, *array.shape], '>i4').tobytes()
    with (gzip.open if path.suffix == '.gz' else open)(path, 'wb') as file:
        file.write(header + np.ascontiguousarray(array).tobytes())


def write_stl10(root, num_train=40, num_test=20, num_unlabeled=60):
    """Write STL-10; return (images, labels from 0) of each split, whether written or not."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    written = _arrays(dict(train=num_train, test=num_test, unlabeled=num_unlabeled), 96)
    for split, (images, labels) in written.items():
        # Image by image, channel by channel, column by column.
        (root / f'{split}_X.bin').write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        if split != 'unlabeled':
            (root / f'{split}_y.bin').write_bytes(bytes(int(label) + 1 for label in labels))
    return written


def write_tiny_imagenet(root, num_train=4, num_val=2):
    """Write ten classes of Tiny-ImageNet-200; return (path, label) of the images of each split.

    As in the original the order of ``wnids.txt`` is not alphabetical, ``words.txt`` names other ids
    too, and every seventh image is grey.
    """
    root = Path(root)
    label_of = {wnid: i for i, wnid in enumerate(sorted(WNIDS))}
    written = dict(train=[], val=[])
    for wnid in WNIDS:
        for i in range(num_train):
            path = f'train/{wnid}/images/{wnid}_{i}.JPEG'
            _jpeg(root / path, label_of[wnid], 64, 64, len(written['train']))
            written['train'].append((path, label_of[wnid]))
        (root / f'train/{wnid}/{wnid}_boxes.txt').write_text(f'{wnid}_0.JPEG\t0\t10\t63\t58\n')
    lines = []
    for i in range(num_val * len(WNIDS)):
        wnid = WNIDS[i * 3 % len(WNIDS)]
        path = f'val/images/val_{i}.JPEG'
        lines.append(f'val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n')
        _jpeg(root / path, label_of[wnid], 64, 64, i)
        written['val'].append((path, label_of[wnid]))
    (root / 'val/val_annotations.txt').write_text(''.join(lines))
    (root / 'wnids.txt').write_text('\n'.join(WNIDS))
    words = {**dict(zip(WNIDS, WORDS)), 'n00001740': 'entity'}
    (root / 'words.txt').write_text(''.join(f'{wnid}\t{words[wnid]}\n' for wnid in sorted(words)))
    return written


def write_nyu_depth(root, num_train=3, num_test=2, height=48, width=64):
    """Write NYU-Depth V2; return (images, depths, labels from 0 to 894) by split, image first."""
    root, number = Path(root), num_train + num_test
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.RandomState(0)
    images = generator.randint(0, 256, (number, height, width, 3), np.uint8)
    depths = generator.uniform(0.7, 10, (number, height, width)).astype(np.float32)
    labels = generator.randint(0, 895, (number, height, width)).astype(np.uint16)
    with h5py.File(root / 'nyu_depth_v2_labeled.mat', 'w', userblock_size=512) as file:
        for name, array in dict(images=images, depths=depths, labels=labels).items():
            # HDF5 has MATLAB's axes in reverse, the number of the image first.
            reverse = (0, *reversed(range(1, array.ndim)))
            file.create_dataset(name, data=array.transpose(reverse), compression='gzip')
    with open(root / 'nyu_depth_v2_labeled.mat', 'r+b') as file:
        file.write(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM')
    order = generator.permutation(number)
    rows = dict(train=np.sort(order[:num_train]), test=np.sort(order[num_train:]))
    savemat(root / 'splits.mat', {f'{split}Ndxs': rows[split][:, None] + 1 for split in rows})
    cells = [
        np.array([f'{kind} {i}' for i in range(1, n + 1)], object)[None]
        for kind, n in (('raw', 894), ('of 40', 40), ('of 13', 13))
    ]
    savemat(
        root / 'classMapping40.mat',
        dict(mapClass=np.arange(894)[None] % 40 + 1, allClassName=cells[0], className=cells[1]),
    )
    struct = dict(labels13=np.arange(40)[None] % 13 + 1, class13=cells[2])
    savemat(root / 'class13Mapping.mat', dict(classMapping13=struct))
    return {split: (images[row], depths[row], labels[row]) for split, row in rows.items()}


def write_imagenet(root, num_train=4, num_val=2):
    """Write four classes of ImageNet-1k; return (path below the split's folder, label) by split.

    As in the original there are portraits and landscapes, grey and CMYK images and an EXIF turn.
    """
    root = Path(root)
    sizes = ((300, 400), (400, 300), (256, 256), (180, 500), (333, 260))
    written = {}
    for split, count in dict(train=num_train, val=num_val).items():
        written[split] = []
        for serial in range(4 * count):
            label = serial // count
            path = f'n{label:08d}/{split}_{serial:08d}.JPEG'
            _jpeg(root / split / path, label, *sizes[serial % len(sizes)], serial)
            written[split].append((path, label))
        lines = [f'{path} {label}\n' for path, label in written[split]]
        (root / 'meta').mkdir(exist_ok=True)
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))
    return written


def _arrays(counts, size, num_classes=10):
    """Return (images, labels) by split."""
    written = {}
    for seed, (split, count) in enumerate(counts.items()):
        labels = np.random.RandomState(seed).permutation(np.arange(count) % num_classes)
        written[split] = pictures(labels, size, size, seed), labels
    return written


def _cifar_rows(images):
    """Return images plane after plane, (N, 3072), and names for them."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1).copy()
    return dict(data=rows, filenames=[f'picture_s_{i:06d}.png' for i in range(len(images))])


def _pickle(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def _jpeg(path, label, height, width, serial):
    """Write one image; some are grey and, unless 64x64, CMYK or turned by EXIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A slope, without which a turned or flipped image looks the same.
    slope = np.linspace(0, 40, height * width).reshape(height, width, 1)
    picture = pictures([label], height, width, serial)[0] // 2
    image = Image.fromarray((picture + slope).astype(np.uint8))
    exif = Image.Exif()
    small = (height, width) == (64, 64)
    if serial % 7 == 1:
        image = image.convert('L')
    elif serial % 7 == 2 and not small:
        image = image.convert('CMYK')
    elif serial % 7 == 3 and not small:
        exif[0x0112] = 6  # turn by 90 degrees
    image.save(path, 'JPEG', quality=95, exif=exif)


# Writers by the folder where the configs look.
WRITERS = {
    'data/cifar10': write_cifar10,
    'data/cifar100': write_cifar100,
    'data/fashion-mnist': write_fashion_mnist,
    'data/imagenet': write_imagenet,
    'data/stl10_binary': write_stl10,
    'data/tiny-imagenet-200': write_tiny_imagenet,
}
