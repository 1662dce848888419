"""The memory of one head, followed token by token through a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import OmegaMemory
from ..layers.memory_read import read_memory
from ..models.language_model import LanguageModel
from ..ops.newton_schulz import newton_schulz
from ..ops.omega_rule_update import omega_rule_update
from ..state import OmegaState
from .capture import Tokens, capture_tokens, error, find_memory

Matrices = tuple[Tensor, ...]


@dataclass(frozen=True)
class MemoryTrace:
    """What one head's memory did at each of T tokens; all tensors are on the CPU.

    W is the window, V the width of a head. A matrix [out, in] of the memory has R = min(out, in)
    singular values, largest first. The rule: arXiv 2505.23735, eqs. 9 to 11, 32 and 33.
    """

    layer: int
    head: int
    alpha: Tensor | None  # [T]; None: nothing fades, alpha = 1
    theta: Tensor | None  # [T]; None: no momentum, S_t = G_t
    eta: Tensor  # [T]
    gamma: Tensor  # [T, W], 0 before the start of the text
    loss_start: Tensor  # [T] l(M_0; k_t, v_t): of the memory that has read nothing
    loss_before: Tensor  # [T] l(M_{t-1}; k_t, v_t)
    loss_after: Tensor  # [T] l(M_t; k_t, v_t)
    writes: Tensor  # [T] bool: the memory steps here; everywhere without Newton-Schulz
    singular_values: Matrices  # of S_t, [T, R] for each matrix
    orthogonalised: Matrices  # of NS(S_t) where it writes, [n, R] each; (): no Newton-Schulz
    o: Tensor  # [T, V] what was read

    @property
    def gamma_sum(self) -> Tensor:  # [T]
        """Sum of the window's gates."""
        return self.gamma.sum(-1)


@torch.no_grad()
def inspect_memory(
    model: LanguageModel,
    input_ids: Tensor,  # [1, T]
    layer: int,
    head: int,
) -> MemoryTrace:
    """Follows the memory of one head through a text.

    The model reads the text; what its layer gives to the rule (q, k, v, gates) goes through
    `omega_rule_update` once more, a token at a time, so that every M_t and S_t is seen. These are
    all kept at once: T times the memory and its momentum.

    Args:
        model: an `Atlas` of any variant and hybrid.
        input_ids: one text of at least one token.
        layer, head: which memory, from 0.

    Raises:
        ValueError: an argument does not fit, or the memory overflows.
    """
    memory = find_memory(model, layer, head)
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise error("input_ids", "[1, T] with T of at least 1", list(input_ids.shape))
    tokens = capture_tokens(model, memory, input_ids, head)
    o, weights, momentum = _states(memory, tokens, head)
    after = tuple(weight[1:] for weight in weights)
    finite = [x.flatten(1).isfinite().all(1) for x in (o, *momentum, *after)]
    overflows = torch.stack(finite).all(0).logical_not().nonzero()
    if len(overflows):
        got = f"one that is not from token {int(overflows[0])} on"
        raise error("model", "a memory that stays finite", got)

    k, v = tokens.k.transpose(0, 1), tokens.v.transpose(0, 1)  # a sequence for each token
    options, positions = memory.options, torch.arange(len(o))
    every = options["ns_every"] if options["ns_steps"] else 1
    writes = positions % every == every - 1
    orthogonalised: Matrices = ()
    if options["ns_steps"]:
        schedule = (options["ns_steps"], options["ns_schedule"])
        orthogonalised = tuple(newton_schulz(s[writes], *schedule) for s in momentum)
    log_alpha, log_theta = tokens.log_alpha, tokens.log_theta
    return MemoryTrace(
        layer=layer,
        head=head,
        alpha=None if log_alpha is None else log_alpha.exp().flatten().cpu(),
        theta=None if log_theta is None else log_theta.exp().flatten().cpu(),
        eta=tokens.eta.flatten().cpu(),
        gamma=tokens.gamma[0, :, 0].cpu() * (positions[:, None] >= torch.arange(memory.window)),
        loss_start=_inner_loss(memory, tuple(weight[:1] for weight in weights), k, v),
        loss_before=_inner_loss(memory, tuple(weight[:-1] for weight in weights), k, v),
        loss_after=_inner_loss(memory, after, k, v),
        writes=writes,
        singular_values=_spectra(momentum),
        orthogonalised=_spectra(orthogonalised),
        o=o.cpu(),
    )


def _states(
    memory: OmegaMemory, tokens: Tokens, head: int
) -> tuple[Tensor, Matrices, Matrices]:  # o [T, V], M_t [T+1, 1, out, in], S_t [T, 1, out, in]
    q, k, v = tokens.q, tokens.k, tokens.v
    state = OmegaState.init(
        [weight[head : head + 1] for weight in memory.memory_weights],
        num_sequences=1, window=memory.window, key_dim=k.shape[-1], value_dim=v.shape[-1],
        momentum=True,
    )  # fmt: skip
    log_theta = tokens.log_theta
    if log_theta is None:  # theta = 0: the state then holds S_t = G_t
        log_theta = torch.full_like(tokens.eta, -torch.inf)
    outputs, weights, momentum = [], [tuple(map(torch.clone, state.weights))], []
    for t in range(q.shape[1]):
        log_alpha = None if tokens.log_alpha is None else tokens.log_alpha[:, t]
        o = omega_rule_update(
            q[:, t], k[:, t], v[:, t], tokens.gamma[:, t], tokens.eta[:, t],
            log_alpha, log_theta[:, t],
            state=state, feature_scales=memory.feature_scales, **memory.options,
        )  # fmt: skip
        outputs.append(o.flatten())
        weights.append(tuple(map(torch.clone, state.weights)))
        momentum.append(tuple(map(torch.clone, state.momentum or ())))
    return torch.stack(outputs), _along_time(weights), _along_time(momentum)


def _along_time(states: list[Matrices]) -> Matrices:
    return tuple(torch.cat(matrices) for matrices in zip(*states, strict=True))


def _inner_loss(
    memory: OmegaMemory,
    weights: Matrices,  # each [T or 1, 1, out, in]
    k: Tensor,  # [T, 1, 1, K]
    v: Tensor,  # [T, 1, 1, V]
) -> Tensor:  # [T] on the CPU
    """l(M; k_t, v_t) of every token, each with a memory of its own."""
    answer = read_memory(memory, weights, k.to(weights[0].dtype))
    if memory.options["objective"] == "dot":
        losses = -(answer * v).sum(-1)
    else:
        losses = 0.5 * (answer - v).square().sum(-1)
    return losses.flatten().cpu()


def _spectra(matrices: Matrices) -> Matrices:  # [n, 1, out, in] -> [n, R], on the CPU
    return tuple(torch.linalg.svdvals(matrix.flatten(0, 1)).cpu() for matrix in matrices)
