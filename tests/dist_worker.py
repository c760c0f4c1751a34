"""What the processes of the distributed tests do; they import this file."""

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import crd_plugin  # noqa: F401
from crd_plugin.engine import MemoryBankHook
from crd_plugin.models.losses import CRDLoss

from . import small_runs
from .contrast_worker import split

NUM_ROWS, BATCH_SIZE, NUM_NEGATIVES = 40, 6, 12
WIDTHS = dict(loss_a=8, loss_b=5)  # one bank each


class Rows(Dataset):
    num_samples = NUM_ROWS

    def __len__(self) -> int:
        return NUM_ROWS

    def get_gt_labels(self) -> Tensor:
        return torch.arange(NUM_ROWS) % 4


class Loop(BaseLoop):
    def run(self) -> None:
        """Not called."""


def make_steps(world: int) -> list[list[dict[str, Tensor]]]:
    """Batches of all ranks; embeddings are named by their side and loss."""
    generator = torch.Generator().manual_seed(world)

    def batches(ids: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        sample_idx = torch.cat(list(ids))
        total = len(sample_idx)
        negatives = torch.randint(NUM_ROWS, (total, NUM_NEGATIVES), generator=generator)
        whole = dict(
            sample_idx=sample_idx, contrast_idx=torch.cat([sample_idx[:, None], negatives], 1)
        )
        for name, width in WIDTHS.items():
            for side in 'st':
                rows = torch.randn(total, width, generator=generator, dtype=torch.float64)
                whole[f'{side}_{name}'] = F.normalize(rows)
        return split(whole, [len(part) for part in ids])

    def draw(count: int) -> Tensor:
        return torch.randperm(NUM_ROWS, generator=generator)[:count]

    # The partition constants come from the first step: ranks of many sizes, then ranks of one size.
    sizes = [max(1, BATCH_SIZE - 2 * rank) for rank in range(world)]
    # A last batch of odd sizes, padded by repeating the first samples, once within a rank and once
    # across ranks.
    first = draw(5)
    others = [first[[3, 1, 4]][: max(1, 4 - rank)] for rank in range(1, world)]
    return [
        batches(draw(sum(sizes)).split(sizes)),
        batches(draw(BATCH_SIZE * world).split(BATCH_SIZE)),
        batches([first[[0, 1, 2, 0, 4]], *others]),
        batches([draw(BATCH_SIZE)] * world),  # all ranks have the same ids
        # More rows than the loader has samples on one rank, none on the others.
        batches(draw(3 * BATCH_SIZE).split([3 * BATCH_SIZE] + [0] * (world - 1))),
    ]


def make_trainer(batch_size: int = BATCH_SIZE) -> SimpleNamespace:
    """Losses, hook and the part of a runner that the hook looks at."""
    model = nn.ModuleDict(
        {
            name: CRDLoss(embed_dim=width, num_negatives=NUM_NEGATIVES)
            for name, width in WIDTHS.items()
        }
    )
    hook = MemoryBankHook()
    loader = DataLoader(Rows(), batch_size=batch_size)
    runner = SimpleNamespace(
        model=model,
        hooks=[hook],
        seed=0,
        logger=MMLogger.get_instance('dist_worker'),
        message_hub=mock.Mock(),
    )
    runner._train_loop = runner.train_loop = Loop(runner, loader)
    hook.before_run(runner)
    hook.before_train(runner)
    return SimpleNamespace(model=model, hook=hook, runner=runner)


def take_steps(trainer: SimpleNamespace, batches: list[dict[str, Tensor]]) -> list[dict]:
    """Forward and commit; returns losses and banks after each step."""
    seen = []
    for step, batch in enumerate(batches):
        losses = {}
        for name, loss in trainer.model.items() if len(batch['sample_idx']) else ():
            # Of more rows loss_b has every second one.
            several = slice(None, None, 1 + (name == 'loss_b' and step == 4))
            keys = f's_{name}', f't_{name}', 'sample_idx', 'contrast_idx'
            s_feats, t_feats, sample_idx, contrast_idx = (
                batch[key][several].contiguous() for key in keys
            )
            losses[name] = loss(s_feats, t_feats, sample_idx, contrast_idx=contrast_idx).detach()
        with mock.patch.object(dist, 'all_gather', wraps=dist.all_gather) as gather:
            trainer.hook.after_train_iter(trainer.runner, step + 1)
        banks = {
            name: copy.deepcopy(loss.bank.state_dict()) for name, loss in trainer.model.items()
        }
        seen.append(dict(losses=losses, banks=banks, collectives=gather.call_count))
    return seen


def error_of(function, *args) -> str:
    try:
        function(*args)
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    return 'nothing was raised'


def notice_drift(trainer: SimpleNamespace, rank: int) -> dict[str, str]:
    """Damage one rank's bank, one number at a time."""
    bank = trainer.model['loss_b'].bank
    messages = dict(none=error_of(trainer.hook.after_train_epoch, None))
    damages = dict(
        student=(bank.student, (17, 2)),
        teacher=(bank.teacher, (0, 0)),
        log_z=(bank.log_z_teacher, ()),
    )
    for name, (tensor, place) in damages.items():
        good = tensor[place].clone()
        if rank == 1:
            # To the next number: one bit.
            tensor[place] = torch.nextafter(good, good + 1)
        messages[name] = error_of(trainer.hook.after_train_epoch, None)
        tensor[place] = good
    return messages


class Spy(Hook):
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.start, self.updates, self.wrapper = None, [], None

    def before_train(self, runner) -> None:
        self.wrapper = runner.model.broadcast_buffers
        self.start = copy.deepcopy(_bank(runner).state_dict())

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self.updates.append(tuple(_bank(runner).pending))


def _bank(runner):
    return runner.model.module.distiller.distill_losses['loss_crd'].bank


def train_wrapped(folder: Path, broadcast_buffers: bool) -> dict:
    """A real runner: 21 samples on two ranks, so one is read twice."""
    spy = Spy()
    runner = small_runs.build(
        folder / f'runner_{broadcast_buffers}',
        spy,
        launcher='pytorch',
        model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', broadcast_buffers=broadcast_buffers
        ),
        default_hooks__checkpoint=None,
        train_dataloader__dataset__dataset__num_train_per_class=3,
        train_dataloader__dataset__dataset__indices=21,
        train_cfg__max_epochs=2,
    )
    runner.train()
    return dict(
        broadcast_buffers=spy.wrapper,
        start=spy.start,
        updates=spy.updates,
        bank={**_bank(runner).state_dict()},
        student=runner.model.module.student.state_dict(),
    )


