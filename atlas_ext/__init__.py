"""ATLAS memory layers for PyTorch: the Omega rule, polynomial features and Newton-Schulz."""

from atlas_ext._version import __version__
from atlas_ext.ops.exp_omega_rule import exp_omega_rule
from atlas_ext.ops.exp_omega_rule_update import exp_omega_rule_update
from atlas_ext.ops.newton_schulz import newton_schulz
from atlas_ext.ops.omega_rule import omega_rule
from atlas_ext.ops.omega_rule_update import omega_rule_update
from atlas_ext.ops.poly_features import poly_feature_dim, poly_features
from atlas_ext.state import ExpOmegaState, OmegaState

__all__ = [
    "ExpOmegaState",
    "OmegaState",
    "__version__",
    "exp_omega_rule",
    "exp_omega_rule_update",
    "newton_schulz",
    "omega_rule",
    "omega_rule_update",
    "poly_feature_dim",
    "poly_features",
]
