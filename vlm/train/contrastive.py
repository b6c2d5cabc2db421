"""Contrastive batches: features of all processes together, and gradients of batches larger than memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.nn import functional as differentiable


def gather(features: Tensor) -> Tensor:
    """The features of all processes, `[processes * rows, dim]`, in the order of their ranks.

    Gradients flow back to the process a row came from. If every process then computes the loss over all rows, the mean
    of the processes' gradients, which data-parallel training takes, is the gradient of one big batch.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return features
    return torch.cat(differentiable.all_gather(features.contiguous()))


def cached_backward(
    encode: Callable[..., Sequence[Tensor]],
    batch: Sequence[Tensor],
    loss: Callable[..., Tensor],
    chunks: int,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor:
    """The gradient of a large batch with the memory of a small one (GradCache, Gao et al., 2021, arXiv:2101.06983).

    Features are computed chunk by chunk without a graph, the loss gives the gradient of each feature, and a second pass
    carries it on into the weights. Random numbers, as in dropout, are the same in both passes.

    Args:
        encode: a chunk of the batch's tensors to their features; several kinds, one tensor a kind.
        batch: tensors whose rows are divided evenly among the chunks.
        loss: all features, one tensor a kind, to the loss; it may have parameters of its own.
        chunks: how many.
        backward: what carries a scalar back, for scaled gradients.

    Returns:
        The loss, detached; gradients are added to `.grad`.
    """
    parts = list(zip(*(tensor.chunk(chunks) for tensor in batch), strict=True))
    states, found = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_states())
            found.append(encode(*part))
    features = [torch.cat(kind).requires_grad_() for kind in zip(*found, strict=True)]
    value = loss(*features)
    backward(value)
    gradients = [feature.grad for feature in features]
    sizes = [[len(tensor) for tensor in kind] for kind in zip(*found, strict=True)]
    shares = [gradient.split(size) for gradient, size in zip(gradients, sizes, strict=True) if gradient is not None]
    now = _random_states()
    for part, state, share in zip(parts, states, zip(*shares, strict=True), strict=True):
        _set_random_states(state)
        # the product's gradient in the weights is the loss's
        again = sum(((f * g).sum() for f, g in zip(encode(*part), share, strict=True)), torch.zeros(()))
        again.backward()
    _set_random_states(now)
    return value.detach()


def _random_states() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_states(states: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
