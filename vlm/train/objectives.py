"""What training minimises."""

from torch import Tensor, nn


def label_smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean loss of the labelled words.

    OFA spreads `smoothing` over the other V - 1 entries, torch over all V; the factor turns one into the other.

    Args:
        logits: `[words, vocab]`.
        labels: `int64[words]`.
        smoothing: probability taken from the label.
    """
    vocab = logits.shape[-1]
    return nn.functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing * vocab / (vocab - 1))


def self_critical_loss(logits: Tensor, labels: Tensor, advantage: Tensor) -> Tensor:
    """Policy gradient of sampled sentences (Rennie et al., 2017, arXiv:1612.00563), a mean over words.

    Args:
        logits: `[words, vocab]`.
        labels: the sampled words, `int64[words]`.
        advantage: reward of the word's sentence minus its baseline, `float32[words]`.
    """
    return (nn.functional.cross_entropy(logits.float(), labels, reduction="none") * advantage).mean()


def mean_of_others(rewards: Tensor) -> Tensor:
    """Reward minus the mean of the same image's others, `float32[images, sentences]` (arXiv:2003.09971)."""
    count = rewards.shape[1]
    others = (rewards.sum(1, keepdim=True) - rewards) / (count - 1)
    return rewards - others
