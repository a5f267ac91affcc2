"""Modules of other packages, trained through the packages' own entry points on tiny data.

Each case is a function of (callbacks, epochs, resume): it trains with these callbacks on the CPU. `resume` is the path
of a checkpoint, or None; a case without `resume` has an entry point that cannot take one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Run = Callable[..., Any]
CASES: dict[str, tuple[str, str, Run]] = {}  # name -> the package that is needed, whose Trainer trains, what to call
WITH_NORMS: set[str] = set()
_QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
OPTIONS: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0, **_QUIET}


def case(name: str, package: str, trainer: str, *, norms: bool = False) -> Callable[[Run], Run]:
    """A case; `norms`: its module has BatchNorm."""

    def add(run: Run) -> Run:
        CASES[name] = package, trainer, run
        if norms:
            WITH_NORMS.add(name)
        return run

    return add


def missing(name: str) -> str:
    """Why a case cannot run here; "" where it can."""
    for package in (CASES[name][0], CASES[name][1].partition(".")[0]):
        if find_spec(package) is None:
            return f"{package} is not installed (pip install 'lightning-freeze[wild]')"
    return ""


def fit(
    package: str, module: Any, loader: Any, callbacks: list[Any], epochs: int, resume: Path | None, val: Any = None
) -> None:
    """`Trainer.fit` of one of the two Lightning packages."""
    pl = import_module("pytorch_lightning" if package == "pytorch_lightning" else "lightning.pytorch")
    options = {"weights_only": False} if resume is not None else {}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **OPTIONS)
    trainer.fit(module, loader, val, ckpt_path=resume, **options)


class Rows(Dataset[Any]):
    """Eight samples, the same in each process."""

    def __init__(self, sample: Callable[[torch.Generator], Any], count: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = [sample(generator) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


def loader(sample: Callable[[torch.Generator], Any], batch: int = 4) -> DataLoader[Any]:
    return DataLoader(Rows(sample), batch, shuffle=True)


def image(generator: torch.Generator, side: int = 32) -> Tensor:
    return torch.rand(3, side, side, generator=generator)


# ---- torchgeo


@case("torchgeo ClassificationTask", "torchgeo", "lightning", norms=True)
def classification(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    from torchgeo.trainers import ClassificationTask

    task = ClassificationTask(model="resnet18", in_channels=3, num_classes=3)
    data = loader(lambda g: {"image": image(g), "label": torch.randint(0, 3, (), generator=g)})
    fit("lightning", task, data, callbacks, epochs, resume, data)


@case("torchgeo SemanticSegmentationTask", "torchgeo", "lightning", norms=True)
def segmentation(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    from torchgeo.trainers import SemanticSegmentationTask

    task = SemanticSegmentationTask(model="unet", backbone="resnet18", in_channels=3, num_classes=3)
    data = loader(lambda g: {"image": image(g), "mask": torch.randint(0, 3, (32, 32), generator=g)})
    fit("lightning", task, data, callbacks, epochs, resume, data)


@case("torchgeo BYOLTask", "torchgeo", "lightning", norms=True)
def byol(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    from torchgeo.trainers import BYOLTask

    task = BYOLTask(model="resnet18")
    task.model.augment = nn.Identity()  # it would make pictures of 224 x 224
    fit("lightning", task, loader(lambda g: {"image": image(g)}), callbacks, epochs, resume)


@case("torchgeo MoCoTask", "torchgeo", "lightning", norms=True)
def moco(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    from torchgeo.trainers import MoCoTask

    task = MoCoTask(model="resnet18", hidden_dim=16, output_dim=8, lr=0.01, size=32)
    fit("lightning", task, loader(lambda g: {"image": image(g)}), callbacks, epochs, resume)


# ---- pytorch-forecasting


def _series() -> Any:
    import numpy as np
    import pandas as pd
    from pytorch_forecasting import TimeSeriesDataSet

    steps = np.arange(30)
    frames = [
        pd.DataFrame({"time": steps, "value": np.sin(steps / 3 + k).astype("float32"), "series": str(k)})
        for k in range(2)
    ]
    return TimeSeriesDataSet(
        pd.concat(frames, ignore_index=True), time_idx="time", target="value", group_ids=["series"],
        max_encoder_length=8, max_prediction_length=2, time_varying_unknown_reals=["value"],
    )  # fmt: skip


def _forecasting(make: Callable[[Any], Any], callbacks: list[Any], epochs: int, resume: Path | None) -> None:
    data = _series()
    fit("lightning", make(data), data.to_dataloader(train=True, batch_size=16), callbacks, epochs, resume)


@case("pytorch-forecasting TemporalFusionTransformer", "pytorch_forecasting", "lightning")
def tft(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    from pytorch_forecasting import TemporalFusionTransformer as Model

    options = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4, "learning_rate": 0.01}
    _forecasting(lambda data: Model.from_dataset(data, **options), callbacks, epochs, resume)


@case("pytorch-forecasting NHiTS", "pytorch_forecasting", "lightning")
def nhits(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    from pytorch_forecasting import NHiTS

    _forecasting(lambda data: NHiTS.from_dataset(data, hidden_size=8, learning_rate=0.01), callbacks, epochs, resume)


# ---- chemprop


@case("chemprop MPNN", "chemprop", "lightning")
def chemprop(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    import numpy as np
    from chemprop import data, models
    from chemprop import nn as parts

    points = [
        data.MoleculeDatapoint.from_smi(smiles, np.array([float(k)]))
        for k, smiles in enumerate(["CCO", "CCN", "c1ccccc1", "CC(=O)O", "CCCC", "CCCl", "CC#N", "COC"])
    ]
    batches = data.build_dataloader(data.MoleculeDataset(points), batch_size=4, shuffle=True, num_workers=0)
    passing = parts.BondMessagePassing(d_h=16, depth=2)
    module = models.MPNN(passing, parts.MeanAggregation(), parts.RegressionFFN(input_dim=16, hidden_dim=8, n_layers=2))
    fit("lightning", module, batches, callbacks, epochs, resume)


# ---- gluonts


@case("gluonts DeepAREstimator.train", "gluonts", "lightning")
def deepar(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    import numpy as np
    import pandas as pd
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import DeepAREstimator

    start = pd.Period("2024-01-01", freq="D")
    series = [{"start": start, "target": np.sin(np.arange(60) / 5 + k).astype("float32")} for k in range(2)]
    options = OPTIONS | {"enable_checkpointing": True}  # DeepAREstimator adds a ModelCheckpoint
    estimator = DeepAREstimator(
        freq="D", prediction_length=3, context_length=6, num_layers=2, hidden_size=8, batch_size=8,
        num_batches_per_epoch=2, trainer_kwargs={"max_epochs": epochs, "callbacks": callbacks, **options},
    )  # fmt: skip
    estimator.train(ListDataset(series, freq="D"), ckpt_path=resume)


# ---- lightly


def _two_views(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return image(generator), image(generator)


def _backbone() -> nn.Module:
    import torchvision

    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network


@case("lightly MoCo", "lightly", "pytorch_lightning", norms=True)
def lightly_moco(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    import copy

    import pytorch_lightning as pl
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    class Model(pl.LightningModule):  # as in lightly's documentation
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = _backbone(), MoCoProjectionHead(512, 16, 8)
            self.backbone_momentum, self.head_momentum = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.head_momentum)
            self.criterion = NTXentLoss()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            update_momentum(self.backbone, self.backbone_momentum, m=0.9)
            update_momentum(self.head, self.head_momentum, m=0.9)
            query = self.head(self.backbone(batch[0]))
            with torch.no_grad():
                key = self.head_momentum(self.backbone_momentum(batch[1]))
            return self.criterion(query, key)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    fit("pytorch_lightning", Model(), loader(_two_views), callbacks, epochs, resume)


@case("lightly SimCLR", "lightly", "pytorch_lightning", norms=True)
def lightly_simclr(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    import pytorch_lightning as pl
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    class Model(pl.LightningModule):  # as in lightly's documentation
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = _backbone(), SimCLRProjectionHead(512, 16, 8)
            self.criterion = NTXentLoss()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.criterion(*(self.head(self.backbone(view)) for view in batch))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)]

    fit("pytorch_lightning", Model(), loader(_two_views), callbacks, epochs, resume)


# ---- scvi-tools


@case("scvi-tools SCVI.train", "scvi", "lightning", norms=True)
def scvi(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    import numpy as np
    from anndata import AnnData
    from scvi import settings
    from scvi.model import SCVI

    settings.seed = 0
    counts = np.random.default_rng(0).poisson(2.0, (64, 12)).astype("float32")
    data = AnnData(counts)
    SCVI.setup_anndata(data)
    options = {key: value for key, value in OPTIONS.items() if key not in ("accelerator", "devices")}
    model = SCVI(data, n_hidden=8, n_latent=3, n_layers=2)
    more = {} if resume is None else {"ckpt_path": str(resume)}
    model.train(epochs, "cpu", 1, batch_size=32, train_size=1.0, callbacks=callbacks, **options, **more)


# ---- darts


def _darts(make: Callable[..., Any], callbacks: list[Any], epochs: int) -> None:
    import numpy as np
    from darts import TimeSeries

    trainer = {"callbacks": callbacks, **OPTIONS}
    series = TimeSeries.from_values(np.sin(np.arange(40) / 3).astype("float32"))
    make(
        input_chunk_length=8, output_chunk_length=2, n_epochs=epochs, batch_size=16, random_state=0,
        pl_trainer_kwargs=trainer, force_reset=True,
    ).fit(series)  # fmt: skip


@case("darts NBEATSModel.fit", "darts", "pytorch_lightning")
def nbeats(callbacks: list[Any], epochs: int) -> None:
    from darts.models import NBEATSModel

    sizes = {"num_stacks": 3, "num_blocks": 1, "num_layers": 2, "layer_widths": 8}
    _darts(lambda **options: NBEATSModel(**sizes, **options), callbacks, epochs)


@case("darts TransformerModel.fit", "darts", "pytorch_lightning")
def transformer(callbacks: list[Any], epochs: int) -> None:
    from darts.models import TransformerModel

    sizes = {"d_model": 8, "nhead": 2, "num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 16}
    _darts(lambda **options: TransformerModel(**sizes, **options), callbacks, epochs)


# ---- neuralforecast


@case("neuralforecast NHITS via NeuralForecast.fit", "neuralforecast", "pytorch_lightning")
def neuralforecast(callbacks: list[Any], epochs: int) -> None:
    import numpy as np
    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    steps = pd.date_range("2024-01-01", periods=40, freq="D")
    frame = pd.DataFrame({"unique_id": "a", "ds": steps, "y": np.sin(np.arange(40) / 3)})
    model = NHITS(
        h=2, input_size=8, mlp_units=3 * [[8, 8]], max_steps=epochs, batch_size=4, windows_batch_size=8,
        callbacks=callbacks, **OPTIONS,
    )  # fmt: skip
    NeuralForecast([model], freq="D").fit(frame)


# ---- lightning-uq-box


@case("lightning-uq-box MVERegression", "lightning_uq_box", "lightning", norms=True)
def uncertainty(callbacks: list[Any], epochs: int, resume: Path | None = None) -> None:
    from lightning_uq_box.uq_methods import MVERegression

    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    def sample(generator: torch.Generator) -> dict[str, Tensor]:
        return {"input": torch.rand(4, generator=generator), "target": torch.rand(1, generator=generator)}

    fit("lightning", MVERegression(network, burnin_epochs=1), loader(sample), callbacks, epochs, resume)


for noisy in ("lightning", "pytorch_lightning", "darts", "scvi", "gluonts"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
