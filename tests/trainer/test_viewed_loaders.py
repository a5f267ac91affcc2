"""In epoch e, each sample comes in version e mod K, however the data come to the Trainer."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cached_models import ROWS, WIDTH, Model, Rows, frozen
from helpers import tensors, trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_freeze import FeatureCache, PlanError

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Numbered(Rows):
    """Its targets are the numbers of the samples."""

    def __init__(self, augment: bool = True, rows: int = 8) -> None:
        super().__init__(augment, rows)
        self.data = self.data[0], torch.arange(rows)


class Watching(Model):
    """Keeps what it is shown: for each epoch and loader, number of the sample -> its row."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[tuple[int, int], dict[int, list[float]]] = {}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batches = batch if isinstance(batch[0], list | tuple) else [batch]
        for place, (rows, numbers) in enumerate(batches):
            shown = self.shown.setdefault((self.trainer.current_epoch, place), {})
            shown.update(zip(numbers.tolist(), rows.tolist(), strict=True))
        rows, numbers = batches[0]
        return super().training_step((rows, numbers % 3), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.shown.setdefault((self.trainer.current_epoch, -1), {}).update(enumerate(batch[0].tolist()))


class Planning(Watching):
    """Asks for the length of the run before a checkpoint is loaded, as modules with a scheduler do."""

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(Numbered(), **{"batch_size": 3, "shuffle": True} | options)


def run(data: Any, views: int = 2, epochs: int = 5, model: Any = None, path: Any = None, **options: Any) -> Any:
    pl.seed_everything(7, verbose=False)
    model = model or Watching()
    running = trainer([FeatureCache(views=views, verbose=False), *frozen()], epochs, **options)
    running.fit(model, datamodule=data, ckpt_path=path) if isinstance(data, pl.LightningDataModule) else running.fit(
        model, data, ckpt_path=path
    )
    return model


class Source(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader()


WORKERS = {"num_workers": 2, "persistent_workers": True}


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (loader(), {}),
        (loader(**WORKERS), {}),
        (Source(), {"reload_dataloaders_every_n_epochs": 1}),
        (CombinedLoader([loader(), loader(batch_size=2)], "max_size_cycle"), {}),
    ],
    ids=["alone", "workers", "reloaded", "combined"],
)
def test_versions_come_in_turn_and_then_again(data: Any, options: Any) -> None:
    shown = run(data, **options).shown
    assert all(len(epoch) == 8 for epoch in shown.values())
    assert shown[0, 0] == shown[2, 0] == shown[4, 0]
    assert shown[1, 0] == shown[3, 0]
    for number, row in shown[0, 0].items():
        assert row != shown[1, 0][number]
        assert (0, 1) not in shown or row != shown[0, 1][number]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("make", [Watching, Planning])
