"""What training minimises."""

import torch
from torch import Tensor, nn


def label_smoothed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    *,
    allowed: Tensor | None = None,
    weights: Tensor | None = None,
    drop_worst: float = 0.0,
) -> Tensor:
    """Mean loss of the labelled words.

    OFA spreads `smoothing` over the other V - 1 entries, torch over all V; a factor turns one into the other.

    Args:
        logits: `[words, vocab]`.
        labels: `int64[words]`.
        smoothing: probability taken from the label.
        allowed: `bool[words, vocab]`, True at the entries that compete, the label among them; None: all do.
        weights: of each word's loss, `float32[words]`; None: 1. The mean is over words, whatever they weigh.
        drop_worst: share of the words that is left out: those with the largest loss, which may be labelled wrongly.
    """
    logits = at_least_float32(logits)
    if allowed is None:
        vocab = logits.shape[-1]
        reduction = "mean" if weights is None and not drop_worst else "none"
        losses = nn.functional.cross_entropy(
            logits, labels, reduction=reduction, label_smoothing=smoothing * vocab / (vocab - 1)
        )
    else:
        log_probs = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        nll = -log_probs.gather(1, labels[:, None])[:, 0]
        # an entry without rivals has log-probability 0, which the large share of 1e-6 multiplies
        each = smoothing / (allowed.sum(-1) - 1 + 1e-6)
        losses = (1 - smoothing - each) * nll - each * log_probs.masked_fill(~allowed, 0).sum(-1)
    if weights is not None:
        losses = losses * weights
    if drop_worst:
        losses = losses.topk(max(1, int(len(losses) * (1 - drop_worst))), largest=False).values
    return losses.mean()


def location_cross_entropy(logits: Tensor, labels: Tensor, first: int, end: int, spread: float) -> Tensor:
    """Mean loss of labelled tokens in which nearby locations are nearly right.

    The target of a location is a normal distribution over all locations with its peak at the label; labels that are
    not locations, such as the end token, are learned as they are.

    Args:
        logits: `[tokens, vocab]`.
        labels: `int64[tokens]`.
        first: the first location.
        end: the id after the last location.
        spread: standard deviation of the targets, in locations.
    """
    log_probs = at_least_float32(logits).log_softmax(-1)
    exact = -log_probs.gather(1, labels[:, None])[:, 0]
    distance = torch.arange(first, end, device=labels.device) - labels[:, None]  # [tokens, locations]
    targets = (-0.5 * (distance / spread) ** 2).softmax(-1)
    near = -(targets * log_probs[:, first:end]).sum(-1)
    return torch.where((labels >= first) & (labels < end), near, exact).mean()


def self_critical_loss(logits: Tensor, labels: Tensor, advantage: Tensor) -> Tensor:
    """Policy gradient of written sentences (Rennie et al., 2017, arXiv:1612.00563), a mean over words.

    Args:
        logits: `[words, vocab]`.
        labels: the words that were written, `int64[words]`.
        advantage: reward of the word's sentence minus its baseline, `float32[words]`.
    """
    return (nn.functional.cross_entropy(at_least_float32(logits), labels, reduction="none") * advantage).mean()


def mean_of_others(rewards: Tensor) -> Tensor:
    """Reward minus the mean of the same image's others, `float32[images, sentences]` (arXiv:2003.09971)."""
    count = rewards.shape[1]
    others = (rewards.sum(1, keepdim=True) - rewards) / (count - 1)
    return rewards - others


def softmax_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's loss (Radford et al., 2021, figure 3): which sentence belongs to a photo, and which photo to a sentence.

    With several sentences a photo, its target is spread over them evenly.

    Args:
        image_features: `[photos, dim]`, unit length.
        text_features: `[photos * count, dim]`, unit length; the sentences of a photo follow each other.
        logit_scale: the factor on cosines (not its logarithm).
    """
    logits = logit_scale * at_least_float32(image_features) @ at_least_float32(text_features).T  # [photos, sentences]
    photos, sentences = logits.shape
    owner = torch.arange(sentences, device=logits.device) // (sentences // photos)
    of_photo = nn.functional.cross_entropy(logits.T, owner)
    own = logits.log_softmax(1)[owner, torch.arange(sentences, device=logits.device)]
    return (of_photo - own.mean()) / 2


def sigmoid_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """SigLIP's loss (Zhai et al., 2023, arXiv:2303.15343, algorithm 1): each pair alone is right or wrong.

    A sum over pairs, divided by the number of sentences.

    Args:
        image_features: `[photos, dim]`, unit length.
        text_features: `[photos * count, dim]`, unit length; the sentences of a photo follow each other.
        logit_scale: the factor on cosines.
        logit_bias: added to the logits; far below zero at the start, as nearly all pairs are wrong.
    """
    logits = logit_scale * at_least_float32(image_features) @ at_least_float32(text_features).T + logit_bias
    photos, sentences = logits.shape
    owner = torch.arange(sentences, device=logits.device) // (sentences // photos)
    sign = 2.0 * (owner == torch.arange(photos, device=logits.device)[:, None]) - 1
    return -nn.functional.logsigmoid(sign * logits).sum() / sentences


def at_least_float32(logits: Tensor) -> Tensor:
    """Half precision to float32, in which losses are computed; float64, which checks gradients, stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
