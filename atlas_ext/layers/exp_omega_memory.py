"""The memory layer of DeepTransformer, SWDT and Dot: the Omega rule with the exponential map."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..state import ExpOmegaState
from .memory_init import default_step_size, initial_stds, memory_shapes
from .memory_layer import Gates, MemoryLayer, first_token
from .state import MemoryState

EXP_CURVATURE = math.e  # exp(k·k) of a unit vector: the squared norm of its features


class ExpOmegaMemory(MemoryLayer):
    """A sequence mixer whose memory sees exp(q·k), exactly (paper, section 4).

    Projections, gates and output are those of `MemoryLayer`; the kernel is exp(q·k) of the scaled
    unit vectors. Its state, an `ExpOmegaState`, grows with the text, like a key-value cache.

    Args:
        hidden_size: width of input and output.
        num_heads: number of independent memories H.
        head_dim: K = V, width of a head; default hidden_size // num_heads.
        memory: "linear", "mlp" or "gated_mlp"; `expansion` * head_dim is the hidden width F.
        activation, residual: of a deep memory, as in `exp_omega_rule`.
        objective: "dot" or "l2".
        normalize: of the read, "none", "softmax" or "rms", as in `exp_omega_rule`.
        window: W, number of tokens in the inner loss.
        momentum: keep a momentum of the gradients, with a gate theta.
        retention: let the memory fade, with a gate alpha; False: alpha = 1.
        chunk_size: C; part of the model, not a tuning knob.
        conv_size: taps of the short convolution.
        step_size: eta at the initial bias; None: see `default_step_size`.
        norm_eps: of the output's RMSNorm.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        memory: str = "mlp",
        expansion: int = 4,
        activation: str = "gelu",
        residual: bool = True,
        objective: str = "dot",
        normalize: str = "none",
        window: int = 1,
        momentum: bool = False,
        retention: bool = True,
        chunk_size: int = 64,
        conv_size: int = 4,
        step_size: float | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        head_dim = hidden_size // num_heads if head_dim is None else head_dim
        shapes = memory_shapes(memory, head_dim, None, expansion)
        deep = len(shapes) > 1
        if step_size is None:
            step_size = default_step_size(
                *(objective, momentum, 0, 1, chunk_size),
                matrices=len(shapes), curvature=EXP_CURVATURE,
            )  # fmt: skip
        learned = shapes if deep else ()  # a linear memory starts at 0
        super().__init__(
            *(hidden_size, num_heads, head_dim),
            shapes=learned, initial_stds=initial_stds(shapes, None, activation) if deep else (),
            window=window, momentum=momentum, retention=retention, conv_size=conv_size,
            step_size=step_size, norm_eps=norm_eps,
        )  # fmt: skip
        self.options: dict[str, Any] = {
            "objective": objective,
            "activation": activation if deep else "gelu",
            "residual": residual and deep,
            "normalize": normalize,
            "scale": 1.0,  # q and k have norm 1 times a learned scale
            "chunk_size": chunk_size,
        }
        self.reset_parameters()

    def _rule(
        self,
        q: Tensor,  # [B, T, H, K]
        k: Tensor,  # [B, T, H, K]
        v: Tensor,  # [B, T, H, V]
        gates: Gates,
        tail: Tensor,  # [N, conv_size-1, 3*H*K]
        state: MemoryState | None,
        cu_seqlens: Tensor | None,
        return_state: bool,
    ) -> tuple[Tensor, MemoryState | None]:  # o [B, T, H, V]
        from ..ops.exp_omega_rule import exp_omega_rule

        o, memory = exp_omega_rule(
            q, k, v, *gates,
            weights=(tuple(self.memory_weights) or None) if state is None else None,
            initial_state=None if state is None else _exp(state),
            output_final_state=return_state,
            cu_seqlens=cu_seqlens,
            **self.options,
        )  # fmt: skip
        return o, None if memory is None else MemoryState(memory, tail)

    def _update(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState
    ) -> Tensor:  # [B, 1, H, V]
        from ..ops.exp_omega_rule_update import exp_omega_rule_update

        o: Tensor = exp_omega_rule_update(
            q[:, 0], k[:, 0], v[:, 0], *first_token(gates), state=_exp(state), **self.options
        )
        return o.unsqueeze(1)


def _exp(state: MemoryState) -> ExpOmegaState:
    if not isinstance(state.memory, ExpOmegaState):
        got = type(state.memory).__name__
        raise ValueError(f"ExpOmegaMemory: state.memory: wanted an ExpOmegaState, got {got}")
    return state.memory
