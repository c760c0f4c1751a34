"""Foundation models of timm as teachers: files as they are published, features, images."""

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from safetensors.torch import save_file

from crd_plugin.compat import CheckpointError
from crd_plugin.fragments import join
from crd_plugin.models.algorithms.checkpoints import load_pretrained
from crd_plugin.registry import MODELS
from tests import small_runs
from tests.config_files import fragment

WIDTH, HEADS = 48, 3
VIT = dict(depth=2, embed_dim=WIDTH, num_heads=HEADS)
CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 16))
DINOV2, DINOV3 = 'vit_small_patch14_dinov2.lvd142m', 'vit_small_patch16_dinov3.lvd1689m'
CLIP, SIGLIP = 'vit_base_patch16_clip_quickgelu_224.openai', 'vit_base_patch16_siglip_224.v2_webli'
SWIN, CONV = 'swin_tiny_patch4_window7_224.ms_in1k', 'convnext_tiny.fb_in22k_ft_in1k'
# Name, patch, its layers made small, and the poolings that it has.
FAMILIES = {
    DINOV2: (28, VIT, ('cls', 'mean')),
    'vit_small_patch14_reg4_dinov2.lvd142m': (28, VIT, ('cls', 'mean')),
    DINOV3: (32, VIT, ('cls', 'mean')),
    CLIP: (32, VIT, ('cls', 'mean')),
    SIGLIP: (32, VIT, ('mean',)),
    'vit_small_patch16_224.augreg_in21k_ft_in1k': (32, VIT, ('cls', 'mean')),
    'eva02_base_patch14_224.mim_in22k': (28, VIT, ('cls', 'mean')),
    SWIN: (56, dict(depths=(1, 1), embed_dim=24, num_heads=(2, 2)), ('mean',)),
    CONV: (64, CONVNEXT, ('mean',)),
    'convnext_tiny.dinov3_lvd1689m': (64, CONVNEXT, ('mean',)),
}


def build(name=DINOV2, **kwargs):
    size, small, _ = FAMILIES.get(name, (None, {}, ()))
    kwargs = dict(small, size=size) | kwargs
    return MODELS.build(dict(type='crd_plugin.TimmTeacher', model_name=name, **kwargs)).eval()


def pair(name=DINOV2, **kwargs):
    size, small, _ = FAMILIES[name]
    teacher = dict(type='crd_plugin.TimmTeacher', model_name=name, size=size, **small)
    student = small_runs.net(6)
    student['head']['loss'] = dict(type='mmpretrain.CrossEntropyLoss')
    kwargs = dict(architecture=student, teacher=teacher, input_shape=(3, 8, 8)) | kwargs
    return kwargs


def distillation(name=DINOV2, method='rrd', **kwargs):
    own = fragment(method)
    for loss in own.distiller.distill_losses.values():
        if loss.type != 'mmrazor.KLDivergence' and loss.type != 'crd_plugin.RRDLoss':
            loss.update(num_samples=20, num_negatives=8)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(join(pair(name, **kwargs), own))


