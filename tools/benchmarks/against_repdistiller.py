"""Train with the published objective of CRD and with ours, side by side: setting (b) of results.md.

All candidates start from the same weights and rows and get the same images; the sampler of the
original draws the ids for both. `drawn here` is our objective as configs use it, with negatives of
its own. Seconds are those of the processor, for whole steps (student, objective, optimizer) and for
the objective alone: connectors, loss, their backward pass, the update of the rows and the draw of
the ids.
"""

import argparse
import copy
import sys
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import crd_plugin.models  # isort: skip  # noqa: F401  first: it makes MMRazor importable
import timing
import torch
import torch.nn.functional as F
from crd_loss import mmrazor_samples
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, set_random_seed
from mmpretrain.registry import MODELS
from mmrazor.models import losses as mmrazor
from torch import Tensor, nn

from crd_plugin.models import CRDLoss, EmbeddingConnector
from crd_plugin.models.algorithms.checkpoints import load_pretrained

CONFIG = 'configs/crd/crd_resnet20_resnet8_b64-40e_fashion-mnist.py'
ORIGINAL, SAME_IDS, DRAWN = 'original', 'ours, same ids', 'ours, drawn here'


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    what = 'checkout of HobbitLong/RepDistiller, or the word mmrazor for the copy in MMRazor'
    add('original', nargs='?', help=what)
    at_least = timing.at_least
    add('--epochs', type=at_least(1), default=3, help='default: 3')
    what = 'training images per class; default: 500'
    add('--per-class', type=at_least(1), default=500, help=what)
    add('--batch-size', type=at_least(2), default=64, help='default: 64')
    add('--teacher-ckpt', help='weights of the teacher; default: random ones')
    add('--threads', type=at_least(1), help='CPU threads; default: torch')
    add('--json', type=timing.new_file, help='write losses and seconds to this file')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


class Candidate:
    """A student and its objective with two connectors, trained with SGD.

    The objective takes features of student and teacher, ids, and ids of the negatives.
    """

    def __init__(self, student: nn.Module, objective: nn.Module, optimizer: dict) -> None:
        self.student, self.objective = copy.deepcopy(student).train(), objective
        trained = [*self.student.parameters(), *objective.parameters()]
        self.optimizer = torch.optim.SGD(trained, **optimizer)
        self.losses: list[float] = []
        self.whole = self.alone = 0.0  # seconds

    def step(self, images: Tensor, labels: Tensor, *inputs: Tensor | None) -> None:
        """Train one step."""
        start = process_time()
        feat = self.student.extract_feat(images)[-1]
        entropy = F.cross_entropy(self.student.head((feat,)), labels)
        leaf = feat.detach().requires_grad_()
        begin = process_time()
        loss = self.objective(leaf, *inputs).squeeze()
        self.optimizer.zero_grad()
        (0.8 * loss).backward()
        if isinstance(self.objective, OurCRD):
            self.objective.loss.bank.commit()
        self.alone += process_time() - begin
        torch.autograd.backward([entropy, feat], [None, leaf.grad])
        self.optimizer.step()
        self.whole += process_time() - start
        self.losses.append(float(loss.detach()))


class OurCRD(nn.Module):
    """Our objective with the weights and rows of the original; without ``drawn`` it draws."""

    def __init__(self, original: Any, opt: Any, labels: Tensor) -> None:
        super().__init__()
        self.loss = CRDLoss(opt.feat_dim, opt.nce_k, opt.nce_t, opt.nce_m)
        self.loss.bank.resize(opt.n_data, labels)
        self.loss.bank.student.copy_(original.contrast.memory_v1)
        self.loss.bank.teacher.copy_(original.contrast.memory_v2)
        self.embed_s = EmbeddingConnector(opt.s_dim, opt.feat_dim)
        self.embed_t = EmbeddingConnector(opt.t_dim, opt.feat_dim)
        for side in ('embed_s', 'embed_t'):
            weights = getattr(original, side).linear.state_dict()
            getattr(self, side).linear.load_state_dict(weights)

    def forward(self, s_feat: Tensor, t_feat: Tensor, ids: Tensor, drawn: Tensor | None) -> Tensor:
        """Return the objective."""
        return self.loss(self.embed_s(s_feat), self.embed_t(t_feat), ids, contrast_idx=drawn)


class MMRazorCRD(nn.Module):
    """MMRazor's copy of the objective, with the connectors of the original."""

    def __init__(self, opt: Any) -> None:
        super().__init__()
        self.embed_s = EmbeddingConnector(opt.s_dim, opt.feat_dim)
        self.embed_t = EmbeddingConnector(opt.t_dim, opt.feat_dim)
        # Its defaults are those of `opt`.
        self.loss = mmrazor.CRDLoss(neg_num=opt.nce_k, sample_n=opt.n_data)
        self.contrast = self.loss.contrast

    def forward(self, s_feat: Tensor, t_feat: Tensor, ids: Tensor, drawn: Tensor) -> Tensor:
        """Return the objective."""
        return self.loss(self.embed_s(s_feat), self.embed_t(t_feat), mmrazor_samples(ids, drawn))