def validate(folder: Path, name: str, **changes) -> dict:
    """Train two epochs; returns the statistics that each validation uses and what it gives."""
    seen: dict = dict(statistics=[], metrics=[])

    def before_val_iter(runner, batch_idx: int, data_batch=None) -> None:
        seen['statistics'].append(copy.deepcopy(runner.model.module.student.backbone.bn))

    def after_val_epoch(runner, metrics: dict) -> None:
        seen['metrics'].append(metrics)

    watches = [
        small_runs.Watch('before_val_iter', before_val_iter),
        small_runs.Watch('after_val_epoch', after_val_epoch),
    ]
    runner = small_runs.build(
        folder / name, *watches, launcher='pytorch', train_cfg__max_epochs=2, **changes
    )
    runner.train()
    seen['statistics'] = [bn.state_dict() for bn in seen['statistics']]
    return seen


def train_online(folder: Path) -> dict:
    """Two epochs of Online KD, whose branches and gate are trained as well."""
    runner = small_runs.build(
        folder / 'online',
        launcher='pytorch',
        model=dict(
            _delete_=True,
            type='crd_plugin.OnlineEnsembleDistill',
            architecture=small_runs.net(6),
            branch_from='backbone.bn',
            input_shape=(3, 8, 8),
        ),
        custom_hooks=[],
        default_hooks__checkpoint=None,
        train_cfg__max_epochs=2,
    )
    # Ranks that begin apart are made alike.
    start = {
        name: value + dist.get_rank() for name, value in runner.model.module.state_dict().items()
    }
    runner.model.module.load_state_dict(start)
    runner.train()
    parameters = dict(runner.model.module.named_parameters())
    return dict(
        start={name: start[name] for name in parameters},
        end={name: value.detach() for name, value in parameters.items()},
    )


def work(rank: int, folder: str) -> None:
    """Entry point of a process: in a group of four, then, maybe, of two."""
    for world, place in ((4, Path(folder)), (2, Path(folder, 'pair'))):
        if rank >= world:
            return
        with small_runs.process_group(rank, str(place), world) as result:
            trainer = make_trainer()
            batches = [step[rank] for step in make_steps(world)]
            result['steps'] = take_steps(trainer, batches)
            result['drift'] = notice_drift(trainer, rank)
            if world == 2:
                result['wrapped'] = [train_wrapped(place, value) for value in (False, True)]
                result['online'] = train_online(place)
                result['validated'] = validate(place, 'validated')
                resume = dict(resume=True, load_from=str(place / 'validated/epoch_1.pth'))
                result['resumed'] = validate(place, 'resumed', **resume)
