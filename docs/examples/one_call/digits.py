"""Scikit-learn's digits as a folder of images per class, and a teacher: python digits.py."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy


def teacher(num_classes=10):
    """Return a network of plain PyTorch; pixels are normalised as ImageNet's."""
    layers = []
    for c_in, c_out, stride in ((3, 32, 2), (32, 64, 1), (64, 64, 2), (64, 128, 2)):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes)
    )


if __name__ == '__main__':
    digits = load_digits()
    images = []
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target)):
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32))
        images.append(np.array(image))
        folder = Path('digits', 'train' if number < 1000 else 'val', str(label))
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f'{number:04}.png')

    torch.manual_seed(0)
    mean, std = (
        torch.tensor(x)[:, None, None] for x in ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    )
    pixels = (torch.tensor(np.stack(images))[:, None].float() - mean) / std
    labels = torch.tensor(digits.target)
    network = teacher()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(8):
        for ids in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            cross_entropy(network(pixels[ids]), labels[ids]).backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        right = (network(pixels[1000:]).argmax(1) == labels[1000:]).float().mean().item()
    print(f'teacher {100 * right:.1f} %')
    torch.save(network.state_dict(), 'teacher.pth')
