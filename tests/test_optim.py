import torch
from conftest import make_model

from optim import Muon, make_optimizers


def test_muon_takes_the_matrices_inside_blocks_and_adamw_the_rest_at_0_6_of_its_rate():
    model = make_model()
    optimizers = make_optimizers(model, 1e-3)
    muon, adamw = ({id(p) for p in o.param_groups[0]["params"]} for o in optimizers)
    for name, parameter in model.named_parameters():
        assert (id(parameter) in muon) == (".blocks." in name and parameter.ndim == 2), name
        assert (id(parameter) in muon) != (id(parameter) in adamw), name
    assert [o.param_groups[0]["lr"] for o in optimizers] == [1e-3, 0.6 * 1e-3]


def test_muon_is_torchs_own_but_in_float32():
    """That one computes in bfloat16, which is 1 % off."""
    begun = [torch.randn(shape) for shape in ((24, 96), (96, 24), (32, 32))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in begun] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.01),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for p, q in zip(ours, theirs):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for start, p, q in zip(begun, ours, theirs):
        assert (p - q).norm() < 0.03 * (q - start).norm()


def test_muon_decays_weights_and_leaves_those_without_a_gradient_alone():
    """A reference trains no encoder: it must keep the weights that it was given."""
    still, decayed = (torch.nn.Parameter(torch.randn(8, 8)) for _ in range(2))
    before = [p.detach().clone() for p in (still, decayed)]
    decayed.grad = torch.zeros(8, 8)
    Muon([still, decayed], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, before[0])
    torch.testing.assert_close(decayed.data, 0.95 * before[1])
