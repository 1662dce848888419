"""The opponents: the same algebra in plain PyTorch, written as carefully as PyTorch allows.

Everything is batched over heads; products that end in a sum are `baddbmm`; chunks are cut and made
contiguous once, outside the sequential loop, whose body is a function that can be compiled;
autograd makes the backward. The rules are those with the l2 objective, decay and momentum; T must
be a multiple of the chunk size.
"""

from bench.eager.exp_rule import exp_omega_rule, exp_step
from bench.eager.muon import muon_step, omega_rule_muon
from bench.eager.rule import chunk_step, omega_rule, omega_rule_by_chunk
from bench.eager.small import gathered_products, newton_schulz, poly_features
from bench.eager.update import exp_omega_rule_update, omega_rule_update

__all__ = [
    "chunk_step",
    "exp_omega_rule",
    "exp_omega_rule_update",
    "exp_step",
    "gathered_products",
    "muon_step",
    "newton_schulz",
    "omega_rule",
    "omega_rule_by_chunk",
    "omega_rule_muon",
    "omega_rule_update",
    "poly_features",
]
