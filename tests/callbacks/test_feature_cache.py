"""Weights are those of the run without a cache, bit for bit, whatever the model does."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from cached_models import ROWS, WIDTH, Counted, Model, Rows, block, frozen, gradual
from helpers import Spy, tensors, trainer
from torch import Tensor, nn

from lightning_freeze import BatchNormEval, FeatureCache, FreezeLayers, PlanError


def train(
    model: pl.LightningModule,
    callbacks: list[Any],
    data: Any = None,
    epochs: int = 4,
    shuffle: bool = True,
    **options: Any,
) -> pl.LightningModule:
    pl.seed_everything(7, verbose=False)
    loader = torch.utils.data.DataLoader(Rows() if data is None else data, batch_size=8, shuffle=shuffle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callbacks, epochs, **options).fit(model, loader, torch.utils.data.DataLoader(Rows(), batch_size=8))
    model.warned = [str(one.message) for one in caught if "FeatureCache" in str(one.message)]  # type: ignore[assignment]
    return model


def both(
    make: Callable[[], pl.LightningModule],
    policies: Callable[[], list[Any]] = frozen,
    cache: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """The same run without and with a cache; their weights and losses are equal bit for bit."""
    plain = train(make(), policies(), **options)
    cached = train(make(), [cache or FeatureCache(), *policies()], **options)
    assert plain.losses == cached.losses
    for name, value in tensors(plain).items():
        assert torch.equal(value, tensors(cached)[name]), name
    return plain, cached


def work(model: Any, part: str = "mid") -> int:
    return sum(getattr(model, part).seen)


# ---- what is served


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_row_is_computed_about_once(shuffle: bool) -> None:
    plain, cached = both(Model, shuffle=shuffle)
    assert work(plain) == 4 * ROWS
    assert work(cached) < 2.5 * ROWS
    assert not cached.warned


@pytest.mark.parametrize("order", [1, -1])
def test_the_boundary_moves_when_stages_are_unfrozen(order: int, capsys: pytest.CaptureFixture[str]) -> None:
    plain = train(Model(), gradual(), epochs=9)
    cached = train(Model(), [*gradual(), FeatureCache()][::order], epochs=9)
    assert plain.losses == cached.losses
    assert all(torch.equal(value, tensors(cached)[name]) for name, value in tensors(plain).items())
    assert work(cached, "stem") < 0.9 * work(plain, "stem")
    said = capsys.readouterr().out
    assert "what comes out of 'mid' is kept" in said
    assert "what comes out of 'stem' is kept" in said
    assert said.count("rows served") == 2
    assert not cached.warned


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}]
)
def test_options_of_the_trainer_change_nothing(options: Any) -> None:
    plain, cached = both(Model, **options)
    assert work(cached) < 0.7 * work(plain)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_a_context_of_the_users_around_the_frozen_part_is_followed(context: Any) -> None:
    class Within(Model):
        def features(self, inputs: Tensor) -> Tensor:
            with context():
                out = super().features(inputs)
            return out.float().clone()

    plain, cached = both(Within, epochs=6, limit_val_batches=0)
    assert work(cached, "stem") < 0.7 * max(work(plain, "stem"), 6 * ROWS)
    assert not cached.warned


def test_values_that_are_logged_are_there() -> None:
    class Logging(Model):
        def features(self, inputs: Tensor) -> Tensor:
            first = self.stem(inputs)
            self.log("first", first.mean())
            return self.mid(first)

        def on_train_batch_end(self, *_: Any) -> None:
            self.losses.append(float(self.trainer.callback_metrics["first"]))

    plain, cached = both(Logging, log_every_n_steps=1)
    assert work(cached, "stem") < 0.7 * work(plain, "stem")


def test_rows_that_differ_in_the_zeros_behind_them_only_are_not_the_same() -> None:
    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.Linear(1, WIDTH)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.each(inputs.unsqueeze(-1)).mean(1)

    class Pooled(Model):
        def __init__(self) -> None:
            super().__init__()
            self.mid = Pooling()

        def features(self, inputs: Tensor) -> Tensor:
            return self.mid(inputs)

    class Padding:
        """In later epochs the second batch is padded to another length."""

        def __init__(self) -> None:
            self.epoch, self.rows = 0, Rows(rows=16).data

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            self.epoch += 1
            first, second = self.rows[0][:, :7].split(8)
            second = nn.functional.pad(second, (0, int(self.epoch > 3)))
            yield from zip((first, second), self.rows[1].split(8), strict=True)

    losses = []
    for callbacks in ([], [FeatureCache()]):
        model = Pooled()
        trainer([*callbacks, *frozen("stem", "mid")], 6, limit_val_batches=0).fit(model, Padding(), Padding())
        losses.append(model.losses)
    assert losses[0] == losses[1]


def test_a_mixed_batch_computes_only_what_is_missing() -> None:
    class Growing(Rows):
        """Each epoch half of the rows are new."""

        epoch = 0

        def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
            Growing.epoch += row == 0
            return self.data[0][row] + (Growing.epoch if row % 2 else 0), self.data[1][row]

    def data() -> Growing:
        Growing.epoch = 0
        return Growing(rows=32)

    plain = train(Model(), frozen(), data(), 8)
    cached = train(Model(), [FeatureCache(), *frozen()], data(), 8)
    assert plain.losses == cached.losses
    assert work(cached) < 0.8 * work(plain)
    assert 4 in cached.mid.seen


def test_rows_that_do_not_fit_are_computed_and_the_others_served() -> None:
    row = WIDTH * 4
    plain, cached = both(lambda: Model(), cache=FeatureCache(max_gb=20 * row / 2**30), epochs=8, data=Rows(rows=32))
    assert 0.3 * work(plain) < work(cached) < work(plain)


# ---- models that are not a chain


class Glued(Model):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(WIDTH))
        self.position = nn.Parameter(torch.ones(WIDTH))

    def features(self, inputs: Tensor) -> Tensor:
        between = nn.functional.gelu(self.stem(inputs)) + self.position - self.shift
        return self.mid(between.view(len(inputs), 2, -1).transpose(1, 2).reshape(len(inputs), -1) * 0.5)


class Skip(Model):
    def features(self, inputs: Tensor) -> Tensor:
        first = self.stem(inputs)
        return self.mid(first) + first


class Late(Model):
    """What comes from the stem is used in the loss."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        first = self.stem(batch[0])
        out = self.head(self.mid(first))
        loss = nn.functional.cross_entropy(out, batch[1]) + (first.mean() * out).sum()
        self.losses.append(loss.item())
        return loss


