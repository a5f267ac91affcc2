from lightning.pytorch import Callback, LightningModule, Trainer

PACKAGES: tuple[str, ...]

__all__ = ["PACKAGES", "Callback", "LightningModule", "Trainer"]
