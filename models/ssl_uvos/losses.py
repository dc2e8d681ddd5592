"""The two losses of SSL-UVOS: on the block's output, and on its attention maps."""

from torch import Tensor

POSITIVE_COSINE, NEGATIVE_COSINE = 0.9, 0.1
MARGIN = 1.0
LOG_FLOOR = 1e-10


def semantic_consistency(
    cosines: Tensor, attention: Tensor, positives: int, negatives: int
) -> Tensor:
    """Pulls features of the most attended tokens to the query's, pushes those of the least away.

    Args:
        cosines: of the block's output at Q queries with that at all tokens, (B, Q, T, N).
        attention: of the queries to the tokens, (B, Q, T, N); it only ranks them.
        positives, negatives: how many tokens of each frame count, from the top and the bottom.

    Returns:
        A scalar: mean over all pairs of relu(0.9 - cosine), and of relu(cosine - 0.1).
    """
    near, far = ranked(attention, positives, negatives)
    pull = (POSITIVE_COSINE - cosines.gather(3, near)).relu()
    push = (cosines.gather(3, far) - NEGATIVE_COSINE).relu()
    return pull.mean() + push.mean()


def motion_consistency(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Tokens of one frame that a query attends to most get its attention map over the clip.

    The agreement of a map with the query's is minus their cross-entropy. The queries' maps are
    targets without gradient, and sharp ones weigh more: by a softmax of minus their entropies over
    the queries of a frame.

    Args:
        query: maps of Q queries of each frame, (B, T, Q, M), not negative.
        positive: maps of each query's nearest tokens of its frame, (B, T, Q, P, M).
        negative: maps of its farthest ones, (B, T, Q, R, M).

    Returns:
        A scalar: mean over clips, frames and all P * R pairs of the weighted sum over the queries
        of relu(negative agreement - positive agreement + 1).
    """
    target = distribution(query).detach()
    weights = (target * (target + LOG_FLOOR).log()).sum(dim=-1).softmax(dim=2)  # (B, T, Q)

    def agreement(maps: Tensor) -> Tensor:
        logs = (distribution(maps) + LOG_FLOOR).log()
        return (logs @ target.unsqueeze(-1)).squeeze(-1)

    gaps = agreement(negative)[..., :, None] - agreement(positive)[..., None, :] + MARGIN
    return (weights[..., None, None] * gaps.relu()).sum(dim=2).mean()


def ranked(attention: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Indices along the last axis of the ``first`` largest and the ``last`` smallest values."""
    order = attention.detach().argsort(dim=-1, descending=True)
    return order[..., :first], order[..., order.shape[-1] - last :]


def distribution(maps: Tensor) -> Tensor:
    """Maps that are not negative, scaled to a sum of one over the last axis."""
    return maps / maps.sum(dim=-1, keepdim=True).clamp(min=LOG_FLOOR)
