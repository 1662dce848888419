"""Language models of the ATLAS family."""

from .atlas import Atlas
from .cache import AtlasCache
from .config import AtlasConfig
from .deep_transformer import DeepTransformer
from .language_model import AtlasOutput

__all__ = ["Atlas", "AtlasCache", "AtlasConfig", "AtlasOutput", "DeepTransformer"]
