"""The step that a CUDA graph replays: when it is captured, and that it gives the same numbers.

Without a GPU the graph is one of ``make_fx``: operators on fixed memory, called again without the
Python code that led to them, which is what a CUDA graph is.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from crd_plugin.models import CKTFLoss, CRDLoss, EnsembleCRDLoss
from crd_plugin.models.losses import captured_step, crd_loss
from crd_plugin.models.losses.captured_step import CapturedStep

N, K, D = 60, 20, 8
LABELS = torch.arange(N) % 6
# Two full batches and an odd one per epoch; the third step is the first that is replayed.
BATCHES = [torch.randperm(N, generator=torch.Generator().manual_seed(0))[: 8 * 4 + 3]] * 2
STEPS = [ids for batch in BATCHES for ids in batch.split(8)]


class Graph:
    """In place of a CUDA graph, one of operators; to capture leaves the state as it was."""

    captured = 0

    def __init__(self, function, inputs):
        Graph.captured += 1
        bank, state = function.__self__.bank, torch.get_rng_state()
        before = [buffer.clone() for buffer in bank.buffers()]
        self.inputs = [given.clone() for given in inputs]
        self.graph = make_fx(lambda anchors, ids: function(anchors, ids))(*self.inputs)
        for buffer, value in zip(bank.buffers(), before, strict=True):
            buffer.copy_(value)
        torch.set_rng_state(state)

    def __call__(self, *inputs):
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.graph(*self.inputs)


@pytest.fixture
def graph(monkeypatch):
    monkeypatch.setattr(Graph, 'captured', 0)
    monkeypatch.setattr(captured_step, '_capture', Graph)
    monkeypatch.setattr(crd_loss, 'check_fast_paths', lambda *args: None)
    # On a CPU it looks at numbers.
    monkeypatch.setattr(CRDLoss, '_check_ids', lambda self, ids, given: ids)
    return Graph


def make_loss(**arguments):
    loss = CRDLoss(D, K, num_samples=N, **arguments)
    loss.bank.resize(N, LABELS, seed=0)
    return loss


def train(loss, device='cpu'):
    found = []
    for number, ids in enumerate(STEPS):
        torch.manual_seed(number)  # of features and negatives, as RandomStateHook does
        feats = [F.normalize(torch.randn(len(ids), D), dim=1) for _ in 'st']
        s, t = (feat.to(device).requires_grad_() for feat in feats)
        value = loss(s, t, ids.to(device))
        (3 * value).backward()
        loss.bank.commit()
        rows = loss.bank.student.clone(), loss.bank.teacher.clone()
        found.append([value.detach(), s.grad, t.grad, loss.mi_bound, *rows])
    return found


@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        dict(negatives='shared', exclude='instance'),
        dict(negatives='all', loss_weight=0.5, bank_dtype='bfloat16'),
        dict(objective='infonce'),
    ],
    ids=str,
)
def test_a_captured_step_gives_the_same(graph, arguments):
    plain, captured = train(make_loss(**arguments)), train(make_loss(cuda_graph=True, **arguments))
    torch.testing.assert_close(captured, plain)
    assert graph.captured == 1  # not for the odd batch
    assert not torch.equal(plain[0][0], plain[1][0])


def test_another_setting_or_bank_is_captured_again(graph):
    loss = make_loss(cuda_graph=True)
    plain = make_loss()
    torch.testing.assert_close(train(loss), train(plain))
    for one in (loss, plain):
        one.temperature = 0.2
        one.bank.resize(N, LABELS, seed=1)
    torch.testing.assert_close(train(loss), train(plain))
    assert graph.captured == 2


def test_a_forgotten_commit_is_noticed_before_the_rows_change(graph):
    loss = make_loss(cuda_graph=True)
    train(loss)
    s, t = (F.normalize(torch.randn(8, D), dim=1) for _ in 'st')
    loss(s, t, STEPS[0])
    rows = loss.bank.student.clone()
    with pytest.raises(RuntimeError, match='never committed'):
        loss(s, t, STEPS[0])
    assert torch.equal(loss.bank.student, rows)


def test_evaluation_writes_nothing(graph):
    loss = make_loss(cuda_graph=True)
    train(loss)
    rows = loss.bank.student.clone()
    loss.eval()(*(F.normalize(torch.randn(8, D), dim=1) for _ in 'st'), STEPS[0])
    assert torch.equal(loss.bank.student, rows) and loss.bank.pending is None


def test_copies_have_no_graph(graph):
    loss = make_loss(cuda_graph=True)
    train(loss)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert loss._captured._graphs and not twin._captured._graphs


def test_a_shape_is_captured_when_it_comes_again(monkeypatch):
    made = []

    def capture(function, inputs):
        made.append(len(inputs[0]))
        return function

    monkeypatch.setattr(captured_step, '_capture', capture)
    step = CapturedStep()
    for size in (4, 4, 4, 2, 4, 2, 2):
        (result,) = step(lambda x: (x + 1,), 'a', torch.zeros(size))
        assert len(result) == size
    assert made == [4, 2]
    step(lambda x: (x,), 'b', torch.zeros(4))
    assert made == [4, 2]  # other settings: not before the second time


@pytest.mark.parametrize('given', ['negatives', 'contrast_idx'])
def test_given_negatives_are_refused(graph, given):
    loss = make_loss(cuda_graph=True)
    values = dict(negatives=loss.draw(STEPS[0]), contrast_idx=torch.zeros(8, 1 + K).long())
    feats = (F.normalize(torch.randn(8, D), dim=1) for _ in 'st')
    with pytest.raises(ValueError, match=r'negatives or contrast_idx were given; leave cuda_graph'):
        loss(*feats, STEPS[0], **{given: values[given]})


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(kernel='cuda'), r"kernel is 'cuda', expected one of \('torch', 'triton'\)"),
        (dict(kernel='triton', objective='infonce'), "has the objective 'nce' only"),
        (dict(cuda_graph=True, sharded=True), 'sharded=True splits nothing'),
        (dict(cuda_graph=True, negatives='batch'), "cuda_graph given, but negatives='batch'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CRDLoss(D, **arguments)


def test_without_a_gpu_or_with_several_ranks_it_is_refused(monkeypatch):
    loss = make_loss(cuda_graph=True)
    feats = [F.normalize(torch.randn(8, D), dim=1) for _ in 'st']
    with pytest.raises(ValueError, match='cuda_graph=True needs a GPU, the memory bank is on cpu'):
        loss(*feats, STEPS[0])
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    check, device = crd_loss.check_fast_paths, torch.device('cuda')
    checks = 'crd_plugin.models.losses.crd_checks.'
    monkeypatch.setattr(f'{checks}find_spec', lambda name: None)
    with pytest.raises(ValueError, match='the package triton, which is not installed'):
        check('triton', False, device)
    monkeypatch.setattr(f'{checks}find_spec', lambda name: name)
    with pytest.raises(ValueError, match="kernel='triton' needs a GPU"):
        check('triton', False, torch.device('cpu'))
    check('triton', True, device)
    monkeypatch.setattr(f'{checks}get_world_size', lambda: 2)
    with pytest.raises(ValueError, match='one process, this run has 2'):
        check('torch', True, device)


@pytest.mark.parametrize('kind', [CKTFLoss, EnsembleCRDLoss])
def test_losses_that_share_negatives_refuse_it(kind):
    with pytest.raises(ValueError, match=f'those of {kind.__name__} share theirs; leave it out'):
        kind(D, cuda_graph=True)


@pytest.mark.cuda
@pytest.mark.parametrize('kernel', ['torch', 'triton'])
@pytest.mark.parametrize('negatives', ['sampled', 'shared', 'all'])
def test_the_same_on_a_gpu(negatives, kernel):
    arguments = dict(negatives=negatives, kernel=kernel)
    losses = [make_loss(cuda_graph=graph, **arguments).cuda() for graph in (False, True)]
    plain, captured = (train(loss, 'cuda') for loss in losses)
    torch.testing.assert_close(captured, plain)
    assert len(losses[1]._captured._graphs) == 1