def make_original(where: str, opt: Any) -> nn.Module:
    """Build the original, from a checkout or from MMRazor."""
    if where == 'mmrazor':
        return MMRazorCRD(opt)
    # It moves the tables of its sampler to a GPU whatever the device.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    sys.path.insert(0, str(Path(where).absolute()))
    from crd import criterion

    return criterion.CRDLoss(opt)


def train(args: argparse.Namespace) -> dict[str, Candidate]:
    """Train all candidates in turn, batch by batch."""
    cfg = Config.fromfile(Path(__file__).parents[2] / CONFIG)
    cfg.train_dataloader.batch_size = args.batch_size
    cfg.train_dataloader.dataset.dataset.num_train_per_class = args.per_class
    MMLogger.get_instance('mmengine').setLevel('WARNING')
    set_random_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        preprocess = MODELS.build(cfg.data_preprocessor)
        teacher, student = (MODELS.build(cfg.pair[role]) for role in ('teacher', 'architecture'))
    for network in (teacher, student):
        network.init_weights()
    if args.teacher_ckpt:
        load_pretrained(teacher, args.teacher_ckpt, '--teacher-ckpt')
    teacher.eval()
    labels = torch.from_numpy(loader.dataset.get_gt_labels())
    opt = SimpleNamespace(
        s_dim=student.head.in_channels,
        t_dim=teacher.head.in_channels,
        feat_dim=128,
        n_data=len(labels),
        nce_k=max(1, len(labels) * 16384 // 50000),  # the published share of the training set
        nce_t=0.07,
        nce_m=0.5,
    )
    original = make_original(args.original, opt)
    optimizer = {key: value for key, value in cfg.optim_wrapper.optimizer.items() if key != 'type'}
    ours = (OurCRD(original, opt, labels) for _ in range(2))
    candidates = {
        name: Candidate(student, objective, optimizer)
        for name, objective in zip((ORIGINAL, SAME_IDS, DRAWN), (original, *ours), strict=True)
    }
    for epoch in range(args.epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            batch = preprocess(batch, training=True)
            images, samples = batch['inputs'], batch['data_samples']
            ids = torch.tensor([sample.sample_idx for sample in samples])
            classes = torch.cat([sample.gt_label for sample in samples])
            with torch.no_grad():
                t_feat = teacher.extract_feat(images)[-1]
            start = process_time()
            drawn = original.contrast.multinomial.draw(len(ids) * (1 + opt.nce_k))
            drawn = drawn.view(len(ids), -1)
            drawn[:, 0] = ids
            seconds = process_time() - start
            candidates[ORIGINAL].alone += seconds
            candidates[ORIGINAL].whole += seconds
            for name, candidate in candidates.items():
                candidate.step(images, classes, t_feat, ids, None if name == DRAWN else drawn)
    return candidates


def report(args: argparse.Namespace, candidates: dict[str, Candidate]) -> None:
    """Print losses by step and seconds per step; write them to the JSON."""
    losses = [candidate.losses for candidate in candidates.values()]
    steps = len(losses[0])
    out = [
        f'{args.epochs} epochs of {args.per_class} images per class in batches of '
        f'{args.batch_size}; teacher: {args.teacher_ckpt or "random weights"}; '
        f'{timing.machine("cpu")}',
        'step  ' + '  '.join(f'{name:>16}' for name in candidates) + '  same ids: difference',
    ]
    for step, (first, same, drawn) in enumerate(zip(*losses, strict=True), 1):
        if step <= 10 or step % 20 == 0 or step == steps:
            values = f'{first:16.5f}  {same:16.5f}  {drawn:16.5f}'
            out.append(f'{step:>4}  {values}  {(same - first) / first:20.1e}')
    sys.stdout.write('\n'.join(out) + '\n')
    cases = [
        dict(name=name, step=one.whole / steps, objective=one.alone / steps, losses=one.losses)
        for name, one in candidates.items()
    ]
    columns = {'whole step': '{step_ms:.2f}', 'objective alone': '{objective_ms:.2f}'}
    timing.write_table('Milliseconds of the processor per step', cases, columns)
    timing.write_json(args.json, cases)


def main() -> None:
    """Train, or say what is missing."""
    args = parse_args()
    given = args.original
    if given != 'mmrazor' and not (given and Path(given, 'crd', 'criterion.py').is_file()):
        sys.stdout.write(
            f'Skipped: {given or "nothing"} is no checkout of RepDistiller; give the folder that '
            '`git clone https://github.com/HobbitLong/RepDistiller` makes, or the word mmrazor.\n'
        )
        return
    report(args, train(args))


if __name__ == '__main__':
    main()
