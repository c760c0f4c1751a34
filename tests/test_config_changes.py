"""Every leaf is, setting by setting, what it was before the configs were joined from fragments.

``data/configs_before.json.xz`` holds the merged configs of all leaves at commit 48aca77, without
the names that only helped to build them. Whatever differs on purpose is listed in ``changed``.
"""

import json
import lzma

from tests.config_files import APART, BASE, CONFIGS, LEAVES, name_of, parsed
from tests.small_runs import REPO

BEFORE = json.loads(lzma.open(REPO / 'tests/data/configs_before.json.xz').read())
HOOKS = {
    'memory_bank': {'type': 'crd_plugin.MemoryBankHook'},
    'cocord': {'type': 'crd_plugin.CoCoRDHook'},
}


def changed(before):
    """A config of before with all changes that were made on purpose."""
    cfg = json.loads(json.dumps(before))
    # The hooks that a model needs are in the default hooks of all runs; they were custom hooks of
    # the methods, where a user's own list replaced them.
    assert cfg.pop('custom_hooks', []) in ([], *([hook] for hook in HOOKS.values()))
    cfg['default_hooks'].update(HOOKS)
    # A diverged run stops; it trained on to the last epoch.
    cfg['default_hooks']['finite_loss'] = {'type': 'crd_plugin.FiniteLossHook'}
    # A run killed while it saves keeps a whole latest checkpoint.
    cfg['default_hooks']['checkpoint']['type'] = 'crd_plugin.CheckpointHook'
    # The weight of the student's own loss is always written; 1.0 is the default of the class.
    if 'architecture' in cfg['model'] and 'distiller' in cfg['model']:
        cfg['model']['architecture']['head']['loss'].setdefault('loss_weight', 1.0)
    # K follows from the size of the training set, as 32 of 100 did from 16,384 of 50,000.
    losses = cfg['model'].get('distiller', {}).get('distill_losses', {})
    for loss in losses.values():
        if loss.get('num_negatives') == 32:
            del loss['num_negatives']
    # A part of a published data set is refused; of the digits nothing can be missing.
    if 'Digits' not in json.dumps(cfg):
        cfg['train_dataloader']['dataset']['complete'] = True
    # The size of the digits belongs to the pair; only CKTF had it.
    if 'Digits' in json.dumps(cfg) and losses and 'teacher' in cfg['model']:
        cfg['model']['input_shape'] = [3, 16, 16]
    # Recorders that find the penultimate feature and the logits of other networks too.
    distiller = cfg['model'].get('distiller', {})
    for side in ('student_recorders', 'teacher_recorders'):
        recorders = distiller.get(side, {})
        for name, old in dict(feat='neck', logits='head.fc').items():
            if recorders.get(name, {}).get('source') == old:
                kind = dict(feat='PenultimateFeature', logits='Logits')[name]
                recorders[name] = {'type': f'crd_plugin.{kind}'}
    for mapping in distiller.get('loss_forward_mappings', {}).values():
        for record in mapping.values():
            if record['recorder'] == 'feat':
                record.pop('data_idx', None)
    return cfg


def test_nothing_else_has_changed():
    # What other files join, and is not read by a runner.
    fragments = {name for path in BASE.glob('*/*.py') for name in parsed(path)} - {
        name for cfg in BEFORE.values() for name in cfg
    }
    leaves = {name_of(leaf).removesuffix('.py'): leaf for leaf in (*LEAVES, *APART['transfer'])}
    assert set(BEFORE) <= set(leaves)
    for name, before in BEFORE.items():
        now = json.loads(json.dumps(parsed(leaves[name]).to_dict()))
        now = {key: value for key, value in now.items() if key not in fragments}
        assert now == changed(before), name


def test_modules_are_built_in_the_same_order():
    """The optimizer's state in a checkpoint knows parameters by their order only."""
    for name, before in BEFORE.items():
        now = parsed(CONFIGS / f'{name}.py').model.get('distiller', {})
        for part in ('distill_losses', 'connectors'):
            old = before['model'].get('distiller', {}).get(part, {})
            assert list(now.get(part, {})) == list(old), name
