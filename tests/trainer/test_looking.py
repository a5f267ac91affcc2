"""A look at the first training step leaves no trace: the run is, bit for bit, the one with the same stages named."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import TRUSTED, Batches, Net, trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_freeze import BatchNormEval, FreezeAudit, GradualUnfreeze, LayerwiseLR, ResumeError, Stage

try:
    from torchmetrics import Accuracy, CatMetric
except ImportError:  # pragma: no cover
    Accuracy = CatMetric = None

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

Build = Callable[[], pl.LightningModule]


class Recorded(pl.Callback):
    """The bits of all weights and buffers, and the random state, after every batch."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_train_batch_start(self, run: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.note(module)

    def on_train_batch_end(self, run: Any, module: Any, *_: Any) -> None:
        self.note(module)

    def note(self, module: nn.Module) -> None:
        bits = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self.states.append((bits, torch.get_rng_state(), random.getstate()))


def run(build: Build, stages: Any, folder: Path, loader: Callable[[], Any], **options: Any) -> tuple[Any, Any, Any]:
    pl.seed_everything(3, verbose=False)
    model, recorded = build(), Recorded()
    gradual = GradualUnfreeze(stages, verbose=False)
    logger = CSVLogger(folder, name="", version="")
    callbacks = [
        gradual,
        LayerwiseLR(0.5),
        BatchNormEval(when="frozen"),
        FreezeAudit(ignore="*teacher*" if hasattr(model, "teacher") else None, verbose=False),
        recorded,
    ]
    fitted = trainer(callbacks, 3, logger=logger, log_every_n_steps=1, limit_val_batches=0, **options)
    data = loader() if loader is not None else None
    fitted.fit(model, data)
    return gradual, recorded, (folder / "metrics.csv").read_text()


def check_undisturbed(build: Build, tmp_path: Path, loader: Any = lambda: Batches(3), **options: Any) -> list[Any]:
    """Train with auto and with the same stages named, and return them."""
    found, auto, logs = run(build, "auto", tmp_path / "auto", loader, **options)
    stages = [Stage(name, list(patterns)) for name, patterns in found.signature]
    _, named, expected = run(build, stages, tmp_path / "named", loader, **options)
    assert len(auto.states) == len(named.states) > 2
    for (bits, torch_state, state), (other, other_torch, other_state) in zip(auto.states, named.states, strict=True):
        assert torch.equal(torch_state, other_torch)
        assert state == other_state
        assert all(torch.equal(value, other[name]) for name, value in bits.items())
    assert logs == expected
    return [stage.patterns for stage in stages]


class Logged(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss + torch.rand(()) + random.random(), on_step=True, on_epoch=True)
        return loss


