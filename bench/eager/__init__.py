"""The opponents: the same algebra in plain PyTorch, written as carefully as PyTorch allows.

Everything is batched over heads; products that end in a sum are `baddbmm`; chunks are cut and made
contiguous once, outside the sequential loop; autograd makes the backward. The rules are those with
the l2 objective, decay and momentum; T must be a multiple of the chunk size.
"""

from bench.eager.exp_rule import exp_omega_rule
from bench.eager.muon import omega_rule_muon
from bench.eager.rule import omega_rule, omega_rule_by_chunk
from bench.eager.small import newton_schulz, poly_features

__all__ = [
    "exp_omega_rule",
    "newton_schulz",
    "omega_rule",
    "omega_rule_by_chunk",
    "omega_rule_muon",
    "poly_features",
]
