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
from .config import AtlasHFConfig
from .modeling import AtlasForCausalLM

transformers.AutoConfig.register(AtlasHFConfig.model_type, AtlasHFConfig, exist_ok=True)
transformers.AutoModelForCausalLM.register(AtlasHFConfig, AtlasForCausalLM, exist_ok=True)

__all__ = ["AtlasForCausalLM", "AtlasHFCache", "AtlasHFConfig"]