@pytest.mark.parametrize("options", [{}, WORKERS], ids=["alone", "workers"])
def test_a_resumed_run_goes_on_with_the_same_versions(make: Any, options: Any, tmp_path: Any) -> None:
    whole = run(loader(**options), 3, 5, make())
    model, path = make(), tmp_path / "last.ckpt"
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True)
    pl.seed_everything(7, verbose=False)
    callbacks = [FeatureCache(views=3, verbose=False), *frozen(), saving]
    trainer(callbacks, 2, enable_checkpointing=True).fit(model, loader(**options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_freeze.callbacks.feature_cache.default_seed", lambda: 99)  # that of the checkpoint
        resumed = run(loader(**options), 3, 5, make(), path)
    assert sorted(resumed.shown) == [(2, 0), (3, 0), (4, 0)]
    assert all(resumed.shown[at] == whole.shown[at] for at in resumed.shown)


def test_the_seed_of_the_run_decides_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for seed in (7, 8):
        pl.seed_everything(seed, verbose=False)
        model = Watching()
        trainer([FeatureCache(views=2), *frozen()], 1).fit(model, loader())
        shown.append(model.shown[0, 0])
        said = " ".join(capsys.readouterr().out.split())
        assert "changes the training data: in epoch e each sample comes in version e mod 2, drawn by its" in said
        assert f"from seed {seed}." in said
    assert not any(shown[0][number] == shown[1][number] for number in range(8))


def test_data_without_random_transforms_and_random_state_are_as_without_views() -> None:
    runs = []
    for views in (None, 1, 3):
        pl.seed_everything(7, verbose=False)
        model = Model()
        model.head = torch.nn.Sequential(torch.nn.Dropout(0.5), model.head)
        trainer([FeatureCache(views=views, verbose=False), *frozen()], 3).fit(
            model, DataLoader(Rows(), 11, shuffle=True)
        )
        runs.append((model.losses, tensors(model), torch.get_rng_state()))
    for losses, weights, state in runs[1:]:
        assert losses == runs[0][0]
        assert all(torch.equal(value, runs[0][1][name]) for name, value in weights.items())
        assert torch.equal(state, runs[0][2])


@pytest.mark.parametrize("views", [1, 3])
def test_what_is_served_is_what_would_be_computed(views: int) -> None:
    runs = []
    for room in (1.0, 1e-9):  # of the rows: all, none
        pl.seed_everything(7, verbose=False)
        model = Model()
        cache = FeatureCache(views=views, max_gb=room, verbose=False)
        with pytest.warns(UserWarning, match="a row takes") if room < 1 else nullcontext():
            trainer([cache, *frozen()], 3 * views + 1).fit(model, DataLoader(Rows(augment=True), 11, shuffle=True))
        runs.append(model)
    served, computed = runs
    assert served.losses == computed.losses
    assert all(torch.equal(value, tensors(computed)[name]) for name, value in tensors(served).items())
    assert sum(computed.mid.seen) == (3 * views + 1) * ROWS
    assert sum(served.mid.seen) <= (views + 2) * ROWS


def test_a_dataset_with_a_generator_of_its_own_turns_the_cache_off_after_the_first_version_came_again() -> None:
    class Own(Rows):
        generator = torch.Generator().manual_seed(0)

        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            return self.data[0][row] + torch.randn(WIDTH, generator=self.generator), self.data[1][row]

    model = Model()
    with pytest.warns(UserWarning, match="augmented at random") as said:
        trainer([FeatureCache(views=2, verbose=False), *frozen()], 5).fit(model, DataLoader(Own(), 11))
    assert sum("FeatureCache" in str(one.message) for one in said) == 1
    assert sum(model.mid.seen) == 5 * ROWS


def test_loader_and_strategy_are_as_before_and_validation_is_left_alone() -> None:
    data, model = loader(), Watching()
    parts = dict(vars(data))
    running = trainer([FeatureCache(views=1, verbose=False), *frozen()], 2)
    running.fit(model, data, DataLoader(Numbered(), batch_size=8))
    assert vars(data) == parts
    assert "process_dataloader" not in vars(running.strategy)
    assert model.shown[0, 0] == model.shown[1, 0]
    assert model.shown[0, -1] != model.shown[1, -1]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Rows())


class Repeating(DataLoader[Any]):
    """Has made its iterator before."""

    def __iter__(self) -> Any:
        return DataLoader.__iter__(DataLoader(Rows(), batch_size=8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataLoader(Stream(), batch_size=8), r"views=2\): the training loader reads an iterable dataset \(Stream\)"),
        (Repeating(Rows(), batch_size=8), "did not ask its sampler"),
    ],
)
def test_loaders_whose_samples_cannot_be_told_are_refused(data: Any, message: str) -> None:
    running = trainer([FeatureCache(views=2, verbose=False), *frozen()], 1)
    with pytest.raises(PlanError, match=message):
        running.fit(Model(), data)
    assert "process_dataloader" not in vars(running.strategy)


def test_two_that_ask_for_views_are_refused() -> None:
    with pytest.raises(PlanError, match="2 of them ask for views"):
        trainer([FeatureCache(views=2), FeatureCache(views=2), *frozen()], 1).fit(Model(), loader())
