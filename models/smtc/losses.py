"""The three losses of SMTC: slots differ, semantics agree over time, and so do instances.

Symbols: B clips, T frames, S semantic slots, P instances of each, N tokens of a frame. Maps are
probabilities over the S slots.
"""

from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-8  # of probabilities
TEMPERATURE, HALF_STEPS = 0.05, 3  # of the optimal transport
MARGIN = 0.5  # of similarities of different instances
SCORE = 0.5  # an instance is valid above this cosine with its semantic


def slots_differ(maps: Tensor) -> Tensor:
    """Mean over frames and pairs s != s' of the inner product of two maps of unit length.

    Args:
        maps: (B, T, S, N).

    Returns:
        A scalar in [0, 1].
    """
    unit = F.normalize(maps + FLOOR, dim=3)
    products = unit @ unit.transpose(2, 3)
    slots = maps.shape[2]
    others = products.sum(dim=(2, 3)) - products.diagonal(dim1=2, dim2=3).sum(dim=2)
    return others.mean() / (slots * (slots - 1))


def semantic_consistency(maps: Tensor, teacher_maps: Tensor, features: Tensor) -> Tensor:
    """Cross-entropy of a frame's maps with the teacher's maps of another frame, transported to it.

    loss_ij = - sum_sn Pt[s, n] log P_i[s, n]. The target Pt has the teacher's maps P'_j where the
    optimal transport of its features brings them (:func:`transported`).

    Args:
        maps: P (B, T, S, N), of the student.
        teacher_maps: P' (B, T, S, N).
        features: keys of the teacher, (B, T, N, C).

    Returns:
        A scalar, in nats: the mean over clips and ordered pairs i != j of their frames.
    """
    unit = F.normalize(features.detach(), dim=3)
    weights = unit.abs().sum(dim=3)
    weights = weights / weights.sum(dim=2, keepdim=True)
    logs = (maps + FLOOR).log()
    terms = []
    for distance in range(1, maps.shape[1]):  # j = i + distance, in a circle
        other, of_other, target = (
            x.roll(-distance, dims=1) for x in (unit, weights, teacher_maps.detach())
        )
        target = transported(target, unit @ other.transpose(2, 3), weights, of_other)
        terms.append(-(target * logs).sum(dim=(2, 3)).mean())
    return torch.stack(terms).mean()


def transported(maps: Tensor, cosines: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps of one frame brought to another by the optimal transport between their tokens.

    Pt[s, n] = sum_m Pi[n, m] P'[s, m] with the plan Pi = u K v, which is never formed.

    Args:
        maps: P' (..., S, M).
        cosines: of the tokens of both frames, (..., N, M).
        rows, columns: the plan's wanted sums, (..., N) and (..., M).

    Returns:
        (..., S, N).
    """
    u, kernel, v = transport(cosines, rows, columns)
    return (maps * v.unsqueeze(-2)) @ kernel.transpose(-2, -1) * u.unsqueeze(-2)


def transport(cosines: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sinkhorn's iterations for the cost 1 - cosine: u, K and v of the plan u[n] K[n, m] v[m].

    The sums of the plan's columns are ``columns``; those of its rows are nearly ``rows``.
    """
    kernel = ((cosines - 1) / TEMPERATURE).exp()
    v = torch.ones_like(columns)
    for _ in range(HALF_STEPS):
        u = rows / (kernel @ v.unsqueeze(-1)).squeeze(-1)
        v = columns / (u.unsqueeze(-2) @ kernel).squeeze(-2)
    return u, kernel, v


def instance_consistency(similarity: Tensor, valid: Tensor, teacher_valid: Tensor) -> Tensor:
    """Pulls each instance to the teacher's that it is matched with, and pushes it from the others.

    l[p] = valid[p] (sum_{q != pi(p)} relu(Sim[p, q] - 0.5) / (P - 1)
    - teacher_valid[pi(p)] Sim[p, pi(p)]), where pi is the best one-to-one matching.

    Args:
        similarity: Sim (B, T, T, S, P, P): of an instance of frame i with the teacher's of frame j.
        valid, teacher_valid: bool (B, T, S, P); see :func:`valid_instances`.

    Returns:
        A scalar in [-1, 1.5]: the mean over all pairs of frames, i = j among them, and all valid
        instances; 0 if there are none. Several processes together have one mean.
    """
    frames, instances = similarity.shape[1], similarity.shape[-1]
    matching = match(similarity).unsqueeze(-1)
    matched = similarity.gather(-1, matching).squeeze(-1)
    # The matched one is taken out exactly, not subtracted.
    pushed = (similarity - MARGIN).relu().scatter(-1, matching, 0.0).sum(dim=-1)
    pulled = teacher_valid[:, None, :, :, None].take_along_dim(matching, dim=-1)
    terms = pushed / max(1, instances - 1) - pulled.squeeze(-1) * matched
    total = (valid[:, :, None] * terms).sum()
    return total / _mean_over_processes(frames * valid.sum().to(total)).clamp(min=1e-6)


@torch.no_grad()
def match(similarity: Tensor) -> Tensor:
    """One-to-one matching of largest sum for (..., P, P): the column of each row, (..., P).

    All P! permutations are compared, which is exact, and for up to six instances fast.
    """
    count = similarity.shape[-1]
    choices = torch.tensor(list(permutations(range(count))))
    choices = choices.to(similarity.device, non_blocking=True)  # else the host waits for a GPU
    rows = torch.arange(count, device=similarity.device)
    return choices[similarity[..., rows, choices].sum(dim=-1).argmax(dim=-1)]


@torch.no_grad()
def valid_instances(maps: Tensor, scores: Tensor, probability: float, area: float) -> Tensor:
    """Instances that resemble a semantic which is large in the frame, bool (..., S, P).

    Args:
        maps: (..., S, N).
        scores: cosines of instances with their semantic, (..., S, P).
        probability: a token belongs to a semantic above this.
        area: share of the frame's tokens that a semantic must exceed.
    """
    large = (maps > probability).to(maps.dtype).mean(dim=-1) > area
    return (scores > SCORE) & large.unsqueeze(-1)


def _mean_over_processes(count: Tensor) -> Tensor:
    """Processes average their gradients, so each divides by the mean of their counts."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count
