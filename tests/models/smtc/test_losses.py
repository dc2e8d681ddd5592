"""The losses of SMTC, against hand calculation, plain sums and scipy."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from models.smtc.losses import (
    instance_consistency,
    match,
    semantic_consistency,
    slots_differ,
    transport,
    transported,
    valid_instances,
)
from tests.models.smtc.in_halves import of_share
from tests.test_many_processes import by_two


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, expected, atol=1e-6):
    torch.testing.assert_close(found, tensor(expected), rtol=0, atol=atol)


COSINES = tensor([[1, 0.95, 0.80], [0.90, 1, 0.97]])
ROWS, COLUMNS = tensor([0.6, 0.4]), tensor([0.2, 0.5, 0.3])


def test_transport_after_three_iterations():
    u, kernel, v = transport(COSINES, ROWS, COLUMNS)
    plan = u[:, None] * kernel * v
    close(plan, [[0.195121, 0.332833, 0.045897], [0.004879, 0.167167, 0.254103]])
    torch.testing.assert_close(plan.sum(dim=0), COLUMNS)
    close(plan.sum(dim=1), [0.573851, 0.426149])


def test_the_transported_target_gives_the_loss_of_the_plan_and_its_gradient():
    student = tensor([[0.8, 0.3], [0.2, 0.7]]).requires_grad_()
    teacher = tensor([[0.9, 0.2, 0.5], [0.1, 0.8, 0.5]])
    u, kernel, v = transport(COSINES, ROWS, COLUMNS)
    plan = u[:, None] * kernel * v
    by_plan = -(plan[None] * teacher[:, None] * (student[:, :, None] + 1e-8).log()).sum()
    target = transported(teacher, COSINES, ROWS, COLUMNS)
    by_target = -(target * (student + 1e-8).log()).sum()
    close(by_plan, 0.847734)
    torch.testing.assert_close(by_target, by_plan)
    gradients = [torch.autograd.grad(x, student)[0] for x in (by_plan, by_target)]
    torch.testing.assert_close(*gradients)


def random_maps(batch, frames, slots, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, slots, tokens, generator=generator, dtype=torch.float64)
    return (2 * logits).softmax(dim=2)


def pair_loss(maps, teacher, features, i, j):
    """The loss of frame i with frame j of one clip, by the plan itself."""
    fi, fj = (x / x.norm(dim=1, keepdim=True) for x in (features[i], features[j]))
    r, q = (x.abs().sum(dim=1) for x in (fi, fj))
    kernel, r, q = torch.exp(-(1 - fi @ fj.T) / 0.05), r / r.sum(), q / q.sum()
    v = torch.ones(len(q), dtype=torch.float64)
    for _ in range(3):
        u = r / (kernel @ v)
        v = q / (kernel.T @ u)
    plan = torch.diag(u) @ kernel @ torch.diag(v)
    cross = -(teacher[j].T @ (maps[i] + 1e-8).log()).T  # (n, m)
    return (plan * cross).sum()


def test_semantic_consistency_is_the_mean_over_ordered_pairs_of_frames():
    maps, teacher = random_maps(2, 4, 3, 5, seed=0), random_maps(2, 4, 3, 5, seed=1)
    features = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    terms = [
        pair_loss(*clip, i, j)
        for clip in zip(maps, teacher, features)
        for i, j in permutations(range(4), 2)
    ]
    torch.testing.assert_close(
        semantic_consistency(maps, teacher, features), torch.stack(terms).mean()
    )


def test_semantic_consistency_teaches_the_student_alone():
    maps, teacher = random_maps(1, 2, 3, 5, seed=0), random_maps(1, 2, 3, 5, seed=1)
    features = torch.randn(1, 2, 5, 7, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (maps, teacher, features)]
    gradients = torch.autograd.grad(semantic_consistency(*leaves), leaves, allow_unused=True)
    assert gradients[0].abs().sum() > 0 and gradients[1:] == (None, None)
    exchanged = semantic_consistency(teacher, maps, features)
    assert not torch.isclose(exchanged, semantic_consistency(maps, teacher, features))


def test_a_pair_of_frames_has_another_loss_when_exchanged():
    clip = random_maps(1, 2, 3, 4, 3)[0], random_maps(1, 2, 3, 4, 4)[0], random_maps(1, 2, 7, 4, 5)
    maps, teacher, features = clip[0], clip[1], clip[2][0].transpose(1, 2)
    losses = []
    for i, j in ((0, 1), (1, 0)):
        unit = F.normalize(features, dim=2)
        r, q = (unit[k].abs().sum(dim=1) / unit[k].abs().sum() for k in (i, j))
        target = transported(teacher[j], unit[i] @ unit[j].T, r, q)
        losses.append(-(target * (maps[i] + 1e-8).log()).sum())
        torch.testing.assert_close(losses[-1], pair_loss(maps, teacher, features, i, j))
    assert not torch.isclose(*losses)


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ([0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.9, 0.8], 1 / 3),
        ([0.3, 0.1, 0.4, 0.2], [0.3, 0.1, 0.4, 0.2], 1.0),
        ([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], 0.0),
    ],
)
def test_slots_differ_is_the_cosine_of_two_maps(first, second, expected):
    maps = tensor([first, second]).expand(2, 3, 2, 4)
    close(slots_differ(maps), expected, atol=1e-7)


def test_slots_differ_leaves_out_a_slot_with_itself():
    maps = random_maps(2, 3, 4, 5, seed=0)
    unit = F.normalize(maps + 1e-8, dim=3)
    pairs = [
        (unit[b, t, s] * unit[b, t, other]).sum()
        for b in range(2)
        for t in range(3)
        for s, other in permutations(range(4), 2)
    ]
    torch.testing.assert_close(slots_differ(maps), torch.stack(pairs).mean())


SIMILARITY = [[0.9, 0.6], [0.2, 0.8]]
ALL, FIRST, NONE = [True, True], [True, False], [False, False]


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize(
    "valid, teacher_valid, expected",
    [(ALL, ALL, -0.8), (ALL, FIRST, -0.4), (FIRST, ALL, -0.8), (NONE, ALL, 0.0)],
)
def test_instances_are_pulled_to_their_match_and_pushed_from_others(
    valid, teacher_valid, expected, exchanged
):
    similarity = tensor(SIMILARITY)
    teacher_valid = torch.tensor(teacher_valid)
    if exchanged:
        similarity, teacher_valid = similarity.flip(1), teacher_valid.flip(0)
    found = instance_consistency(
        similarity[None, None, None, None],
        torch.tensor(valid)[None, None, None],
        teacher_valid[None, None, None],
    )
    close(found, expected)


def test_instance_consistency_is_one_mean_over_all_pairs_of_frames():
    torch.manual_seed(0)
    w, other = (F.normalize(torch.randn(2, 3, 2, 3, 4).double(), dim=4) for _ in range(2))
    valid, teacher_valid = torch.rand(2, 3, 2, 3) > 0.4, torch.rand(2, 3, 2, 3) > 0.4
    total, count = 0.0, 0
    for b in range(2):
        for i in range(3):
            for j in range(3):
                for k in range(2):
                    sim = w[b, i, k] @ other[b, j, k].T
                    for p, q in zip(*linear_sum_assignment(1 - sim.numpy())):
                        if valid[b, i, k, p]:
                            rest = [x for x in range(3) if x != q]
                            total += (sim[p, rest] - 0.5).relu().sum() / 2
                            total -= teacher_valid[b, j, k, q] * sim[p, q]
                            count += 1
    similarity = torch.einsum("bispc,bjsqc->bijspq", w, other)
    found = instance_consistency(similarity, valid, teacher_valid)
    torch.testing.assert_close(found, total / count)


def test_instance_consistency_has_no_gradient_where_nothing_is_valid():
    similarity = torch.rand(1, 2, 2, 1, 3, 3, requires_grad=True)
    nothing = torch.zeros(1, 2, 1, 3, dtype=torch.bool)
    instance_consistency(similarity, nothing, nothing).backward()
    assert torch.equal(similarity.grad, torch.zeros_like(similarity))


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_matching_is_that_of_the_hungarian_method(count):
    similarity = torch.randn(200, count, count, generator=torch.Generator().manual_seed(0))
    expected = [linear_sum_assignment(s.numpy(), maximize=True)[1] for s in similarity]
    assert match(similarity).tolist() == [columns.tolist() for columns in expected]


def test_an_instance_is_valid_if_it_resembles_a_large_semantic():
    maps = tensor([[0.31, 0.29, 0.29, 0.29], [0.31, 0.31, 0.0, 0.0], [0.9, 0.9, 0.9, 0.9]])
    scores = tensor([[0.9, 0.9], [0.51, 0.5], [0.49, 1.0]])
    found = valid_instances(maps, scores, probability=0.3, area=0.25)
    assert found.tolist() == [[False, False], [True, False], [False, True]]


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path):
    result = by_two("-m", "tests.models.smtc.in_halves", tmp_path / "means.pt")
    assert result.returncode == 0, result.stderr
    expected = of_share(0, 1)
    assert expected["instance"] < 0 and len(expected) > 20
    # The instance loss is a ratio, so that halves with other numbers of valid instances have other
    # means than the whole.
    halves = torch.stack([of_share(number, 2)["instance"] for number in range(2)])
    assert not torch.isclose(halves.mean(), expected["instance"], rtol=1e-6)
    torch.testing.assert_close(torch.load(tmp_path / "means.pt"), expected)
