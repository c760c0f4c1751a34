"""CRD in a plain PyTorch loop, on scikit-learn's digits, in a few seconds on a CPU.

python docs/examples/plain_loop.py
torchrun --nproc_per_node 2 docs/examples/plain_loop.py    # the same in two processes
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from crd_plugin import CRDLoss, EmbeddingConnector

rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
if world > 1:
    dist.init_process_group('gloo')  # 'nccl' on GPUs
torch.manual_seed(0)
digits = load_digits()
pixels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
target = torch.tensor(digits.target)
images, labels = pixels[:300], target[:300]  # the training set; the rest is the test set


def network(width):
    """Return a small network up to its feature, of twice the width."""
    layers = []
    for c_in, c_out, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Distillation(nn.Module):
    """All that is trained together: the student and a connector for each network."""

    def __init__(self):
        super().__init__()
        self.student, self.classifier = network(4), nn.Linear(8, 10)
        self.embed_s, self.embed_t = EmbeddingConnector(8, 32), EmbeddingConnector(64, 32)

    def forward(self, x, teacher_feature):
        feature = self.student(x)
        return self.classifier(feature), self.embed_s(feature), self.embed_t(teacher_feature)


def batches(epoch):
    """Return this rank's batches of an epoch, as positions in the training set."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
    return order[rank::world].split(20)


def accuracy(predict):
    """Return the percentage of test images that are recognised."""
    with torch.no_grad():
        return 100 * (predict(pixels[300:]).argmax(1) == target[300:]).float().mean().item()


# Your teacher, trained before, goes here.
teacher, teacher_classifier = network(32), nn.Linear(64, 10)
parts = nn.Sequential(teacher, teacher_classifier)
optimizer = torch.optim.Adam(parts.parameters(), lr=3e-3)
for ids in (ids for epoch in range(10) for ids in torch.arange(300).split(30)):
    optimizer.zero_grad()
    cross_entropy(parts(images[ids]), labels[ids]).backward()
    optimizer.step()
parts.eval()

model = Distillation()
trained = DistributedDataParallel(model) if world > 1 else model
crd = CRDLoss(embed_dim=32, num_negatives=96, loss_weight=0.8)
crd.bank.resize(len(images), labels)  # one row per image; labels tell which rows are negatives
optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
for epoch in range(30):
    model.train()
    for ids in batches(epoch):
        with torch.no_grad():
            teacher_feature = teacher(images[ids])
        logits, student_embedding, teacher_embedding = trained(images[ids], teacher_feature)
        loss = cross_entropy(logits, labels[ids])
        loss = loss + crd(student_embedding, teacher_embedding, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        crd.bank.commit()  # after each step, on every rank; it gathers their embeddings

model.eval()
if rank == 0:
    print(f'teacher {accuracy(parts):.1f} %')
    print(f'student {accuracy(lambda x: model.classifier(model.student(x))):.1f} %')
    print(f'bound {crd.mi_bound.item():.2f} nats')
if world > 1:
    dist.destroy_process_group()
