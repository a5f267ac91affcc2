"""What the server of `processes.run_ranks` imports once for all of its processes."""

import warnings

warnings.filterwarnings("ignore")

import lightning.pytorch  # noqa: E402
import torch.distributed.fsdp  # noqa: E402
import torchmetrics  # noqa: E402

import lightning_freeze  # noqa: E402

torch.set_num_threads(1)
__all__ = ["lightning", "lightning_freeze", "torch", "torchmetrics"]
