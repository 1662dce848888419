"""The definition of every operator in plain PyTorch: readable, slow, in any floating dtype."""

from .chunked_omega_rule import chunked_omega_rule
from .exp_omega_rule import exp_omega_rule
from .exp_omega_rule_update import exp_omega_rule_update
from .newton_schulz import newton_schulz
from .omega_rule import omega_rule
from .omega_rule_update import omega_rule_update
from .poly_features import poly_features

__all__ = [
    "chunked_omega_rule",
    "exp_omega_rule",
    "exp_omega_rule_update",
    "newton_schulz",
    "omega_rule",
    "omega_rule_update",
    "poly_features",
]