class Hooked(Late):
    """A hook collects what an inner layer made."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []
        self.mid.layers[0].register_forward_hook(lambda module, args, out: self.kept.append(out))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        out = self.head(self.mid(self.stem(batch[0])))
        loss = nn.functional.cross_entropy(out, batch[1]) * self.kept.pop().exp().mean()
        self.losses.append(loss.item())
        return loss


class Branching(Model):
    """Which way a batch goes hangs on its values."""

    def features(self, inputs: Tensor) -> Tensor:
        first = self.stem(inputs)
        return self.mid(first) if first.sum() > 30 else first


class BranchingLater(Model):
    """As that, but not in the first steps."""

    def features(self, inputs: Tensor) -> Tensor:
        first = self.stem(inputs)
        if self.current_epoch > 1 and first.sum() > 30:
            return self.mid(first) * first.max()
        return self.mid(first)


class Phases(Model):
    """Another function in later epochs, without a look at values."""

    def features(self, inputs: Tensor) -> Tensor:
        scale = 1.0 if self.current_epoch < 3 else 2.0
        return self.mid(nn.functional.relu(self.stem(inputs)) * scale)


class Coupled(Model):
    """Rows hang on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = Across(nn.Linear(WIDTH, WIDTH))


class Across(Counted):
    def forward(self, inputs: Tensor) -> Tensor:
        out = super().forward(inputs)
        return out - out.mean(0)


class Conditioned(Model):
    """Something of the batch comes in by the side."""

    def features(self, inputs: Tensor) -> Tensor:
        self.mid.aside = inputs.roll(1, 0) * self.current_epoch
        return self.mid(self.stem(inputs))

    def __init__(self) -> None:
        super().__init__()
        self.mid = Aside(nn.Linear(WIDTH, WIDTH))


class Aside(Counted):
    aside: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + self.aside


class Mixed(Model):
    """Another row of the batch comes in between two parts."""

    def features(self, inputs: Tensor) -> Tensor:
        aside = inputs.roll(1, 0)
        return self.mid(self.stem(inputs) + aside)


class Noisy(Model):
    def features(self, inputs: Tensor) -> Tensor:
        return self.mid(self.stem(inputs) + 0.1 * torch.randn(len(inputs), WIDTH))