class Random(Dataset):
    """Augmented in the process that loads it."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return torch.rand(4) + random.random(), place % 3


class Stateful(IterableDataset):
    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        for _ in range(12):
            self.count += 1
            yield torch.full((4,), float(self.count)) + torch.rand(4), self.count % 3


STAGES = [["head"], ["mid"], ["stem"]]
LOADERS: dict[str, Callable[[], Any]] = {
    "in memory": lambda: Batches(3),
    "shuffled": lambda: DataLoader(Random(), 4, shuffle=True),
    "own generator": lambda: DataLoader(Random(), 4, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "workers": lambda: DataLoader(Random(), 4, shuffle=True, num_workers=2),
    "iterable": lambda: DataLoader(Stateful(), 4),
    "iterable in workers": lambda: DataLoader(Stateful(), 4, num_workers=2),
}


class TestLoaders:
    @pytest.mark.parametrize("name", LOADERS)
    @pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`", "ignore:.*fork.*:DeprecationWarning")
    def test_data_and_random_state_are_those_of_the_named_run(self, name: str, tmp_path: Path) -> None:
        assert check_undisturbed(Logged, tmp_path, LOADERS[name]) == STAGES

    def test_a_combined_loader_may_give_a_dict_of_batches(self, tmp_path: Path) -> None:
        class Model(Logged):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)

        loader = lambda: CombinedLoader({"a": Batches(3), "b": Batches(2)}, "max_size_cycle")  # noqa: E731
        assert check_undisturbed(Model, tmp_path, loader) == STAGES

    def test_a_batch_may_be_an_object_of_its_own(self, tmp_path: Path) -> None:
        class Pair:
            def __init__(self, inputs: Tensor, target: Tensor) -> None:
                self.inputs, self.target = inputs, target

        class Model(Logged):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                batch.inputs.add_(1)
                loss = Net.training_step(self, (batch.inputs, batch.target), batch_idx)
                self.log("loss", loss, batch_size=8)
                return loss

        class Pairs(Batches):
            def __iter__(self) -> Any:
                return (Pair(inputs.clone(), target) for inputs, target in self.all)

        assert check_undisturbed(Model, tmp_path, lambda: Pairs(3)) == STAGES


class Averaged(Logged):
    """A teacher that is averaged by hand in each step, a helper that counts, a queue, a metric, a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(4, 3))
        self.register_buffer("center", torch.zeros(3))
        self.queue: deque[Tensor] = deque(maxlen=3)
        self.seen: dict[str, list[float]] = {"losses": []}
        self.generator = torch.Generator().manual_seed(5)
        self.helper = Helper()
        if Accuracy is not None:
            self.accuracy, self.all = Accuracy("multiclass", num_classes=3), CatMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            self.teacher[0].weight.mul_(0.9).add_(self.head.weight, alpha=0.1)
            target = self.teacher(batch[0])
        self.center = self.center * 0.9 + target.mean(0)
        self.queue.append(target)
        loss = super().training_step(batch, batch_idx) + (self(batch[0]) - target - self.center).square().mean()
        loss = loss + sum(entry.mean() for entry in self.queue) + torch.rand((), generator=self.generator)
        self.seen["losses"].append(float(loss))
        self.helper.count += 1
        self.log("seen", float(len(self.seen["losses"])) + self.helper.count)
        if Accuracy is not None:
            self.accuracy(self(batch[0]), batch[1])
            self.all(loss.detach())
            self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
            self.log("all", self.all.compute().float().mean())
        return loss


class Helper:
    def __init__(self) -> None:
        self.count = 0


