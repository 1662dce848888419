"""Language models of the ATLAS family."""

from .atlas import Atlas, AtlasOutput
from .cache import AtlasCache
from .config import AtlasConfig

__all__ = ["Atlas", "AtlasCache", "AtlasConfig", "AtlasOutput"]
