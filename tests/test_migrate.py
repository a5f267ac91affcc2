"""Other packages' arguments give the same trainable parameters and the same rates in every epoch."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Batches, trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn

from lightning_freeze import FreezeError, PlanError, select
from lightning_freeze.migrate import backbone_finetuning, fine_tune, finetuning_schedule

SCHEDULE = {
    0: {"params": ["head.weight", "head.bias"], "max_transition_epoch": 1},
    1: {"params": ["backbone.(3|4).*"], "max_transition_epoch": 3, "lr": 2.0e-2},
    2: {"params": ["backbone.[01]"], "max_transition_epoch": 4},
}
Log = list[dict[str, tuple[float, float]]]  # for each step: parameter -> its rate and momentum


class Recording(torch.optim.SGD):
    """Notes what each parameter is updated with."""

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups  # as the update uses them; the base class's step puts them back at its end
        self.seen: dict[int, tuple[float, float]] = {
            id(p): (float(group["lr"]), float(group["momentum"])) for group in groups for p in group["params"]
        }
        super().step()
        return loss


class Net(LightningModule):
    def __init__(self, optimized: str = "all", norm: Any = nn.BatchNorm1d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 4), norm(4), nn.ReLU(), nn.Linear(4, 4), norm(4))
        self.head = nn.Linear(4, 3)
        self.optimized = optimized
        self.log_of_steps: Log = []
        self.trainable: list[list[str]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.trainable.append([name for name, p in self.named_parameters() if p.requires_grad])
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def on_train_batch_end(self, *_: Any) -> None:
        seen = self.trainer.optimizers[0].seen
        self.log_of_steps.append(
            {name: seen[id(p)] for name, p in self.named_parameters() if p.requires_grad and id(p) in seen}
        )

    def configure_optimizers(self) -> Any:
        wanted = [p for p in self.parameters() if p.requires_grad or self.optimized == "all"]
        return Recording(wanted, lr=0.1, momentum=0.9)


def run(model: Net, callbacks: Any, epochs: int = 7, steps: int = 2, **options: Any) -> Net:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(callbacks, epochs, **options).fit(model, Batches(steps))
    return model


def rates(model: Net, name: str, steps: int = 2) -> list[float]:
    """The rate of a parameter in the first step of each epoch; 0 where it does not train."""
    return [step.get(name, (0.0, 0.0))[0] for step in model.log_of_steps[::steps]]


@pytest.mark.parametrize(
    ("options", "norm"),
    [
        ({}, nn.BatchNorm1d),
        ({}, nn.LayerNorm),
        ({"backbone_initial_ratio_lr": 0.5, "lambda_func": lambda epoch: 1.5, "should_align": False}, nn.BatchNorm1d),
        ({"backbone_initial_lr": 0.002, "lambda_func": lambda epoch: 1.0}, nn.BatchNorm1d),
    ],
    ids=["defaults", "a backbone without BatchNorm", "own growth, not aligned", "absolute rate"],
)
def test_backbone_finetuning_trains_the_same_at_the_same_rates(options: dict[str, Any], norm: Any) -> None:
    theirs = run(Net("trainable", norm), [BackboneFinetuning(unfreeze_backbone_at_epoch=2, **options)])
    mine = run(Net("all", norm), backbone_finetuning(unfreeze_backbone_at_epoch=2, lr=0.1, **options))

    assert mine.trainable == theirs.trainable
    for name, _ in mine.named_parameters():
        assert rates(mine, name) == pytest.approx(rates(theirs, name)), name


def test_without_train_bn_batchnorm_of_the_backbone_never_trains() -> None:
    mine = run(Net(), backbone_finetuning(2, train_bn=False), epochs=3)

    assert mine.trainable[0] == ["head.weight", "head.bias"]
    assert mine.trainable[2] == [n for n, _ in mine.named_parameters() if n not in select(mine, "kind:norm")]


def test_what_backbone_finetuning_cannot_know_is_said() -> None:
    with pytest.warns(UserWarning, match=r"backbone_initial_lr=0.01 is absolute.*give lr="):
        backbone_finetuning(backbone_initial_lr=0.01)
    with pytest.warns(UserWarning, match=r"lambda_func varies from epoch to epoch.*: 1.2 is used"):
        backbone_finetuning(10, lambda_func=lambda epoch: 1.0 + epoch / 60)


@pytest.mark.zoo
@pytest.mark.parametrize("schedule", [SCHEDULE, None], ids=["names and expressions", "made of the model"])
def test_a_schedule_trains_the_same_at_the_same_rates_as_with_finetuning_scheduler(
    schedule: Any, tmp_path: Path
) -> None:
    scheduler = pytest.importorskip("finetuning_scheduler")
    model = Net()
    if schedule is None:
        names = [name for name, _ in model.named_parameters()][::-1]
        pairs = [names[at : at + 2] for at in range(0, len(names), 2)]
        given: Any = {k: {"params": pair, "max_transition_epoch": k + 1} for k, pair in enumerate(pairs)}
    else:
        given = schedule
    there = scheduler.FinetuningScheduler(
        ft_schedule=copy.deepcopy(given), epoch_transitions_only=True, restore_best=False, log_dir=str(tmp_path)
    )
    theirs = run(Net(), [there], enable_checkpointing=True, default_root_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        here = finetuning_schedule(given, epoch_transitions_only=True, restore_best=False, lr=0.1)
        implicit = finetuning_schedule(None, model=model)[0].stages
    mine = run(model, here)

    assert mine.trainable == theirs.trainable
    for name, _ in mine.named_parameters():
        assert rates(mine, name) == pytest.approx(rates(theirs, name)), name
    if schedule is None:
        assert [stage.patterns for stage in implicit] == pairs


@pytest.mark.filterwarnings("ignore")
def test_a_schedule_with_early_stopping_becomes_a_metric_trigger_with_limits() -> None:
    (callback,) = finetuning_schedule(SCHEDULE, lr=0.1, monitor="val", patience=2, base_max_lr=1e-3)

    assert (callback.monitor, callback.patience, callback.restore_best) == ("val", 2, True)
    assert [(stage.factor, stage.max_epochs) for stage in callback.stages] == [
        (None, 1),
        (pytest.approx(0.2), 2),
        (pytest.approx(0.01), None),
    ]
    assert len(finetuning_schedule(SCHEDULE, lr=0.1, max_depth=1)[0].stages) == 2
    assert finetuning_schedule()[0].stages == "auto"


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        ("no.yaml", {}, "schedule no.yaml cannot be read"),
        ({1: {"params": ["a"]}}, {}, r"must be numbered 0, 1, 2, ..., got \[1\]"),
        ({0: {"lr": 0.1}}, {}, "phase 0 of the schedule has no list `params`"),
        ({0: {"params": ["a"]}, 1: {"params": ["b"]}}, {"epoch_transitions_only": True}, "needs max_transition_epoch"),
        ({0: {"params": ["a"]}}, {"max_dept": 1}, "FinetuningScheduler has no argument max_dept"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_schedule_is_refused(schedule: Any, options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        finetuning_schedule(schedule, **options)


def fastai_rates(train_bn: bool) -> Log:
    import fastai.callback.progress  # both add methods to Learner
    import fastai.callback.schedule  # noqa: F401
    from fastai.callback.core import Callback

    seen: Log = []

    class Note(Callback):
        order = 60  # after the scheduler's

        def before_step(self) -> None:
            groups = zip(self.opt.param_lists, self.opt.hypers, strict=True)
            self.note = {id(p): (hyper["lr"], hyper["mom"]) for group, hyper in groups for p in group}
            names = {id(p): name for name, p in self.model.named_parameters()}
            moving = [p for group in self.opt.param_lists for p in group if p.requires_grad]
            seen.append({names[id(p)]: self.note[id(p)] for p in moving})

    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner

    data = [(x, y) for batch in Batches(2).all for x, y in zip(*batch, strict=True)]
    loaders = DataLoaders(*[DataLoader(data, bs=8, shuffle=False) for _ in range(2)])
    net = Net()
    network = nn.Sequential()
    network.add_module("backbone", net.backbone)
    network.add_module("head", net.head)
    learner = Learner(
        loaders, network, loss_func=nn.CrossEntropyLoss(), train_bn=train_bn, cbs=[Note()],
        splitter=lambda model: [list(model.backbone.parameters()), list(model.head.parameters())],
    )  # fmt: skip
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(3, base_lr=0.1, freeze_epochs=2, lr_mult=50)
    return seen


@pytest.mark.zoo
@pytest.mark.parametrize("train_bn", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_fine_tune_trains_the_same_at_the_same_rates_as_fastai(train_bn: bool) -> None:
    pytest.importorskip("fastai.learner")
    theirs = fastai_rates(train_bn)
    mine = run(Net(), fine_tune("head", 3, freeze_epochs=2, lr_mult=50, train_bn=train_bn), epochs=5).log_of_steps

    assert len(mine) == len(theirs) == 10
    for step, (here, there) in enumerate(zip(mine, theirs, strict=True)):
        assert set(here) == set(there), step
        for name, (rate, momentum) in there.items():
            own = 0.2 if step < 4 and name.startswith("backbone") else 1.0  # a tenth there, a fiftieth here
            assert here[name] == pytest.approx((rate * own, momentum), rel=1e-4), (step, name)


def test_fine_tune_says_what_belongs_elsewhere_and_refuses_what_cannot_be() -> None:
    with pytest.warns(UserWarning, match=r"base_lr=0.002 belongs into your optimizer"):
        fine_tune("head", 2, base_lr=0.002)
    with pytest.raises(FreezeError, match="lr_mult must be at least 1"):
        fine_tune("head", 2, lr_mult=0.1)
    with pytest.raises(FreezeError, match="epochs must be a whole number"):
        fine_tune("head", 0)


def test_groups_between_head_and_input_have_rates_in_even_steps() -> None:
    mine = run(Net(), fine_tune("head", 1, freeze_epochs=0, lr_mult=100, body=["backbone.3"]), epochs=1, steps=10)
    step = mine.log_of_steps[5]

    assert step["head.weight"][0] == pytest.approx(10 * step["backbone.3.weight"][0])
    assert step["head.weight"][0] == pytest.approx(100 * step["backbone.0.weight"][0])
