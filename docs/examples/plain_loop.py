"""CRD in a plain PyTorch loop, without MMEngine's runner: python docs/examples/plain_loop.py."""

import torch
from torch import nn

from crd_plugin import CRDLoss, EmbeddingConnector

torch.manual_seed(0)
images, labels = torch.randn(200, 8), torch.arange(200) % 10  # your data
teacher, student = nn.Linear(8, 64), nn.Linear(8, 16)  # your networks, up to their features
classifier = nn.Linear(16, 10)
teacher.requires_grad_(False).eval()

crd = CRDLoss(embed_dim=32, num_negatives=64, num_samples=len(images), loss_weight=0.8)
crd.bank.resize(len(images), labels)  # one row per image; labels tell which rows are negatives
embed_s, embed_t = EmbeddingConnector(16, 32), EmbeddingConnector(64, 32)
trained = nn.ModuleList([student, classifier, embed_s, embed_t])
optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)

for epoch in range(2):
    for ids in torch.randperm(len(images)).split(20):
        features = student(images[ids])
        loss = nn.functional.cross_entropy(classifier(features), labels[ids])
        loss += crd(embed_s(features), embed_t(teacher(images[ids])), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        crd.bank.commit()  # after each step; MemoryBankHook does it under MMEngine
    print(f'epoch {epoch}: loss {loss.item():.2f}, bound {crd.mi_bound.item():.2f} nats')
