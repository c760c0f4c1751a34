"""Value, gradients and buffers of each method are those of the published code."""

import pytest
import torch

from crd_plugin.models import losses
from crd_plugin.models.losses.regressor_losses import factor_loss
from crd_plugin.registry import MODELS
from tests import golden, method_cases
from tests.config_files import fragment


def shapes(case, number, single=False):
    """Shapes of the maps of student and teacher, as the arguments of a loss."""
    sides = [[tuple(case[f'{side}{i}'].shape[1:]) for i in range(number)] for side in 'st']
    return [side[0] for side in sides] if single else sides


def build_vid(case):
    loss = losses.VIDLoss(case['s0'].size(1), case['t0'].size(1))
    torch.testing.assert_close(loss.layers[0].log_scale.detach(), case['default_log_scale'])
    return loss


def build_ft(case):
    return losses.FTLoss(8, 16, float(case['k']), int(case['p1']), int(case['p2']))


def build_kd(case):
    """The loss of the fragment kd, which is MMRazor's."""
    loss = fragment('kd').distiller.distill_losses.loss_kd
    return MODELS.build({**loss, 'tau': float(case['temperature'])})


LOSSES = {
    'zoo_ab': lambda case: losses.ABLoss(*shapes(case, 3), margin=float(case['margin'])),
    'zoo_at': lambda case: losses.ATLoss(),
    'zoo_cc': lambda case: losses.CCLoss(24, 40, embed_dim=16),
    'zoo_fsp': lambda case: losses.FSPLoss(match_sizes=False),  # Maps of two sizes.
    'zoo_ft': build_ft,
    **{
        f'zoo_hint_{kind}': lambda case: losses.FitNetLoss(*shapes(case, 1, single=True))
        for kind in ('same', 'down', 'up', 'shrink')
    },
    **dict.fromkeys(('zoo_kd', 'zoo_kd_T2'), build_kd),
    'zoo_nst': lambda case: losses.NSTLoss(),
    'zoo_pkt': lambda case: losses.PKTLoss(),
    'zoo_rkd': lambda case: losses.RKDLoss(),
    'zoo_rkd_distance_only': lambda case: losses.RKDLoss(1.0, 0.0),
    'zoo_rkd_angle_only': lambda case: losses.RKDLoss(0.0, 1.0),
    'zoo_sp': lambda case: losses.SPLoss(),
    **dict.fromkeys(('zoo_vid', 'zoo_vid_pool_s', 'zoo_vid_pool_t'), build_vid),
}
# Parts of a loss and their names in the golden files.
PARTS = {
    'zoo_ab': dict(connectors='connector.connectors'),
    'zoo_cc': dict(embed_s='embed_s.linear', embed_t='embed_t.linear'),
    'zoo_ft': dict(translator='translator', paraphraser='paraphraser'),
    'zoo_hi': dict(regressor='regress'),
    'zoo_vi': {'layers.0': 'vid'},
}


def published(name):
    case = golden.load(name)
    loss = LOSSES[name](case)
    for part, prefix in PARTS.get(name[:6], {}).items():
        method_cases.load_parameters(loss.get_submodule(part), case, prefix)
    return case, loss


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', LOSSES)
def test_published_numbers(name, dtype):
    case, loss = published(name)
    method_cases.check(loss, case, dtype, by_layer=name not in ('zoo_ab', 'zoo_fsp'))
    for part, prefix in PARTS.get(name[:6], {}).items():
        if part == 'paraphraser':
            assert all(p.grad is None for p in loss.paraphraser.parameters())
        else:
            method_cases.check_parameters(loss.get_submodule(part), case, prefix)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', ['zoo_ft_pool', 'zoo_ft_p2'])
def test_published_factors_without_networks(name, dtype):
    case = golden.load(name)
    powers = int(case['p1']), int(case['p2'])
    method_cases.check(lambda s, t: factor_loss(s, t, *powers), case, dtype)


def test_published_parts():
    case, loss = published('zoo_cc')
    for side in 'st':
        golden.assert_value(getattr(loss, f'embed_{side}')(case[f'{side}0']), case[f'emb_{side}'])
    case, loss = published('zoo_ft')
    golden.assert_value(loss.translator(case['s0']), case['factor_s'])
    golden.assert_value(loss.paraphraser.encoder(case['t0']), case['factor_t'])
    golden.assert_value(loss.paraphraser(case['t0']), case['reconstruction'])
    golden.assert_value(loss.reconstruction(case['t0']), case['paraphraser_loss'])