class Manual(Logged):
    """Two optimizers, stepped by hand, with a scheduler, a closure, and gradients that are clipped and logged."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        body, head = self.optimizers()
        for optimizer in (body, head):
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            if optimizer is head or self.current_epoch:  # torch warns where nothing trains
                self.clip_gradients(optimizer, 1.0, "norm")
            optimizer.step()
        self.lr_schedulers().step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        body = torch.optim.SGD([*self.stem.parameters(), *self.mid.parameters()], lr=0.1)
        head = torch.optim.SGD(self.head.parameters(), lr=0.1)
        return [body, head], [torch.optim.lr_scheduler.ExponentialLR(head, 0.9)]


class Closure(Manual):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        def closure() -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.zero_grad()
            self.manual_backward(loss)
            norm = torch.stack([p.grad.norm() for p in self.head.parameters() if p.grad is not None]).norm()
            self.log("norm", norm)
            return loss

        for optimizer in self.optimizers():
            optimizer.step(closure=closure)


class Penalty(Logged):
    """The gradient of the output by the input is part of the loss."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = batch[0].clone().requires_grad_()
        outputs = self(inputs)
        (slope,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
        self.log("slope", slope.square().mean())
        return nn.functional.cross_entropy(outputs, batch[1]) + slope.square().mean()


class Checkpointed(Logged):
    def forward(self, inputs: Tensor) -> Tensor:
        hidden = checkpoint(self.stem, inputs.requires_grad_(), use_reentrant=True)
        return self.head(checkpoint(self.mid, hidden, use_reentrant=True))


class Late(Logged):
    """Built in configure_model, with an attribute that is set when training starts."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = self.head
        del self.head

    def configure_model(self) -> None:
        self.head = self.kept
        del self.kept

    def on_train_start(self) -> None:
        self.scale = 2.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.scale


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return Batches(3)


class TestModules:
    def test_averages_queues_metrics_and_generators_are_as_before(self, tmp_path: Path) -> None:
        found = check_undisturbed(Averaged, tmp_path)

        assert found == STAGES  # the teacher is in none

    @pytest.mark.parametrize("build", [Manual, Closure])
    def test_manual_optimization_steps_nothing(self, build: Build, tmp_path: Path) -> None:
        assert check_undisturbed(build, tmp_path) == STAGES

    def test_a_penalty_on_a_gradient_keeps_the_order(self, tmp_path: Path) -> None:
        assert check_undisturbed(Penalty, tmp_path) == STAGES

    def test_reentrant_checkpointing_hides_nothing(self, tmp_path: Path) -> None:
        assert check_undisturbed(Checkpointed, tmp_path) == STAGES

    def test_a_module_may_be_built_in_configure_model_and_finished_when_training_starts(self, tmp_path: Path) -> None:
        assert check_undisturbed(Late, tmp_path) == STAGES

    def test_a_datamodule_serves_as_well(self, tmp_path: Path) -> None:
        assert check_undisturbed(Logged, tmp_path, Data) == STAGES

    @pytest.mark.parametrize(
        "options", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}]
    )
    def test_options_of_the_trainer_change_nothing(self, options: dict[str, Any], tmp_path: Path) -> None:
        assert check_undisturbed(Logged, tmp_path, **options) == STAGES


class TestFallback:
    @pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
    def test_a_step_without_a_loss_follows_the_order_of_use(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Model(Net):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
                loss = super().training_step(batch, batch_idx)
                return loss if self.global_step or batch_idx else None

        running = trainer([GradualUnfreeze()], 4, limit_val_batches=0)
        running.fit(Model(), Batches(2))

        assert "Stages follow the order of use" in capsys.readouterr().out

    def test_a_step_that_fails_once_does_not_fail_the_fit(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Model(Net):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                if not self.optimizers().state and len(self.optimizers().param_groups) == 1:
                    raise RuntimeError("not yet\nsecond line")
                return super().training_step(batch, batch_idx)

        running = trainer([GradualUnfreeze()], 4, limit_val_batches=0)
        running.fit(Model(), Batches(2))

        shown = capsys.readouterr().out
        assert "Stages follow the order of registration" in shown
        assert "RuntimeError: not yet" in shown
        assert "second line" not in shown


class TestResume:
    @pytest.mark.filterwarnings("ignore:The dirpath has changed")
    def test_a_resumed_run_takes_its_stages_from_the_checkpoint_and_never_looks(self, tmp_path: Path) -> None:
        looks: list[int] = []

        class Model(Net):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                looks.append(batch_idx)
                torch.manual_seed(self.global_step)  # a resumed run draws the same dropout
                return super().training_step(batch, batch_idx)

        saved = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        first = trainer([GradualUnfreeze(verbose=False), saved], 4, enable_checkpointing=True, limit_val_batches=0)
        model = Model()
        first.fit(model, Batches(2))
        assert len(looks) == 9
        looks.clear()

        again, gradual = Model(), GradualUnfreeze(verbose=False)
        saved = pl.callbacks.ModelCheckpoint(tmp_path / "again", "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        trainer([gradual, saved], 4, enable_checkpointing=True, limit_val_batches=0).fit(
            again, Batches(2), ckpt_path=str(tmp_path / "epoch=1.ckpt"), **TRUSTED
        )

        assert len(looks) == 4
        assert [list(patterns) for _, patterns in gradual.signature] == STAGES
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())

    def test_other_stages_than_those_of_the_checkpoint_are_refused(self, tmp_path: Path) -> None:
        first = trainer([GradualUnfreeze(verbose=False)], 3, limit_val_batches=0)
        first.fit(Net(), Batches(2))
        first.save_checkpoint(tmp_path / "last.ckpt")

        with pytest.raises(ResumeError):
            trainer([GradualUnfreeze(["head", "stem"], verbose=False)], 4, limit_val_batches=0).fit(
                Net(), Batches(2), ckpt_path=str(tmp_path / "last.ckpt"), **TRUSTED
            )


def test_a_penalty_of_the_slope_does_not_hide_the_order_of_the_layers() -> None:
    class Turned(Penalty):
        def __init__(self) -> None:
            super().__init__()
            stem, mid, head = self.stem, self.mid, self.head
            del self.stem, self.mid, self.head
            self.head, self.mid, self.stem = head, mid, stem  # registered against the order of use

    gradual = GradualUnfreeze("auto", verbose=False)
    trainer([gradual], 3, limit_val_batches=0).fit(Turned(), Batches(3))
    assert [patterns for _, patterns in gradual.signature] == [["head"], ["mid"], ["stem"]]
