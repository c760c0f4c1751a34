"""What the processes of tests/test_models/test_collectives.py do."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import crd_plugin  # noqa: F401
from crd_plugin.models.collectives import gather_batches, gather_sizes, own_part
from crd_plugin.models.losses import CRDLoss, DenseCRDLoss

from . import small_runs

WORLD, D = 2, 6
LOSS = 'model__distiller__distill_losses__loss_crd__'
# Batch sizes of the ranks, step by step: the first fixes Z.
SIZES = {'even': [(4, 4), (4, 4)], 'uneven': [(5, 3), (1, 4), (3, 3)]}
# Objective, exclusion, and whether ids (of a bank: rows to score) are given.
MODES = [
    (objective, exclude, given)
    for objective in ('nce', 'infonce')
    for exclude, given in (('class', False), ('instance', False), ('instance', True))
]
# A bank of 41 rows, so that the parts of two ranks differ.
NUM_ROWS, NUM_NEGATIVES = 41, 12
SHARD_SIZES = [(4, 4), (5, 3), (2, 4)]
# Bits of float32 that a careless copy might change: quiet and signalling NaN, -0; and large ids.
KEYS = [3, 0x7F800001_7FA00001, 0x80000000, 2**62 + 2**33 + 7, 0x7FC00000_FF800001 - 2**63]


class Connectors(nn.Module):
    """Both connectors of CRD without a bank, for vectors or, channels last, maps; its loss."""

    def __init__(self, objective: str, exclude: str, kind: type = CRDLoss) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.student, self.teacher = nn.Linear(8, D).double(), nn.Linear(8, D).double()
        self.loss = kind(embed_dim=D, negatives='batch', objective=objective, exclude=exclude)

    def forward(self, s_feats, t_feats, sample_idx, labels) -> Tensor:
        return self.loss(
            F.normalize(self.student(s_feats), dim=-1).movedim(-1, 1),
            F.normalize(self.teacher(t_feats), dim=-1).movedim(-1, 1),
            sample_idx,
            labels,
        )


def split(whole: dict[str, Tensor], sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """Batches of the ranks."""
    parts = {key: value.split(list(sizes)) for key, value in whole.items()}
    return [{key: parts[key][rank] for key in parts} for rank in range(len(sizes))]


def make_steps(name: str) -> list[list[dict[str, Tensor]]]:
    """Batches of all ranks; ids and labels repeat within and across ranks."""
    generator = torch.Generator().manual_seed(3)
    steps = []
    for sizes in SIZES[name]:
        total = sum(sizes)
        whole = dict(
            s_feats=torch.randn(total, 8, generator=generator).double(),
            t_feats=torch.randn(total, 8, generator=generator).double(),
            sample_idx=torch.arange(total) * 2,
            labels=torch.arange(total) % 3,
        )
        whole['sample_idx'][-1] = whole['sample_idx'][0]
        steps.append(split(whole, sizes))
    return steps


def make_label_maps() -> list[list[dict[str, Tensor]]]:
    """Two images of 2x2 pixels per rank; one rank or both have no labelled pixel in some steps."""
    generator = torch.Generator().manual_seed(4)
    steps = []
    for labelled in ([1], [0, 1], [0], []):
        maps = torch.randn(2, 4, 2, 2, 8, generator=generator).double()
        labels = torch.full((4, 2, 2), 255)
        for rank in labelled:
            labels[2 * rank : 2 * rank + 1 + rank] = torch.tensor([[0, 1], [255, 2]])
        steps.append(split(dict(s_feats=maps[0], t_feats=maps[1], labels=labels), (2, 2)))
    return steps


def join(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def contrast_batches(model: nn.Module, batches: list[dict[str, Tensor]], ids: bool) -> list[dict]:
    """Losses and gradients of the weights, step by step."""
    seen = []
    inner = getattr(model, 'module', model)
    crd = getattr(inner.loss, 'crd', inner.loss)
    for given in batches:
        batch = dict(given, sample_idx=given['sample_idx'] if ids else None)
        if crd.exclude == 'instance':
            batch['labels'] = None
        model.zero_grad()
        loss = model(**batch)
        loss.backward()
        seen.append(
            dict(
                loss=loss.detach(),
                bound=crd.mi_bound,
                log_mean=crd.log_mean.clone(),
                grads={key: value.grad.clone() for key, value in inner.named_parameters()},
            )
        )
    return seen


def in_batch(rank: int) -> dict[tuple, list[dict]]:
    found = {}
    for name in SIZES:
        batches = [step[rank] for step in make_steps(name)]
        for objective, exclude, ids in MODES:
            model = DistributedDataParallel(Connectors(objective, exclude))
            found[name, objective, exclude, ids] = contrast_batches(model, batches, ids)
    for objective in ('nce', 'infonce'):
        model = DistributedDataParallel(Connectors(objective, 'class', DenseCRDLoss))
        batches = [step[rank] for step in make_label_maps()]
        found['label maps', objective] = contrast_batches(model, batches, False)
    return found


def gathering(rank: int) -> dict:
    """Keys, embeddings and gradients of batches of two sizes."""
    count = (5, 2)[rank]
    keys = torch.tensor(KEYS[:count])
    found = {}
    for dtype in (torch.float32, torch.float64):
        feats = [
            torch.full((count, 3), rank + offset, dtype=dtype).requires_grad_()
            for offset in (0.0, 10.0)
        ]
        sizes = gather_sizes(count, keys.device)
        all_keys, gathered = gather_batches(keys, feats, sizes)
        weight = torch.arange(1, 8, dtype=dtype)[:, None] * (rank + 1)
        (gathered[0] * weight).sum().backward()
        found[str(dtype)] = dict(
            sizes=sizes,
            own=(own_part(sizes).start, own_part(sizes).stop),
            keys=all_keys,
            feats=[feat.detach() for feat in gathered],
            grads=[feat.grad for feat in feats],
        )
    return found


def make_bank_loss(objective: str, exclude: str, sharded: bool, negatives: str = 'all') -> CRDLoss:
    """CRD in float64 with a bank of 41 rows, three classes."""
    loss = CRDLoss(
        D, NUM_NEGATIVES, objective=objective, negatives=negatives, exclude=exclude, sharded=sharded
    ).double()
    loss.bank.resize(NUM_ROWS, torch.arange(NUM_ROWS) % 3, seed=1)
    return loss


def make_bank_steps() -> list[list[dict[str, Tensor]]]:
    """Batches of all ranks; the last step has an id on both ranks."""
    generator = torch.Generator().manual_seed(5)
    steps = []
    for sizes in SHARD_SIZES:
        total = sum(sizes)
        ids = torch.randperm(NUM_ROWS, generator=generator)[:total]
        if sizes == SHARD_SIZES[-1]:
            ids[-1] = ids[0]
        given = torch.randint(NUM_ROWS, (total, NUM_NEGATIVES), generator=generator)
        whole = dict(
            s_feats=F.normalize(torch.randn(total, D, generator=generator).double(), dim=1),
            t_feats=F.normalize(torch.randn(total, D, generator=generator).double(), dim=1),
            sample_idx=ids,
            contrast_idx=torch.cat([ids[:, None], given], 1),
        )
        steps.append(split(whole, sizes))
    return steps


def contrast_with_bank(loss: CRDLoss, batches: list[dict[str, Tensor]], given: bool) -> list[dict]:
    seen = []
    for batch in batches:
        feats = [batch[name].clone().requires_grad_() for name in ('s_feats', 't_feats')]
        value = loss(
            *feats, batch['sample_idx'], contrast_idx=batch['contrast_idx'] if given else None
        )
        value.backward()
        # Between the ranks embeddings travel as float32: the single process rounds them too.
        if not dist.is_initialized():
            update = loss.bank.pending
            loss.bank.pending = update._replace(
                student=update.student.float(), teacher=update.teacher.float()
            )
        loss.bank.commit()
        seen.append(
            dict(
                loss=value.detach(),
                bound=loss.mi_bound,
                grads=[feat.grad for feat in feats],
                bank={
                    name: getattr(loss.bank, name).clone()
                    for name in ('student', 'teacher', 'log_z_student', 'log_z_teacher')
                },
            )
        )
    return seen


def with_shards(rank: int) -> dict[tuple, dict]:
    """Every mode that has an exact counterpart, and the rows gathered."""
    batches = [step[rank] for step in make_bank_steps()]
    found = {}
    for objective, exclude, given in MODES:
        loss = make_bank_loss(objective, exclude, sharded=True)
        steps = contrast_with_bank(loss, batches, given)
        with loss.bank.gather_rows_for_checkpoint():
            state = loss.bank.state_dict()
        whole = {side: state[side] for side in ('student', 'teacher') if side in state}
        found[objective, exclude, given] = dict(steps=steps, whole=whole)
    for rule in ('sampled', 'shared'):
        # Drawn with other numbers on each rank, as training does.
        torch.manual_seed(rank)
        loss = make_bank_loss('nce', 'class', True, rule)
        found[rule] = torch.stack([_value(loss.eval(), batches[1]) for _ in range(200)])
    return found


def _value(loss: CRDLoss, batch: dict[str, Tensor]) -> Tensor:
    """Loss of a batch with new negatives, Z given."""
    loss.bank.has_z = True
    loss.bank.log_z_student.fill_(5.0)
    loss.bank.log_z_teacher.fill_(5.5)
    return loss(batch['s_feats'], batch['t_feats'], batch['sample_idx'])


def train_shards(folder: Path, name: str, **changes) -> None:
    """A real run of two epochs, each of which is saved."""
    changes = {LOSS + 'negatives': 'all', 'train_cfg__max_epochs': 2, **changes}
    small_runs.train(folder / name, launcher='pytorch', **changes)


def real_runs(folder: Path) -> dict:
    """Sharded and not, resumed, by iterations, and a checkpoint by hand."""
    sharded = {LOSS + 'sharded': True}
    train_shards(folder, 'plain')
    train_shards(folder, 'sharded', **sharded)
    first = str(folder / 'sharded/epoch_1.pth')
    train_shards(folder, 'resumed', resume=True, load_from=first, **sharded)
    runner = small_runs.build(
        folder / 'iterations',
        launcher='pytorch',
        **sharded,
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=2),
        train_dataloader__sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True),
        default_hooks__checkpoint=dict(
            type='crd_plugin.CheckpointHook', by_epoch=False, interval=3, save_best='accuracy/top1'
        ),
        log_processor__by_epoch=False,
    )
    runner.train()
    message, refused = '', ''
    try:
        plain = {'default_hooks__checkpoint__type': 'CheckpointHook'}
        small_runs.build(folder / 'refused', launcher='pytorch', **sharded, **plain).train()
    except ValueError as error:
        refused = str(error)
    try:
        runner.save_checkpoint(str(folder), 'by_hand.pth')
    except RuntimeError as error:
        message = str(error)
    bank = runner.model.module.distiller.distill_losses['loss_crd'].bank
    with bank.gather_rows_for_checkpoint():
        runner.save_checkpoint(str(folder), 'by_hand.pth')
    return dict(message=message, refused=refused, rows=bank.student)


def config_without_bank() -> dict:
    """Changes that make a run one without ids and labels of the batch."""
    model = small_runs.model(negatives='batch', num_negatives=None, exclude='instance')
    distiller = model['distiller']
    for name in ('ids', 'labels'):
        del distiller['student_recorders'][name]
    for name in ('sample_idx', 'labels'):
        del distiller['loss_forward_mappings']['loss_crd'][name]
    dataset = dict(
        _delete_=True,
        type='crd_plugin.Digits',
        num_train_per_class=2,
        pipeline=[dict(type='PackInputs')],
    )
    return dict(
        model=dict(model, _delete_=True), custom_hooks=[], train_dataloader__dataset=dataset
    )


def train(folder: Path) -> dict:
    """A real run of which the last batches differ: 11 and 10 samples."""
    changes = config_without_bank()
    changes['train_dataloader__dataset'].update(indices=21, num_train_per_class=3)
    runner = small_runs.train(
        folder / 'runner',
        launcher='pytorch',
        **changes,
        default_hooks__checkpoint=None,
        train_dataloader__sampler__round_up=False,
        train_cfg__max_epochs=2,
    )
    return {
        key: value
        for key, value in runner.model.module.state_dict().items()
        if 'running' not in key and 'num_batches' not in key
    }


def work(rank: int, folder: str) -> None:
    with small_runs.process_group(rank, folder) as result:
        result['gathering'] = gathering(rank)
        result['in_batch'] = in_batch(rank)
        result['trained'] = train(Path(folder))
        result['with_shards'] = with_shards(rank)
        result['runs'] = real_runs(Path(folder))
