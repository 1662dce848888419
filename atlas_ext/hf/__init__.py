"""The models as `transformers` classes, registered with its Auto classes (extra `hf`).

Nothing else of `atlas_ext` needs transformers.
"""

try:
    import transformers
except ImportError as error:
    raise ImportError(
        "atlas_ext.hf: wanted transformers 5.24 or later, found none: pip install 'atlas_ext[hf]'"
    ) from error

from .cache import AtlasHFCache
from .config import AtlasHFConfig, DeepTransformerHFConfig
from .modeling import AtlasForCausalLM, DeepTransformerForCausalLM

for _config, _model in (
    (AtlasHFConfig, AtlasForCausalLM),
    (DeepTransformerHFConfig, DeepTransformerForCausalLM),
):
    transformers.AutoConfig.register(_config.model_type, _config, exist_ok=True)
    transformers.AutoModelForCausalLM.register(_config, _model, exist_ok=True)

__all__ = [
    "AtlasForCausalLM",
    "AtlasHFCache",
    "AtlasHFConfig",
    "DeepTransformerForCausalLM",
    "DeepTransformerHFConfig",
]