def randomised(shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def block(names, width=WIDTH):
    """Shapes of a block of a transformer, under the names of its parts."""
    norm1, qkv, bias, out, norm2, up, down = names
    shapes = {qkv: (3 * width, width), bias: (3 * width,)}
    for name, rows, columns in ((out, 1, 1), (up, 4, 1), (down, 1, 4)):
        shapes |= {
            f'{name}.weight': (rows * width, columns * width),
            f'{name}.bias': (rows * width,),
        }
    return shapes | {f'{n}.{part}': (width,) for n in (norm1, norm2) for part in ('weight', 'bias')}


DINO_BLOCK = 'norm1 attn.qkv.weight attn.qkv.bias attn.proj norm2 mlp.fc1 mlp.fc2'.split()
CLIP_BLOCK = (
    'ln_1 attn.in_proj_weight attn.in_proj_bias attn.out_proj ln_2 mlp.c_fc mlp.c_proj'.split()
)


def dinov2_file(grid):
    """Names of facebookresearch/dinov2, ``dinov2_vits14_pretrain.pth``, at a small width."""
    shapes = dict(cls_token=(1, 1, WIDTH), pos_embed=(1, 1 + grid**2, WIDTH), mask_token=(1, WIDTH))
    shapes |= {'patch_embed.proj.weight': (WIDTH, 3, 14, 14), 'patch_embed.proj.bias': (WIDTH,)}
    for i in range(2):
        own = block(DINO_BLOCK) | {f'ls{j}.gamma': (WIDTH,) for j in (1, 2)}
        shapes |= {f'blocks.{i}.{name}': shape for name, shape in own.items()}
    return randomised(shapes | {'norm.weight': (WIDTH,), 'norm.bias': (WIDTH,)})


def dinov3_file():
    """Names of facebookresearch/dinov3, ``dinov3_vits16_pretrain_lvd1689m``."""
    weights = dinov2_file(2)
    del weights['pos_embed']
    weights['patch_embed.proj.weight'] = torch.randn(WIDTH, 3, 16, 16)
    weights |= {'storage_tokens': torch.randn(1, 4, WIDTH), 'rope_embed.periods': torch.ones(4)}
    for i in range(2):
        weights[f'blocks.{i}.attn.qkv.bias_mask'] = torch.ones(3 * WIDTH)
    return weights


def clip_file(grid):
    """Names of openai/CLIP, ``ViT-B-16.pt``, with a part of its text tower."""
    shapes = dict(
        class_embedding=(WIDTH,), positional_embedding=(1 + grid**2, WIDTH), proj=(WIDTH, 32)
    )
    shapes['conv1.weight'] = (WIDTH, 3, 16, 16)
    for name in ('ln_pre', 'ln_post'):
        shapes |= {f'{name}.weight': (WIDTH,), f'{name}.bias': (WIDTH,)}
    for i in range(2):
        shapes |= {f'transformer.resblocks.{i}.{n}': s for n, s in block(CLIP_BLOCK).items()}
    text = {f'transformer.resblocks.0.{n}': s for n, s in block(CLIP_BLOCK, 32).items()}
    text |= {'token_embedding.weight': (10, 32), 'positional_embedding': (7, 32)}
    text |= {'ln_final.weight': (32,), 'text_projection': (32, 32), 'logit_scale': ()}
    weights = randomised({f'visual.{name}': shape for name, shape in shapes.items()} | text)
    return weights | {'input_resolution': torch.tensor(224), 'context_length': torch.tensor(77)}


# Files of the authors, and where tensors of them are in timm's network.
PUBLISHED = {
    DINOV2: (dinov2_file(2), {'blocks.1.ls2.gamma': 'blocks.1.ls2.gamma'}),
    DINOV3: (
        dinov3_file(),
        {'storage_tokens': 'reg_token', 'blocks.1.ls2.gamma': 'blocks.1.gamma_2'},
    ),
    CLIP: (
        clip_file(2),
        {
            'visual.ln_pre.weight': 'norm_pre.weight',
            'visual.transformer.resblocks.1.attn.in_proj_weight': 'blocks.1.attn.qkv.weight',
        },
    ),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_file_of_the_authors(name, tmp_path, capsys):
    """What timm renames fits as a whole; it prints nothing."""
    weights, places = PUBLISHED[name]
    torch.save(weights, tmp_path / 'published.pth')
    model = build(name)
    load_pretrained(model, str(tmp_path / 'published.pth'), 'teacher')
    own = model.backbone.state_dict()
    assert all(torch.equal(own[ours], weights[theirs]) for theirs, ours in places.items())
    assert capsys.readouterr().out == ''


def test_positions_of_a_published_size_are_resampled(tmp_path):
    torch.save(dinov2_file(37), tmp_path / 'dinov2.pth')
    model = build(DINOV2, size=42)
    load_pretrained(model, str(tmp_path / 'dinov2.pth'), 'teacher')
    assert model.backbone.pos_embed.shape == (1, 1 + 9, WIDTH)
    assert model(torch.randn(1, 3, 42, 42)).shape == (1, WIDTH)


def test_image_tower_of_openclip(tmp_path):
    """SigLIP there is a trunk of timm beside the text tower."""
    published = timm.create_model(SIGLIP, img_size=32, **VIT).state_dict()
    text = {'text.token_embedding.weight': torch.zeros(3, 4), 'logit_scale': torch.tensor(1.0)}
    file = {f'visual.trunk.{name}': value for name, value in published.items()} | text
    torch.save(dict(state_dict=file), tmp_path / 'open_clip.pth')
    for pool in (None, 'mean'):
        model = build(SIGLIP, pool=pool)
        load_pretrained(model, str(tmp_path / 'open_clip.pth'), 'teacher')
        own = model.backbone.state_dict()
        assert ('attn_pool.q.weight' in own) == (pool is None)
        assert all(torch.equal(value, published[name]) for name, value in own.items())


@pytest.mark.parametrize('name', FAMILIES)
def test_feature_and_images_of_each_family(name, tmp_path):
    """The file of timm with its classifier; a teacher that gives the one feature in front of it."""
    size, small, pools = FAMILIES[name]
    published = timm.create_model(name, **small).eval()
    save_file(
        {key: value.contiguous() for key, value in published.state_dict().items()},
        tmp_path / 'model.safetensors',
    )
    known = timm.get_pretrained_cfg(name)
    for pool in (None, *pools):
        model = build(name, pool=pool)
        load_pretrained(model, str(tmp_path / 'model.safetensors'), 'teacher')
        own = model.backbone.state_dict()
        if 'pos_embed' not in own:  # not resampled
            given = published.state_dict()
            assert all(torch.equal(value, given[key]) for key, value in own.items())
        assert model.data_preprocessor.view.view.size == size
        for part in ('mean', 'std'):
            wanted = 255 * torch.tensor(getattr(known, part)).view(-1, 1, 1)
            torch.testing.assert_close(
                getattr(model.data_preprocessor.view, part), wanted, atol=1e-3, rtol=0
            )
        tokens = model.backbone.forward_features(images := torch.randn(2, 3, size, size))
        if pool == 'cls':
            expected = tokens[:, 0]
        elif pool == 'mean' and tokens.dim() == 3:
            expected = tokens[:, model.backbone.num_prefix_tokens :].mean(1)
        elif name == SWIN:
            expected = tokens.mean((1, 2))
        else:  # as timm has it
            expected = model.backbone.forward_head(tokens, pre_logits=True)
        if pool and name.startswith('eva'):  # of EVA the norm comes behind the pooling
            expected = model.backbone.fc_norm(expected)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    if 'cls' not in pools:
        with pytest.raises(ValueError, match=f"pool is 'cls', but {name} has no class token; take"):
            build(name, pool='cls')


def test_the_teacher_sees_its_own_size_and_normalisation():
    """Whatever the student sees, in the same order of channels."""
    model = distillation(
        SIGLIP, data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3, type='ClsDataPreprocessor')
    )
    raw = torch.randint(0, 256, (2, 3, 8, 8)).float()
    seen = {}
    model.teacher.backbone.register_forward_pre_hook(lambda m, args: seen.update(t=args[0]))
    model.student.backbone.register_forward_pre_hook(lambda m, args: seen.update(s=args[0]))
    samples = small_runs.batch(2)[1]
    model((raw - 120) / 60, samples, mode='loss')
    large = F.interpolate(raw, (32, 32), mode='bilinear', antialias=True)
    torch.testing.assert_close(seen['t'], (large - 127.5) / 127.5, rtol=1e-4, atol=1e-4)
    assert seen['s'].shape == (2, 3, 8, 8)


def test_cktf_needs_stages_but_no_classifier():
    """A ResNet without one, as self-supervised teachers are."""
    net = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
    )
    net['backbone']['out_indices'] = (0, 1, 2, 3)
    head = dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=64)
    student = dict(net, head=dict(head, loss=dict(type='mmpretrain.CrossEntropyLoss')))
    networks = dict(architecture=student, teacher=net, input_shape=(3, 64, 64))
    model = distillation(DINOV2, 'cktf_unlabeled', **networks)
    images, samples = small_runs.batch(4, 64)
    losses = model(images, samples, mode='loss')
    assert list(losses) == ['distill.loss_cktf']
    losses['distill.loss_cktf'].backward()
    assert model.student.backbone.conv1.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match='VisionTransformer has no module .relu.'):
        distillation(DINOV2, 'cktf_unlabeled', architecture=student)


