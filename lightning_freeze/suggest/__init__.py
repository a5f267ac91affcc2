"""Find by measuring which layers to train, when, and at what rate."""

from lightning_freeze.suggest.api import from_config, suggest
from lightning_freeze.suggest.space import Space, space
from lightning_freeze.suggest.suggestion import Suggestion

__all__ = ["Space", "Suggestion", "from_config", "space", "suggest"]