class Dropping(Model):
    def features(self, inputs: Tensor) -> Tensor:
        return self.mid(nn.functional.dropout(self.stem(inputs), 0.5))


class Twice(Model):
    """Two views of each row, as in contrastive learning."""

    def features(self, inputs: Tensor) -> Tensor:
        return self.mid(self.stem(inputs)) * self.mid(self.stem(inputs.flip(1)))


class Borrowing(Model):
    """In later epochs a part runs with other weights for the length of a call."""

    def features(self, inputs: Tensor) -> Tensor:
        scale = 1.0 if self.current_epoch < 3 else 1.5
        own = {name: weight if scale == 1 else weight * scale for name, weight in self.mid.named_parameters()}
        return torch.func.functional_call(self.mid, own, (self.stem(inputs),))


class Writing(Model):
    """A part writes into a view of what went in, which is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.stem = nn.Flatten(), Counted(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs = batch[0].clone().view(-1, 4, 4)
        loss = nn.functional.cross_entropy(self.head(self.features(self.flat(inputs))), batch[1])
        loss = loss + (self.head.weight @ inputs.flatten(1).T).square().mean()
        self.losses.append(loss.item())
        return loss


class Chance(Counted):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (2.0 if np.random.random() < 0.2 else 1.0)


class Chancy(Model):
    """Random numbers of numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = Chance(nn.Linear(WIDTH, WIDTH))


class Turned(Model):
    """Rows whose numbers do not lie in order."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = Turning(nn.Linear(WIDTH, WIDTH))

    def features(self, inputs: Tensor) -> Tensor:
        return self.mid(self.stem(inputs)).flatten(1)


class Turning(Counted):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).view(-1, 4, 4).transpose(1, 2)


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = block()

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        out = self.inner(inputs)
        return {"one": out, "other": out * 2}


class Several(Model):
    """A part with two outputs, one of which is used."""

    def __init__(self) -> None:
        super().__init__()
        self.mid = Tuple()

    def features(self, inputs: Tensor) -> Tensor:
        return self.mid(self.stem(inputs))["other"]


class SeveralUsed(Several):
    def features(self, inputs: Tensor) -> Tensor:
        out = self.mid(self.stem(inputs))
        return out["one"] * out["other"]


class InPlace(Model):
    """The head writes into what it is given."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.head(self.features(batch[0]).mul_(2).sigmoid_()), batch[1])
        self.losses.append(loss.item())
        return loss


class Statistics(Model):
    """A buffer of the model follows the values between two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def features(self, inputs: Tensor) -> Tensor:
        first = self.stem(inputs)
        self.mean.mul_(0.9).add_(first.mean(0), alpha=0.1)
        return self.mid(first)


class Returned(Model):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        first = self.stem(batch[0])
        loss = nn.functional.cross_entropy(self.head(self.mid(first)), batch[1])
        self.losses.append(loss.item())
        return {"loss": loss, "first": first}


class Prompted(Model):
    """Something that trains comes before what is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(WIDTH))

    def features(self, inputs: Tensor) -> Tensor:
        return self.mid(self.stem(inputs) + self.prompt)