def test_classifier_of_a_published_network(tmp_path):
    """Its logits for KD, which is refused without."""
    with pytest.raises(ValueError, match="TimmTeacher has neither a 'head' .* take a method that"):
        distillation(DINOV2, 'kd')
    size, small, _ = FAMILIES[CONV]
    published = timm.create_model(CONV, num_classes=10, **small).eval()
    torch.save(dict(model=published.state_dict()), tmp_path / 'convnext.pth')
    teacher = pair(CONV)['teacher'] | dict(num_classes=10)
    model = distillation(CONV, 'kd', teacher=teacher, teacher_ckpt=str(tmp_path / 'convnext.pth'))
    images, samples = small_runs.batch()
    model(images, samples, mode='loss')
    expected = published(model.teacher_view(images))
    torch.testing.assert_close(model.distiller.get_record('logits', False), expected)
    with pytest.raises(ValueError, match="pool='mean' with num_classes=10: a classifier has its"):
        build(CONV, pool='mean', num_classes=10)


def test_checkpoint_of_a_run_goes_back_in(tmp_path):
    """Names are those of this class then; size and pooling those of the published weights."""
    model = build(DINOV3, size=None)
    assert model.data_preprocessor.view.view.size == 256 and model.backbone.global_pool == 'avg'
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    other = build(DINOV3)
    load_pretrained(other, str(tmp_path / 'own.pth'), 'teacher')
    assert torch.equal(other.backbone.reg_token, model.backbone.reg_token)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(model_name='vit_smal_patch14_dinov2'), 'the nearest are .*vit_small_patch14_dinov2'),
        (dict(model_name='?'), r'has no model_name .\?.; see timm.list_pretrained'),
        (dict(pool='token'), "pool is 'token', expected one of .None, 'cls', 'mean'"),
        (
            dict(size=30),
            'size is 30, but .* into patches of 14 pixels; take a multiple, such as 28',
        ),
        (
            dict(model_name='vit_base_patch16_clip_224.openai'),
            "with QuickGELU; take 'vit_base_patch16_clip_quickgelu_224.openai'",
        ),
        (dict(size=0), 'size is 0, expected at least 1'),
        (
            dict(model_name='resnet50_clip.openai', pool='mean'),
            "pool is 'mean', which resnet50_clip",
        ),
        (dict(model_name='test_vit4', pretrained=True), 'timm has no weights of test_vit4'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(arguments.pop('model_name', DINOV2), **arguments)


def test_file_of_another_network(tmp_path):
    torch.save(clip_file(2), tmp_path / 'clip.pth')
    with pytest.raises(ValueError, match=r'clip.pth does not fit the teacher: missing backbone\.'):
        load_pretrained(build(), str(tmp_path / 'clip.pth'), 'teacher')
    torch.save(dict(weight=torch.zeros(2, 2)), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth cannot be given the names of convnext_tiny'):
        load_pretrained(build(CONV), str(tmp_path / 'other.pth'), 'teacher')
    (tmp_path / 'cut.safetensors').write_bytes(b'\x08\0\0\0')
    with pytest.raises(CheckpointError, match=r'cut.safetensors \(4 bytes\) is truncated'):
        load_pretrained(build(), str(tmp_path / 'cut.safetensors'), 'teacher')


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def fail(*args, **kwargs):
        raise FileNotFoundError('no route to host')

    monkeypatch.setattr(timm, 'create_model', fail)
    with pytest.raises(CheckpointError, match='cannot be downloaded .no route to host.; download'):
        build(pretrained=True)


def feature_of(model, images, autocast=False):
    with torch.autocast('cpu', torch.float16, enabled=autocast):
        model.run_teacher(images)
    return model.distiller.get_record('feat', False)


def test_bfloat16():
    """Features within the rounding of the type, half the bytes, the same names in a checkpoint."""
    torch.manual_seed(0)
    full, half = (distillation(DINOV3, teacher_dtype=dtype) for dtype in (None, 'bfloat16'))
    half.load_state_dict(full.state_dict())
    images = small_runs.batch()[0]
    exact, rounded = feature_of(full, images), feature_of(half, images)
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert torch.equal(full.teacher_view(images), half.teacher_view(images))
    # Eight bits of mantissa; features have a standard deviation of 1.
    torch.testing.assert_close(exact, rounded, rtol=0, atol=8 * 2**-8)
    assert torch.equal(feature_of(half, images, autocast=True), rounded)
    one, two = (sum(p.nbytes for p in model.teacher.parameters()) for model in (full, half))
    assert one == 2 * two > 0
    assert {p.dtype for p in half.student.parameters()} == {torch.float32}
    assert half.state_dict().keys() == full.state_dict().keys()
    full.load_state_dict(half.state_dict())
    with pytest.raises(
        ValueError, match="teacher_dtype is 'fp16', expected one of .None, 'bfloat16'"
    ):
        distillation(teacher_dtype='fp16')


def test_bfloat16_of_an_ensemble():
    teachers = [pair(name)['teacher'] for name in (DINOV2, SIGLIP)]
    model = distillation(teacher=teachers, method='crd_ensemble', teacher_dtype='bfloat16')
    model.run_teacher(small_runs.batch()[0])
    records = model.distiller.get_record('feat', False, record_idx='all')
    assert [record.dtype for record in records] == 2 * [torch.float32]
    assert {p.dtype for p in model.teacher.parameters()} == {torch.bfloat16}
