"""SlimCheckpoint: what had not moved is left out, comes back checked, and nothing else differs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import pytest
import slim_worker
import torch
from helpers import Batches, fit, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from processes import run_ranks
from resuming import STAGES, Net, StatefulLoader, differences, everything
from torch import nn

from lightning_freeze import (
    AnchorWeights,
    FreezeLayers,
    Freezer,
    GradualUnfreeze,
    PlanError,
    ResumeError,
    SlimCheckpoint,
    merge_checkpoint,
)
from lightning_freeze.model.first_bits import KEY

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*the run ended before its schedule did"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]


class Wide(pl.LightningModule):
    """A backbone that is much larger than its head."""

    def __init__(self, seed: int = 0, head: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.head = nn.Linear(256, head)
        nn.init.constant_(self.head.weight, 0.01)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.training_step(batch, 0))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.head(self.body(batch[0]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def head_only() -> list[Any]:
    return [FreezeLayers("body", verbose=False), SlimCheckpoint()]


def saved(folder: Path, callbacks: list[Any], model: Any = None, **options: Any) -> tuple[Any, Path]:
    model = Wide() if model is None else model
    running = fit(model, callbacks, epochs=2)
    running.save_checkpoint(folder / "slim.ckpt", **options)
    return model, folder / "slim.ckpt"


def test_a_head_only_run_saves_its_head_and_loads_with_plain_types(tmp_path: Path) -> None:
    model, path = saved(tmp_path, head_only())
    whole, full = saved(tmp_path / "full", [FreezeLayers("body", verbose=False)])
    assert path.stat().st_size < full.stat().st_size / 10
    loaded = torch.load(path, weights_only=True)
    assert set(loaded["state_dict"]) == {"head.weight", "head.bias"}
    merged = merge_checkpoint(path, Wide())
    assert list(merged["state_dict"]) == list(model.state_dict())
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in merged["state_dict"].items())
    assert KEY not in merged


@pytest.mark.parametrize("callbacks", [[], [AnchorWeights(0.0, verbose=False)]])
def test_where_everything_moves_the_file_is_no_larger(tmp_path: Path, callbacks: list[Any]) -> None:
    sizes: list[int] = []
    for more in ([], [SlimCheckpoint()]):
        _, path = saved(tmp_path / str(len(sizes)), [FreezeLayers("body.1", stop=1, verbose=False), *callbacks, *more])
        sizes.append(path.stat().st_size)
    assert sizes[1] <= sizes[0] * 1.01


def test_weights_only_files_and_those_of_model_checkpoint_are_slim(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, save_last=True, save_weights_only=True, save_top_k=2, monitor="val")
    fit(model := Wide(), [*head_only(), keeper], epochs=3, enable_checkpointing=True)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 3
    for file in files:
        assert set(torch.load(file, weights_only=True)["state_dict"]) == {"head.weight", "head.bias"}
    last = merge_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True), Wide())["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())


def test_every_way_to_load_one_gives_the_module_that_was_saved(tmp_path: Path) -> None:
    model, path = saved(tmp_path, head_only())
    expected = model.state_dict()
    loaded = Wide.load_from_checkpoint(path)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert "on_load_checkpoint" not in vars(Wide)
    for verb in ("validate", "test", "predict"):
        other = Wide()
        getattr(trainer([SlimCheckpoint()]), verb)(other, Batches(1), ckpt_path=path)
        assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("way", ["fit", "test", "load_from_checkpoint", "merge_checkpoint"])
def test_another_base_is_refused_by_the_first_tensor_that_differs(tmp_path: Path, way: str) -> None:
    _, path = saved(tmp_path, head_only())
    ways: dict[str, Any] = {
        "fit": lambda: trainer(head_only(), 4).fit(Wide(1), Batches(2), Batches(1), ckpt_path=path),
        "test": lambda: trainer([SlimCheckpoint()]).test(Wide(1), Batches(1), ckpt_path=path),
        "load_from_checkpoint": lambda: Wide.load_from_checkpoint(path, seed=1),
        "merge_checkpoint": lambda: merge_checkpoint(path, Wide(1)),
    }
    with pytest.raises(
        ResumeError, match=r"'body\.0\.weight' of Wide has other values now \(4 of 9 tensors differ\)\.\n  Build the"
    ):
        ways[way]()
    with pytest.raises(ResumeError, match=r"leaves out 'body\.0\.weight', and Linear has no tensor"):
        merge_checkpoint(path, nn.Linear(1, 1))


def test_a_full_checkpoint_goes_on_slim(tmp_path: Path) -> None:
    _, path = saved(tmp_path, [FreezeLayers("body", verbose=False)])
    running = trainer([FreezeLayers("body", verbose=False), SlimCheckpoint()], 3)
    running.fit(Wide(), Batches(2), Batches(1), ckpt_path=path)
    running.save_checkpoint(tmp_path / "next.ckpt")
    assert set(torch.load(tmp_path / "next.ckpt", weights_only=True)["state_dict"]) == {"head.weight", "head.bias"}


def test_what_moved_without_being_told_is_saved(tmp_path: Path) -> None:
    class Leaky(Wide):
        def on_train_epoch_end(self) -> None:
            with torch.no_grad():
                self.body[3].bias += 1.0

    _, path = saved(tmp_path, head_only(), Leaky())
    assert "body.3.bias" in torch.load(path, weights_only=True)["state_dict"]


def test_start_values_and_averages_of_frozen_weights_are_left_out_too(tmp_path: Path) -> None:
    anchored = [FreezeLayers("body.0", verbose=False), AnchorWeights(0.1, "body", verbose=False)]
    plain = saved(tmp_path / "plain", anchored)[1].stat().st_size
    model, path = saved(tmp_path, [*anchored, SlimCheckpoint()])
    assert path.stat().st_size < plain - 256 * 256 * 4  # the start of body.3
    merged = merge_checkpoint(path, Wide())
    starts = next(entry for entry in merged["lightning_freeze"]["policies"] if entry["class"] == "AnchorWeights")
    assert torch.equal(starts["state"]["start"]["body.3.weight"], Wide().body[3].weight)
    assert not torch.equal(model.body[3].weight, Wide().body[3].weight)


@pytest.mark.skipif(not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="an older Lightning")
def test_beside_an_average_frozen_weights_are_left_out_of_the_model_state(tmp_path: Path) -> None:
    sizes = {}
    for more in ([], [SlimCheckpoint()]):
        callbacks = [FreezeLayers("body", verbose=False), pl.callbacks.EMAWeightAveraging(), *more]
        _, path = saved(tmp_path / str(len(more)), callbacks)
        sizes[len(more)] = path.stat().st_size
    assert sizes[1] < sizes[0] / 10


RUNS: dict[str, Any] = {
    "stages, metric, best": lambda: [
        GradualUnfreeze(STAGES, monitor="val", patience=1, restore_best=True, verbose=False)
    ],
    "refrozen, anchored": lambda: [
        FreezeLayers("model.3", 1, 3, verbose=False),
        FreezeLayers("model.0", verbose=False),
        AnchorWeights(0.5, verbose=False),
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumed_from_slim_checkpoints_ends_as_if_never_interrupted(name: str, tmp_path: Path) -> None:
    def run(folder: Path, *more: Any, **options: Any) -> Any:
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
        running = pl.Trainer(
            callbacks=[*RUNS[name](), SlimCheckpoint(), *more], default_root_dir=folder, max_epochs=5,
            accelerator="cpu", num_sanity_val_steps=0, enable_checkpointing=bool(more), **quiet,
        )  # fmt: skip
        validation = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(StatefulLoader().inputs, StatefulLoader().targets), batch_size=8
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            running.fit(Net(), StatefulLoader(), validation, **options)
        return running

    keeper = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=False)
    expected = everything(run(tmp_path, keeper))
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 5
    assert any(KEY in torch.load(file, weights_only=True) for file in files)
    for file in files[:-1]:
        assert not differences(expected, everything(run(tmp_path, ckpt_path=file)))


def test_a_run_killed_in_the_middle_of_a_save_goes_on_from_the_file_before(tmp_path: Path) -> None:
    run_ranks("slim_worker.py", tmp_path, ranks=1, killed=True)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["epoch"] == 1, "the second of three saves"
    assert KEY in last
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = everything(slim_worker.train(tmp_path))
        assert not differences(expected, everything(slim_worker.train(tmp_path, ckpt_path=tmp_path / "last.ckpt")))


def test_optimizer_state_kept_for_what_was_frozen_is_in_the_file_and_dropped_state_is_not(tmp_path: Path) -> None:
    sizes = {}
    for place in ("keep", "drop"):
        freezing = FreezeLayers("body", start=1, optimizer_state=place, verbose=False)  # type: ignore[arg-type]
        sizes[place] = saved(tmp_path / place, [freezing, SlimCheckpoint()])[1].stat().st_size
    moments = 2 * sum(p.nbytes for p in Wide().body.parameters())
    assert moments < sizes["keep"] - sizes["drop"] < 1.1 * moments


def test_sharded_checkpoints_stay_whole_with_a_warning_and_a_plain_loop_is_refused() -> None:
    strategy = type("ModelParallelStrategy", (), {"restore_checkpoint_after_setup": True, "is_global_zero": True})()
    running = trainer([slim := SlimCheckpoint()])
    with (
        mock.patch.object(type(running), "strategy", strategy),
        mock.patch.object(type(slim).__mro__[1], "on_fit_start"),
        pytest.warns(UserWarning, match="SlimCheckpoint: under ModelParallelStrategy checkpoints stay whole"),
    ):
        slim.on_fit_start(running, Wide())
    with pytest.raises(PlanError, match="SlimCheckpoint works through the hooks of a Trainer"):
        Freezer(Wide(), [SlimCheckpoint()])
