"""Every torch optimizer that takes groups, in real runs: what is frozen does not move, what is not frozen does."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import STAGES, Net, Spy, fit, moved, names_in, tensors, trainable
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer, SparseAdam

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, LayerwiseLR, OptimizerError

OPTIMIZERS = sorted(
    (cls for cls in vars(torch.optim).values() if inspect.isclass(cls) and issubclass(cls, Optimizer)), key=str
)
GROUPED = [cls for cls in OPTIMIZERS if cls not in (Optimizer, LBFGS)]
Muon = getattr(torch.optim, "Muon", None)  # since torch 2.9
WANTED = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "lr": 0.05}
NO_FUSED_ON_CPU = ("Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")


def plain(cls: Any) -> dict[str, Any]:
    return {key: value for key, value in WANTED.items() if key in inspect.signature(cls).parameters}


def variants() -> list[Any]:
    return [
        pytest.param(cls, plain(cls) | ({switch: True} if switch else {}), id=f"{cls.__name__} {switch}")
        for cls in GROUPED
        for switch in ("", "foreach", "fused", "amsgrad", "centered", "maximize")
        if not switch or switch in inspect.signature(cls).parameters
        if not (switch == "fused" and cls.__name__ in NO_FUSED_ON_CPU)
    ]


class Matrices(Net):
    """Only 2-D parameters, for Muon; BatchNorm without affine keeps its buffers."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for part in (self.stem, self.mid):
            part[0], part[1] = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=False)
        self.head = nn.Linear(4, 3, bias=False)


