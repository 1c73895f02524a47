"""The terms of the losses: entropy, similarity constraint, selection. Pure functions of tensors."""

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy of each row's softmax, in nats.

    Args:
        logits: (N, K), any real values; log-probabilities do as well.

    Returns:
        (N,), each in [0, ln K], differentiable; 0 is certain, ln K is uniform.

    Raises:
        ValueError: logits is not 2-D, or K < 2.

    Source: Wang et al., "Tent", ICLR 2021; the paper's Eq. 2.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (N, K >= 2); got {tuple(logits.shape)}")
    log_probabilities = logits.log_softmax(dim=1)  # not softmax().log(): nan for certain rows
    # Logits may be further apart than floats reach; 0·(−∞) would be nan.
    log_probabilities = log_probabilities.clamp_min(torch.finfo(logits.dtype).min)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def similarity_constraint(
    answers: Tensor,
    mirrored_answers: Tensor,
    features: Tensor,
    mirrored_features: Tensor,
    *,
    sigma: float = 1.0,
    kappa_detach: bool = False,
) -> Tensor:
    """Return con(x) = κ·‖z − z'‖², which pulls the answers to two views of an image together.

    κ = exp(−‖g − g'‖² / (2σ²)) weighs the pairs whose features are alike already.

    Args:
        answers, mirrored_answers: (N, K), logits (or probabilities) of the two views.
        features, mirrored_features: (N, D).
        sigma: width of the kernel, in units of the features.
        kappa_detach: take κ for a constant in the gradient; as written in the paper it is not.

    Returns:
        (N,), each at least 0, differentiable.

    Source: the paper's Eq. 10 (SPC).
    """
    kappa = (-(features - mirrored_features).square().sum(dim=1) / (2 * sigma**2)).exp()
    if kappa_detach:
        kappa = kappa.detach()
    return kappa * (answers - mirrored_answers).square().sum(dim=1)


def select_confident(entropies: Tensor) -> Tensor:
    """Return the mask (N,) of the images whose entropy is at most the batch's mean.

    In exact arithmetic at least one is; rounding can put the mean of equal entropies below them
    all, so an empty selection must be expected. Source: the paper's Eq. 11 and 12 (SS).
    """
    return entropies <= entropies.mean()


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Return KL(softmax(logits) ‖ softmax(reference)) of each row, in nats.

    Args:
        logits, reference: (N, K).

    Returns:
        (N,), each at least 0 up to rounding, differentiable in both.

    Source: Nguyen et al., "TIPI", CVPR 2023: the perturbed answer comes first ("reverse" KL).
    """
    log_p, log_q = logits.log_softmax(dim=1), reference.log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
