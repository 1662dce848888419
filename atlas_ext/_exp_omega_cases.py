"""Cases of exp_omega_rule and exp_omega_rule_update: inputs, states, shapes with their reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from atlas_ext._case import (
    MEMORIES,
    Case,
    Inputs,
    fused,
    memory_shapes,
    memory_weights,
    normal,
    omega_tensors,
)
from atlas_ext.state import ExpOmegaState


def exp_omega_state(
    generator: torch.Generator,
    positions: Sequence[int],
    *,
    H: int,
    K: int,
    V: int,
    W: int,
    F: int = 0,
    memory: str = "linear",
    momentum: bool = False,
    room: int = 0,  # tokens beyond the longest sequence's
) -> ExpOmegaState:
    """A state in the middle of its sequences, whose keys go on in the window's."""
    N, length = len(positions), max([0, *positions])
    seen = torch.arange(length + room) < torch.tensor(positions).unsqueeze(-1)  # [N, capacity]
    sets, shapes = max(1, MEMORIES.index(memory)), memory_shapes(memory, V=V, D=K, F=F)

    def rows(width: int, size: float = 1.0) -> Tensor:  # [N, capacity, H, width]
        values = size * normal(generator, N, length + room, H, width)
        return values * seen[:, :, None, None]

    def coefficients() -> tuple[Tensor, ...]:
        return tuple(rows(V if memory == "linear" else F, 0.3) for _ in range(sets))

    def matrices() -> tuple[Tensor, ...]:
        if memory == "linear":
            return ()
        return memory_weights(generator, N, H, V=V, D=K, F=F, memory=memory)

    keys = torch.nn.functional.normalize(rows(K), dim=-1)
    k_tail, v_tail = (torch.zeros(N, W - 1, H, width, dtype=torch.float64) for width in (K, V))
    for n, position in enumerate(positions):
        kept = min(position, W - 1)
        k_tail[n, W - 1 - kept :] = keys[n, position - kept : position]
        v_tail[n, W - 1 - kept :] = normal(generator, kept, H, V)
    moving = tuple(
        0.3 * normal(generator, N, H, *shape) for shape in shapes[-1:] if memory != "linear"
    )
    return ExpOmegaState(
        keys=keys,
        coefficients=coefficients(),
        momentum=(*coefficients(), *moving) if momentum else None,
        weights=matrices(),
        chunk_weights=(*coefficients(), *matrices()),
        k_tail=k_tail,
        v_tail=v_tail,
        position=torch.tensor(positions, dtype=torch.int64),
        length=length,
    )


def _case(
    name: str,
    reason: str,
    lead: tuple[int, ...],  # (B, T); (N,) of an update
    *,
    H: int = 2,
    K: int = 4,
    V: int = 3,
    W: int = 3,
    F: int = 6,
    memory: str = "linear",
    alpha: bool = True,
    theta: bool = False,
    per_sequence: bool = False,
    lengths: Sequence[int] | None = None,  # packed sequences
    positions: Sequence[int] | None = None,  # start from a state
    room: int = 0,  # of the state, beyond its longest sequence
    step: float = 1.0,  # smaller where the rule would run away: the kernel is not bounded by 1
    layout: Callable[[Inputs], Inputs] | None = None,
    gates_in_dtype: bool = False,
    thorough: bool = False,
    **options: Any,
) -> Case:
    in_place = len(lead) == 1

    def build(generator: torch.Generator) -> Inputs:
        sizes: dict[str, Any] = {"H": H, "K": K, "V": V, "W": W}
        inputs = omega_tensors(generator, lead, **sizes, alpha=alpha, theta=theta)
        inputs["eta"] = step * inputs["eta"]
        if positions is not None:
            kind: dict[str, Any] = {"F": F, "memory": memory, "momentum": theta, "room": room}
            state = exp_omega_state(generator, positions, **sizes, **kind)
            inputs["state" if in_place else "initial_state"] = state
        elif memory != "linear":
            count = len(lengths) if lengths is not None else lead[0]
            each = (count, H) if per_sequence else (H,)
            inputs["weights"] = memory_weights(generator, *each, V=V, D=K, F=F, memory=memory)
        if lengths is not None:
            ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            inputs["cu_seqlens"] = ends
        return inputs

    if not in_place:
        options.setdefault("output_final_state", True)
    op = "exp_omega_rule_update" if in_place else "exp_omega_rule"
    extra = {"layout": layout, "gates_in_dtype": gates_in_dtype, "thorough": thorough}
    return Case(op, name, reason, build, options, **extra)  # type: ignore[arg-type]