class Attending(Model):
    """torch's own attention takes a faster way, with other bits, where nothing trains and nobody watches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.aside = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def features(self, inputs: Tensor) -> Tensor:
        out = self.layer(self.stem(inputs).view(-1, 2, 8)) * 2
        out = self.mid(self.attention(out, out, out)[0].flatten(1)).clone()
        return self.head.weight.sum() + out + self.aside(inputs.view(-1, 2, 8)).flatten(1)


SAVES: dict[Any, tuple[str, float]] = {  # which part works how much less
    Glued: ("mid", 0.7),
    Skip: ("mid", 0.7),
    Late: ("mid", 0.7),
    SeveralUsed: ("stem", 0.7),
    Branching: ("stem", 0.7),
    Several: ("stem", 0.7),
    InPlace: ("mid", 0.7),
    Returned: ("stem", 0.7),
    Prompted: ("stem", 0.7),
    Hooked: ("stem", 0.7),
    Turned: ("mid", 0.7),
}
OTHERS = [
    Attending,
    BranchingLater,
    Phases,
    Coupled,
    Conditioned,
    Mixed,
    Noisy,
    Dropping,
    Twice,
    Statistics,
    Borrowing,
    Writing,
    Chancy,
]


@pytest.mark.parametrize("make", [*SAVES, *OTHERS], ids=lambda make: make.__name__)
def test_weights_are_the_same_bit_for_bit(make: Any) -> None:
    names = {Glued: ["position"], Attending: ["layer", "attention", "aside"]}.get(make, [])
    policies = lambda: frozen("stem", "mid", *names)  # noqa: E731
    plain, cached = both(make, policies, epochs=6)
    if make in SAVES:
        part, share = SAVES[make]
        assert work(cached, part) < share * work(plain, part)


@pytest.mark.parametrize(
    "make", [make for make in OTHERS if make not in (Coupled, Attending)], ids=lambda make: make.__name__
)
def test_all_but_rows_that_hang_on_each_other_is_found_without_a_comparison(make: Any) -> None:
    both(make, cache=FeatureCache(verify=False), epochs=6)


def test_rows_that_hang_on_each_other_are_said_with_the_name_of_the_module() -> None:
    said = train(Coupled(), [FeatureCache(), *frozen()], epochs=6).warned
    assert len(said) == 1, said
    assert "'mid' gives a row other values when it is computed in another batch" in said[0]


# ---- refused, or turned off


@pytest.mark.parametrize(("place", "said"), [(1, "BatchNorm1d in train mode"), (3, "Dropout in train mode")])
def test_layers_in_train_mode_inside_what_is_frozen_are_said(place: int, said: str) -> None:
    class One(Model):
        def __init__(self) -> None:
            super().__init__()
            for part in (self.stem, self.mid):
                for other in {1, 3} - {place}:
                    part.layers[other] = nn.Identity()

    cached = both(One, lambda: [FreezeLayers(["stem", "mid"], eval_frozen=False)])[1]
    assert any("'stem.layers." in text and said in text for text in cached.warned)


def test_dropout_at_the_border_just_ends_what_is_kept() -> None:
    class Bordered(Model):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.out = nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH)

        def features(self, inputs: Tensor) -> Tensor:
            return self.out(self.drop(self.mid(self.stem(inputs))))

    plain, cached = both(Bordered)
    assert work(cached) < 0.7 * work(plain)
    assert not cached.warned


def test_augmented_rows_are_never_stale_and_turn_it_off() -> None:
    plain, cached = both(Model, data=Rows(augment=True), epochs=5)
    assert work(cached) == work(plain)
    assert ["augmented at random" in text for text in cached.warned] == [True]


def test_augmentation_in_training_step_turns_it_off_too() -> None:
    class Flipping(Model):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return super().training_step((batch[0] * torch.rand(len(batch[0]), 1), batch[1]), batch_idx)

    plain, cached = both(Flipping, epochs=5)
    assert work(cached) == work(plain)
    assert len(cached.warned) == 1


@torch.no_grad()
def write(module: Any) -> None:
    module.stem.layers[0].weight.mul_(1.5)


def write_data(module: Any) -> None:
    module.stem.layers[0].weight.data.mul_(1.5)


def exchange(module: Any) -> None:
    module.stem.layers[0].weight.data = module.stem.layers[0].weight.data * 1.5


@torch.no_grad()
def write_buffer(module: Any) -> None:
    module.stem.layers[1].running_mean.add_(0.5)


def load(module: Any) -> None:
    module.stem.load_state_dict({name: value * 0.5 for name, value in module.stem.state_dict().items()})


def attribute(module: Any) -> None:
    module.stem.layers[1].eps = 0.1


def attributes(module: Any) -> None:
    module.mid.factors = (2.0, 1.0)


def hook(module: Any) -> None:
    module.stem.layers[0].register_forward_hook(lambda _, args, out: out * 2)


def child(module: Any) -> None:
    module.stem.layers[2] = nn.GELU()


def own_forward(module: Any) -> None:
    module.stem.layers[2].forward = torch.tanh


def write_sparse(module: Any) -> None:
    module.mid.edges.values().mul_(1.5)


@torch.inference_mode()
def assign(module: Any) -> None:
    module.mid.offset = module.mid.offset + 1.0


class Scaled(Counted):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.factors = 1.0, 2.0
        self.offset = torch.zeros(WIDTH)
        self.register_buffer("edges", torch.eye(WIDTH).to_sparse(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = super().forward(inputs) * self.factors[0] + self.offset.clone()
        return torch.sparse.mm(self.edges, scaled.t()).t()


EDITS = [write, write_data, exchange, write_buffer, load, attribute, attributes, hook, child, own_forward, write_sparse]
EDITS.append(assign)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start", "on_validation_end"])
def test_a_prefix_edited_in_the_middle_of_a_run_is_dropped(edit: Any, hook: str) -> None:
    class Edited(Model):
        edited = 0

        def __init__(self) -> None:
            super().__init__()
            self.mid = Scaled(*self.mid.layers)

        def edit(self, *_: Any) -> None:
            self.edited += 1
            if self.edited == 3 * (3 if hook == "on_train_batch_start" else 1) + 1 and not self.trainer.sanity_checking:
                edit(self)

    setattr(Edited, hook, Edited.edit)
    both(Edited, epochs=6)


def test_a_module_that_optimizes_by_hand_is_served() -> None:
    class Manual(Model):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()

    plain, cached = both(Manual)
    assert work(cached) < 0.7 * work(plain)
    assert not cached.warned


def test_a_compiled_part_turns_it_off() -> None:
    def compiled() -> Model:
        model = Model()
        model.mid.compile(backend="eager")
        return model

    assert "'mid' is compiled" in both(compiled, epochs=2)[1].warned[0]


def test_validation_has_the_values_it_has_without() -> None:
    class Seen(Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            out = self.features(batch[0])
            assert isinstance(out, Tensor)
            assert out.stride()[0] > 0
            self.losses.append(out.double().sum().item())

    both(Seen, data=Rows())


def test_an_error_in_a_served_step_is_the_users_and_comes_through() -> None:
    class Failing(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            if self.current_epoch == 3:
                raise RuntimeError("enough")
            return loss

    model = Failing()
    with pytest.raises(RuntimeError, match="enough"):
        train(model, [FeatureCache(), *frozen()])
    assert "training_step" not in vars(model)
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_feature_that_was_carried_away_has_its_values() -> None:
    class Carrying(Model):
        def features(self, inputs: Tensor) -> Tensor:
            self.first = self.stem(inputs)
            return self.mid(self.first)

        def on_train_batch_end(self, *_: Any) -> None:
            assert type(self.first) is Tensor
            self.losses.append(self.first.sum().item())

    plain, cached = both(Carrying)
    assert work(cached) < 0.7 * work(plain)


# ---- storage


def test_the_file_on_disk_is_used_and_removed(tmp_path: Path) -> None:
    sizes: list[int] = []
    spy = Spy("on_train_epoch_end", lambda *_: sizes.append(len(list(tmp_path.rglob("*.rows")))))
    plain, cached = both(Model, lambda: [*frozen(), spy], FeatureCache("disk", str(tmp_path), max_gb=0.01))
    assert work(cached) < 0.7 * work(plain)
    assert sizes[-4:] == [1] * 4
    assert not list(tmp_path.iterdir())


def test_the_file_is_removed_after_an_exception_too(tmp_path: Path) -> None:
    def fail(running: Any, _: Any) -> None:
        assert list(tmp_path.iterdir())
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        train(Model(), [*frozen(), FeatureCache("disk", str(tmp_path), 0.01), Spy("on_train_epoch_end", fail)])
    assert not list(tmp_path.iterdir())


def test_a_row_that_does_not_fit_turns_it_off() -> None:
    plain, cached = both(Model, cache=FeatureCache(max_gb=1e-9))
    assert work(cached) == work(plain)
    assert "a row takes 64 bytes" in cached.warned[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "tape"}, "storage must be one of 'memory', 'disk', got 'tape'"),
        ({"max_gb": 0}, "max_gb=0 must be a number of GiB above 0"),
        ({"max_gb": True}, "max_gb=True must be"),
        ({"dir": "x"}, "dir='x' has a meaning only with storage='disk'"),
    ],
)
def test_arguments_are_checked_at_construction(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        FeatureCache(**options)


def test_model_and_callback_can_be_copied_and_pickled_within_a_step() -> None:
    class Copying(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            copied = copy.deepcopy(vars(self)["training_step"])
            assert copied.args[0] is None
            cache = vars(self)["training_step"].args[0]
            assert pickle.loads(pickle.dumps(cache)) is None
            return super().training_step(batch, batch_idx)

    train(Copying(), [FeatureCache(), *frozen()], epochs=1)


def test_frozen_by_hand_and_with_held_batchnorm() -> None:
    def by_hand() -> Model:
        model = Model()
        for part in (model.stem, model.mid):
            part.requires_grad_(False)
            part.layers[3].p = 0.0
        return model

    plain, cached = both(by_hand, lambda: [BatchNormEval(memory_efficient=True)])
    assert work(cached) < 0.7 * work(plain)