class Tables(Net):
    """Embeddings with sparse gradients, for SparseAdam."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stem, self.mid, self.head = (nn.Embedding(4, 3, sparse=True) for _ in range(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens = inputs.argmax(1)
        return self.stem(tokens) * self.mid(tokens) + self.head(tokens)


MODELS = {Muon: Matrices, SparseAdam: Tables}


class EveryEpoch(pl.Callback):
    """Compares what moved, what the optimizer holds and what requires a gradient with the stages that should train.

    A whole stage trains or none of it, in `schedule[epoch]`; the BatchNorm buffers go with it.
    """

    def __init__(self, schedule: list[set[str]]) -> None:
        self.schedule = schedule
        self.epochs = 0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.before = tensors(module)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        stages = self.schedule[trainer.current_epoch]
        expected = {name for name in self.before if name.partition(".")[0] in stages}
        assert moved(self.before, tensors(module)) == expected, trainer.current_epoch
        parameters = [name for name, _ in module.named_parameters() if name in expected]
        assert trainable(module) == parameters
        assert sorted(names_in(module, trainer.optimizers)) == sorted(parameters)
        assert all(parameter.grad is None for parameter in module.parameters() if not parameter.requires_grad)
        for optimizer in trainer.optimizers:
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            assert {id(parameter) for parameter in optimizer.state} <= held
            assert len(optimizer.state_dict()["param_groups"]) == len(optimizer.param_groups)
        self.epochs += 1


THREE = {"head", "mid", "stem"}
SCHEDULE = [{"head"}, {"head", "mid"}, THREE, {"head", "stem"}, THREE]


def callbacks(*more: Any, placement: Any = "keep") -> list[Any]:
    return [
        GradualUnfreeze(STAGES, verbose=False),
        FreezeLayers("mid", 3, 4, optimizer_state=placement),
        EveryEpoch(SCHEDULE),
        *more,
    ]


def run(model: Net, *more: Any, placement: Any = "keep") -> pl.Trainer:
    used = callbacks(*more, placement=placement)
    trainer = fit(model, used, epochs=5, limit_val_batches=0)  # before a validation Lightning clears all gradients
    assert used[2].epochs == 5
    return trainer


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(("cls", "options"), variants())
def test_frozen_stays_bit_identical_and_the_rest_trains(cls: Any, options: Any, set_to_none: bool) -> None:
    class Zeroing(MODELS.get(cls, Net)):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
            optimizer.zero_grad(set_to_none=set_to_none)

    run(Zeroing(lambda module: cls(module.parameters(), **options)), LayerwiseLR(0.5))


@pytest.mark.parametrize("placement", ["keep", "drop", "cpu"])
@pytest.mark.parametrize("cls", [cls for cls in GROUPED if cls not in MODELS], ids=lambda cls: cls.__name__)
def test_state_of_what_leaves_comes_back_or_starts_anew(cls: Any, placement: str) -> None:
    states: list[dict[str, Any]] = []

    def look(trainer: Any, module: Any) -> None:
        state = trainer.optimizers[0].state.get(module.mid[0].weight, {})
        states.append({key: torch.as_tensor(value).clone() for key, value in state.items() if value is not None})

    run(
        Net(lambda module: cls(module.parameters(), **plain(cls))),
        Spy("on_train_epoch_end", look),
        Spy("on_train_batch_start", look),
        placement=placement,
    )
    end_of = states[2::3]  # two batches, then the end of the epoch
    assert states[9] == {}  # frozen in epoch 3
    back = states[12]
    if placement != "drop":
        assert end_of[2].keys() == back.keys()
        assert end_of[2]
        assert all(torch.equal(value, back[key]) for key, value in end_of[2].items())
    else:
        assert back == {} or all(float(value.abs().max()) == 0 for value in back.values())


# ---- how an optimizer was built


def test_an_optimizer_built_from_what_requires_a_gradient_is_complete_all_the_same() -> None:
    run(Net(lambda module: AdamW([p for p in module.parameters() if p.requires_grad], lr=0.05)))


def test_a_tensor_as_rate_is_scaled_and_no_two_slots_share_it() -> None:
    model = Net(lambda module: AdamW(module.parameters(), lr=torch.tensor(0.05)))
    trainer = run(model, LayerwiseLR(0.5))
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert sorted(map(float, rates)) == pytest.approx([0.0125, 0.025, 0.05])
    assert len({id(rate) for rate in rates}) == 3


def test_param_names_stay_in_step_with_the_parameters() -> None:
    def look(trainer: Any, module: Any) -> None:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in trainer.optimizers[0].param_groups:
            assert group["param_names"] == [names[id(parameter)] for parameter in group["params"]]
        trainer.optimizers[0].state_dict()

    spy = Spy("on_train_epoch_end", look)
    run(Net(lambda module: SGD(module.named_parameters(), lr=0.1, momentum=0.9)), LayerwiseLR(0.5), spy)
    assert len(spy.seen) == 5


def test_the_users_own_groups_keep_everything_but_their_rate() -> None:
    def groups(module: Any) -> Any:
        biases = [parameter for parameter in module.parameters() if parameter.ndim == 1]
        weights = [parameter for parameter in module.parameters() if parameter.ndim > 1]
        return SGD(
            [
                {"params": weights, "weight_decay": 0.1, "momentum": 0.5, "note": {"of": ["mine"]}},
                {"params": biases, "weight_decay": 0.0, "lr": 0.01},
            ],
            lr=0.1,
            momentum=0.9,
        )

    model = Net(groups)
    found = []

    def look(trainer: Any, _: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            dims = {parameter.ndim > 1 for parameter in group["params"]}
            assert len(dims) <= 1
            keys = ("lr", "weight_decay", "momentum", "note")
            found.append((group["name"], *(group.get(key) for key in keys), *dims))

    fit(model, [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5), Spy("on_train_start", look)])
    note = {"of": ["mine"]}
    assert found == [
        ("stem/pg1", 0.025, 0.1, 0.5, note),
        ("mid/pg1", 0.05, 0.1, 0.5, note),
        ("head/pg1", 0.1, 0.1, 0.5, note, True),
        ("stem/pg2", 0.0025, 0.0, 0.9, None),
        ("mid/pg2", 0.005, 0.0, 0.9, None),
        ("head/pg2", 0.01, 0.0, 0.9, None, False),
    ]


@pytest.mark.parametrize("cls", [SGD, torch.optim.Adagrad], ids=["SGD", "Adagrad"])
def test_parameters_in_no_optimizer_join_their_siblings(cls: Any) -> None:
    def only_some(module: Any) -> Any:
        mine = [("stem", module.stem[0].weight), ("head", module.head.weight)]
        return cls(
            [{"params": [("x." + name, parameter)], "lr": 0.1 if name == "head" else 0.2} for name, parameter in mine]
        )

    model = Net(only_some)
    model.mid.requires_grad_(False)  # not the policy's to train, so nothing has to be found for it
    spy = Spy("on_train_epoch_end", lambda trainer, module: names_in(module, trainer.optimizers))
    trainer = fit(model, [GradualUnfreeze(["head", "stem"], verbose=False), spy], epochs=2)
    assert spy.seen[0] == ["head.weight", "head.bias"]
    assert spy.seen[1] == ["stem.0.weight", "stem.1.weight", "stem.1.bias", "head.weight", "head.bias"]
    groups = trainer.optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [0.2, 0.1]
    assert groups[1]["param_names"] == ["x.head", "head.bias"]


def test_a_parameter_whose_siblings_are_in_several_groups_is_refused() -> None:
    def no_mid(module: Any) -> Any:
        return SGD([{"params": module.stem.parameters()}, {"params": module.head.parameters(), "lr": 1.0}], lr=0.1)

    with pytest.raises(OptimizerError, match=r"'mid\.0\.weight' is to be trained but is in no optimizer.*2 groups"):
        fit(Net(no_mid), [GradualUnfreeze(STAGES, verbose=False)])


@pytest.mark.skipif(Muon is None, reason="this torch has no Muon")
def test_a_parameter_that_the_only_optimizer_cannot_take_is_refused_before_training() -> None:
    def matrices(module: Any) -> Any:
        return Muon([parameter for parameter in module.parameters() if parameter.ndim == 2], lr=0.1)

    with pytest.raises(OptimizerError, match=r"'stem\.1\.weight'.*Muon"):
        fit(Net(matrices), [GradualUnfreeze(STAGES, verbose=False)])


def test_a_parameter_left_out_on_purpose_stays_out_of_what_only_freezes() -> None:
    model = Net(lambda module: SGD(module.head.parameters(), lr=0.1))
    trainer = fit(model, [FreezeLayers("stem"), FreezeLayers("mid")])
    assert names_in(model, trainer.optimizers) == ["head.weight", "head.bias"]


def test_what_was_frozen_before_the_fit_is_in_no_group_even_when_nothing_else_changes() -> None:
    model = Net()
    model.stem.requires_grad_(False)
    spy = Spy(
        "on_train_batch_start", lambda trainer, module: {name[:4] for name in names_in(module, trainer.optimizers)}
    )
    fit(model, [LayerwiseLR(multipliers={"head": 2.0}), spy], epochs=1)
    assert spy.seen == [{"mid.", "head"}] * 2


def test_a_parameter_that_is_not_the_models_trains_on() -> None:
    extra = nn.Parameter(torch.ones(1))

    class Scaled(Net):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) * extra

    seen = Spy("on_train_epoch_end", lambda trainer, module: extra.item())
    fit(
        Scaled(lambda module: SGD([*module.parameters(), extra], lr=0.1)),
        [GradualUnfreeze(STAGES, verbose=False), seen],
    )
    assert len(set(seen.seen)) == 3


def test_lbfgs_is_refused_by_name() -> None:
    with pytest.raises(OptimizerError, match="LBFGS takes a single parameter group"):
        fit(Net(lambda module: LBFGS(module.parameters())), [GradualUnfreeze(STAGES, verbose=False)])


def test_an_optimizer_that_has_no_rate_is_refused_by_name() -> None:
    """As Adafactor of transformers, which makes its rates from the number of steps."""

    class Relative(SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.1)
            self.param_groups[0]["lr"] = None

    with pytest.raises(OptimizerError, match=r"Relative has no learning rate in its groups \(lr=None\)"):
        fit(Net(lambda module: Relative(module.parameters())), [GradualUnfreeze(STAGES)])


def test_an_optimizer_that_outlives_a_fit_is_not_scaled_twice() -> None:
    model = Net()
    kept = AdamW(model.parameters(), lr=0.05)
    model.optimizers_of = lambda _: kept
    for _ in range(2):  # nothing is scaled: it goes on
        fit(model, [GradualUnfreeze(STAGES, verbose=False)])
        assert sorted(names_in(model, [kept])) == sorted(name for name, _ in model.named_parameters())
        assert [(group["name"], group["lr"]) for group in kept.param_groups] == [
            (name, 0.05) for name in ("stem", "mid", "head")
        ]
    fit(model, [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5)])
    with pytest.raises(OptimizerError, match="AdamW of an earlier fit, whose rates or options are set"):
        fit(model, [GradualUnfreeze(STAGES, verbose=False), LayerwiseLR(0.5)])


@pytest.mark.parametrize("cls", [SGD, AdamW, torch.optim.Adagrad])
def test_an_optimizer_that_outlives_a_fit_is_whole_in_the_next_one(cls: Any) -> None:
    model = Net()
    weights, others = ([p for p in model.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    kept = cls([{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.05)
    model.optimizers_of = lambda _: kept
    with pytest.warns(UserWarning, match="never unfrozen: stem"):
        fit(model, [GradualUnfreeze(STAGES, verbose=False)], epochs=2)
    before = tensors(model)
    fit(model, [GradualUnfreeze(STAGES, verbose=False), FreezeLayers("mid", 1, 2, optimizer_state="drop")])
    assert moved(before, tensors(model)) == set(before)
    found = {group["name"]: (group["weight_decay"], len(group["params"])) for group in kept.param_groups}
    assert found == {
        **{f"{stage}/pg1": (0.1, 1) for stage in STAGES},
        **{f"{stage}/pg2": (0.0, 1 if stage == "head" else 2) for stage in STAGES},
    }


def test_an_optimizer_that_brings_state_for_a_part_of_the_model_gets_the_rest_as_it_comes() -> None:
    """As after a warm start of the head: AdamW keeps more defaults than its constructor takes."""

    def warm(module: Any) -> Any:
        optimizer = AdamW(module.parameters(), lr=0.05)
        nn.functional.cross_entropy(module.head(torch.zeros(2, 4)), torch.zeros(2, dtype=torch.long)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return optimizer

    run(Net(warm), placement="drop")


class TwoOptimizers(Net):
    """Manual optimization: one optimizer for the head, one for the rest; toggled, as for a GAN."""

    def __init__(self) -> None:
        super().__init__(
            lambda m: [AdamW(m.head.parameters(), lr=0.05), AdamW([*m.stem.parameters(), *m.mid.parameters()], lr=0.05)]
        )
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            if loss.requires_grad:  # the other optimizer may have nothing to train yet
                self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)


def test_several_optimizers_under_manual_optimization() -> None:
    run(TwoOptimizers(), LayerwiseLR(0.5), GradualUnfreeze(STAGES, warmup_steps=2, verbose=False))


def test_norm_layers_frozen_for_good_leave_the_optimizer_for_good() -> None:
    model = Net(lambda module: AdamW(module.parameters(), lr=0.05))
    before = tensors(model)
    trainer = fit(model, [GradualUnfreeze(STAGES, verbose=False), BatchNormEval(affine="freeze")], epochs=4)
    norms = {name for name in before if name.split(".")[1] == "1"}
    assert moved(before, tensors(model)) == set(before) - norms
    assert set(names_in(model, trainer.optimizers)) == {name for name, _ in model.named_parameters()} - norms
