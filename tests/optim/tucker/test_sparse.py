"""The sparse branch (TensorGRaD)."""

import math

import pytest
import torch
from tensor_steps import KINDS, SHAPE, build, gradients, train, weight_of

from featherweight.optim import AdamW, TensorGRaD
from featherweight.optim.step.tensor import ProjectedTensor
from featherweight.optim.tucker.sparse import scattered_entries


def test_sparse_branch_over_everything_is_adamw():
    one, two = weight_of(), weight_of()
    grads = gradients(4)  # no refresh inside, which would begin the moments anew
    optimizer = build(one, rank=1, scale=1e-30, sparse_ratio=0.999999, sparse_order="sparse_first")
    assert optimizer.layouts[one].plan.sparse_numel == one.numel()
    train(optimizer, one, grads)
    train(AdamW([two], lr=1e-2, weight_decay=0.0), two, grads)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("select", ["topk", "randk", "probability"])
@pytest.mark.parametrize("order", ["low_rank_first", "sparse_first"])
def test_sparse_branch_adds_chosen_entries_and_leaves_the_gradient_alone(select, order):
    weight, (grad,) = weight_of(), gradients(1)
    before = weight.detach().clone()
    optimizer = TensorGRaD(
        [weight],
        lr=1.0,
        min_numel=1,
        rule="sgd",
        betas=(0.0, 0.0),
        rank=0.3,
        sparse_ratio=0.1,
        sparse_select=select,
        sparse_order=order,
    )
    weight.grad = grad.clone()
    optimizer.step()
    assert torch.equal(weight.grad, grad)
    tensor = ProjectedTensor(optimizer.layouts[weight], optimizer.state[weight], optimizer.param_groups[0], (0, 1))
    index = tensor._sparse_index(torch.device("cpu"))
    assert len(index) == len(index.unique()) == math.ceil(0.1 * grad.numel())
    subspace, mask = tensor.subspace(), torch.zeros(grad.numel(), dtype=torch.bool)
    mask[index] = True
    mask = mask.view(SHAPE)
    if order == "sparse_first":
        expected = torch.where(mask, grad, 0) + subspace.project_back(subspace.project(torch.where(mask, 0, grad)))
        reference = grad
    else:
        back = subspace.project_back(subspace.project(grad))
        expected, reference = back + torch.where(mask, grad - back, 0), grad - back
    torch.testing.assert_close(before - weight.detach(), expected, rtol=1e-10, atol=1e-10)
    if select == "topk":
        assert float(reference.abs()[mask].min()) >= float(reference.abs()[~mask].max())
    assert ("sparse_index" in optimizer.state[weight]) == (select != "randk")


@pytest.mark.parametrize("residual", [None, "equalized"])
@pytest.mark.parametrize("order", ["low_rank_first", "sparse_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_stands_beside_every_kind_of_core(kind, order, residual):
    moved = []
    for sparse_ratio in (0.0, 0.1):
        weight, (grad,) = weight_of(), gradients(1)
        options = {"proj_type": kind, "sparse_order": order, "residual": residual, "sparse_ratio": sparse_ratio}
        optimizer = build(weight, **options)
        train(optimizer, weight, [grad])
        moved.append(weight.detach())
    index = optimizer.state[weight]["sparse_index"].long()
    assert ((moved[0] - moved[1]).view(-1)[index] != 0).all()


def test_scattered_entries_are_different_and_cost_no_permutation():
    for numel, count in ((10, 10), (97, 50), (2**31 - 1, 1000), (1, 1), (360, 180)):
        chosen = scattered_entries(numel, count, 0x1234_5678_9ABC_DEF0)
        assert len(chosen.unique()) == count and 0 <= int(chosen.min()) and int(chosen.max()) < numel


# ---- storage