# fmt: off
EXP_OMEGA_CASES: list[Case] = [
    _case("attention", "what attention is made of: dot, W = 1, no decay, softmax", (2, 11),
          W=1, alpha=False, normalize="softmax", chunk_size=4, thorough=True),
    _case("ragged", "T no multiple of C, momentum, decay, errors of the memory", (2, 11), K=5,
          W=4, theta=True, objective="l2", chunk_size=4, thorough=True),
    _case("recurrence", "C = 1 is the exact recurrence; rms", (2, 6), W=2, theta=True,
          objective="l2", normalize="rms", chunk_size=1),
    _case("wide_window", "W > C: the overhang spans chunks; residual, scale", (1, 11), K=3,
          W=8, objective="l2", residual=True, normalize="softmax", scale=-0.4, chunk_size=3),
    _case("one_token", "T = 1, W = 1, no final state", (2, 1), W=1, alpha=False,
          output_final_state=False),
    _case("strided", "views of one projection, expanded gates", (2, 9), theta=True,
          memory="mlp", chunk_size=4, layout=fused),
    _case("packed", "three sequences, the middle one empty", (1, 11), theta=True,
          memory="mlp", per_sequence=True, lengths=(5, 0, 6), objective="l2", chunk_size=4,
          output_final_state=False, thorough=True),
    _case("mid_chunk", "starts inside a chunk, window partly before the start", (3, 8), W=5,
          theta=True, positions=(1, 6, 7), room=2, objective="l2", chunk_size=4,
          thorough=True),
    _case("inside_a_chunk", "begins and ends inside one chunk: M_ref stays the argument", (2, 2),
          positions=(1, 4), theta=True, memory="mlp", objective="l2", chunk_size=8),
    _case("packed_states", "packed sequences going on from states, one of them empty", (1, 9),
          lengths=(4, 0, 5), positions=(2, 3, 5), theta=True, memory="gated_mlp",
          objective="l2", normalize="softmax", chunk_size=4),
    _case("gated", "two rows a token, SiLU, residual, rms", (2, 9), K=3, F=5,
          memory="gated_mlp", theta=True, objective="l2", activation="silu", residual=True,
          normalize="rms", chunk_size=4, thorough=True),
    _case("gated_dot", "mid-chunk, dot, no momentum", (2, 7), positions=(2, 5), F=4,
          memory="gated_mlp", normalize="softmax", chunk_size=4),
    _case("mlp_identity", "no decay, no momentum, F < V, softmax", (1, 10), V=5, W=6, F=3,
          memory="mlp", alpha=False, activation="identity", normalize="softmax",
          objective="l2", step=0.2, chunk_size=3),
    _case("lanes", "wider than vector lanes and odd; more keys than a block", (1, 101), H=1,
          K=17, V=19, W=16, theta=True, objective="l2", normalize="softmax", step=0.1,
          chunk_size=16),
    _case("mlp_lanes", "every side wider than vector lanes and odd", (1, 83), H=1, K=17, V=19,
          F=37, W=5, memory="mlp", theta=True, objective="l2", step=0.02, chunk_size=16),
    _case("gated_long", "mid-chunk beyond a block of keys, M_ref an argument, rms", (1, 13),
          H=1, K=5, F=5, positions=(70,), memory="gated_mlp", theta=True, objective="l2",
          normalize="rms", step=0.1, chunk_size=16),
    _case("half_gates", "gates and weights in the dtype of q", (1, 7), memory="mlp",
          chunk_size=4, gates_in_dtype=True),
    _case("no_tokens", "T = 0: the state comes back", (2, 0), theta=True, positions=(3, 5),
          memory="mlp"),
    _case("empty", "no sequences", (0, 3), theta=True),
    _case("plain", "W = 1, no room: the state grows; at different positions", (2,), W=1,
          positions=(0, 3), alpha=False, chunk_size=4, thorough=True),
    _case("momentum", "before, at and after a chunk's end; room to spare", (3,), W=4,
          positions=(2, 3, 4), theta=True, room=3, objective="l2", chunk_size=4,
          thorough=True),
    _case("mlp", "two matrices, window wider than what there is, softmax", (3,), W=6,
          positions=(0, 3, 4), theta=True, memory="mlp", objective="l2", normalize="softmax",
          chunk_size=4, thorough=True),
    _case("gated", "two rows a token with a residual, SiLU, rms, no momentum", (2,), K=3,
          positions=(3, 6), memory="gated_mlp", activation="silu", residual=True,
          objective="l2", normalize="rms", chunk_size=4),
    _case("no_decay", "rows that stay are not written", (2,), positions=(7, 5), alpha=False,
          memory="mlp", chunk_size=8),
    _case("lanes", "wider than vector lanes, more keys than a block", (2,), H=1, K=19, V=17,
          W=6, positions=(70, 64), theta=True, objective="l2", normalize="softmax",
          chunk_size=8),
    _case("no_rows", "no sequences", (0,), positions=(), theta=True),
]
# fmt: on
