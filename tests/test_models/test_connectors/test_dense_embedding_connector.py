"""DenseEmbeddingConnector is EmbeddingConnector at each location."""

import pytest
import torch

from crd_plugin.models.connectors import DenseEmbeddingConnector, EmbeddingConnector
from crd_plugin.registry import MODELS


@pytest.mark.parametrize('head', ['linear', 'mlp', 'pad'])
def test_every_location_is_embedded_alone(head):
    dense = DenseEmbeddingConnector(embed_dim=8, head=head).double()
    feature = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    assert dense.needs_width
    dense.infer_width((feature,))
    dense.double()
    plain = EmbeddingConnector(6, 8, head).double()
    plain.load_state_dict(dense.state_dict())
    embedding = dense(feature)
    assert embedding.shape == (2, 8, 3, 4)
    expected = torch.stack(
        [torch.stack([plain(feature[..., y, x]) for x in range(4)], -1) for y in range(3)], -2
    )
    torch.testing.assert_close(embedding, expected)
    weight = torch.randn_like(embedding)
    (grad,) = torch.autograd.grad((embedding * weight).sum(), feature)
    (other,) = torch.autograd.grad((expected * weight).sum(), feature)
    torch.testing.assert_close(grad, other)
    tokens = feature.flatten(2).transpose(1, 2)
    torch.testing.assert_close(dense(tokens), embedding.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    'feature, message',
    [
        (torch.ones(2, 6), r'shape \(2, 6\), expected one map .*EmbeddingConnector'),
        ((torch.ones(2, 6, 2, 2),) * 2, r'shape \(2, 6, 2, 2\), \(2, 6, 2, 2\), expected one map'),
        (torch.ones(2, 5, 2, 2), 'has 5 values per sample, EmbeddingConnector has in_channels=6'),
    ],
)
def test_features_that_do_not_fit(feature, message):
    connector = MODELS.build(dict(type='crd_plugin.DenseEmbeddingConnector', in_channels=6))
    with pytest.raises(ValueError, match=message):
        connector(feature)
