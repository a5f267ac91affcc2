"""One training step, read as stages: what an expert would say of modules that people train."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_freeze import PlanError, select
from lightning_freeze.model.index import ModelIndex
from lightning_freeze.stages.looked_at import Look, read_look, without_loss
from lightning_freeze.stages.usage import UsageMode

Step = Callable[[nn.Module], "Tensor | list[Tensor]"]


def looked_at(model: nn.Module, step: Step, groups: Sequence[Sequence[str]] = ()) -> Look:
    index = ModelIndex(model)
    mode = UsageMode(index, (), with_gradient=True)
    trains = [name for name, parameter in index.parameters.items() if parameter.requires_grad]
    with mode.calls(), mode:
        loss = step(model)
    return read_look(mode, loss if isinstance(loss, list) else [loss], trains, groups)


def stages_in(model: nn.Module, step: Step, most: int | None = None) -> list[list[str]]:
    """Patterns of the stages, head first, after a check that each parameter that can train is in one of them."""
    torch.manual_seed(0)
    look, index = looked_at(model, step), ModelIndex(model)
    stages = look.stages(index, most)
    names = [name for stage in stages for name in select(model, stage.patterns)]
    can_train = [name for name, parameter in index.parameters.items() if parameter.requires_grad]
    assert sorted([*names, *look.detached]) == sorted(can_train)
    return [stage.patterns for stage in stages]


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.down(self.up(self.norm(inputs)).relu())


class Net(nn.Module):
    def __init__(self, blocks: int = 2, width: int = 4, out: int = 8) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(width, 8), nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, out)
        self.skipped: set[int] = set()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for place, block in enumerate(self.blocks):
            if place not in self.skipped:
                hidden = block(hidden)
        return self.out(self.norm(hidden))


class Towers(nn.Module):
    """Two towers as in CLIP; the one registered first runs last."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.text, self.vision, self.scale = Net(2, 5), Net(blocks), nn.Parameter(torch.zeros(()))

    def step(self) -> Tensor:
        image = F.normalize(self.vision(torch.rand(3, 4)), dim=-1)
        text = F.normalize(self.text(torch.rand(3, 5)), dim=-1)
        return F.cross_entropy(image @ text.t() * self.scale.exp(), torch.arange(3))


class Student(nn.Module):
    """BYOL: the averaged target is registered last and requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.online, self.predictor, self.target = Net(), nn.Linear(8, 8), Net()

    def step(self, *, detach: bool = False) -> Tensor:
        with torch.no_grad():
            for target, online in zip(self.target.parameters(), self.online.parameters(), strict=True):
                target.mul_(0.9).add_(online, alpha=0.1)
        inputs = torch.rand(3, 4)
        with torch.set_grad_enabled(detach):
            target = self.target(inputs).detach()
        return (self.predictor(self.online(inputs)) - target).square().sum()


BODY = [["online.blocks.1", "online.norm", "online.out"], ["online.blocks.0"], ["online.stem"]]


class TestParallel:
    def test_towers_of_one_depth_have_equal_places(self) -> None:
        assert stages_in(Towers(), Towers.step) == [
            ["scale", "text.out", "vision.out"],
            ["text.blocks.1", "text.norm", "vision.blocks.1", "vision.norm"],
            ["text.blocks.0", "vision.blocks.0"],
            ["text.stem", "vision.stem"],
        ]

    def test_the_deeper_tower_reaches_further_down(self) -> None:
        assert stages_in(Towers(3), Towers.step)[3:] == [["text.stem", "vision.blocks.0"], ["vision.stem"]]

    def test_two_stems_share_a_stage(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.image, self.table = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)), nn.Linear(3, 8)
                self.body, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 1)

            def step(self) -> Tensor:
                image = self.image(torch.rand(2, 1, 5, 5)).mean((2, 3))
                return self.head(self.body(image + self.table(torch.rand(2, 3)))).sum()

        assert stages_in(Model(), Model.step) == [["head"], ["body.1"], ["body.0"], ["image", "table"]]

    def test_heads_of_tasks_share_a_stage_with_the_weights_of_their_losses(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trunk, self.one, self.two = Net(), nn.Linear(8, 1), nn.Linear(8, 3)
                self.weights = nn.Parameter(torch.ones(2))

            def step(self) -> Tensor:
                hidden = self.trunk(torch.rand(2, 4))
                return self.one(hidden).sum() * self.weights[0] + self.two(hidden).sum() * self.weights[1]

        assert stages_in(Model(), Model.step)[0] == ["weights", "one", "two"]

    def test_an_encoder_stays_below_all_decoder_blocks_that_it_feeds(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.decoder = nn.ModuleList(Block() for _ in range(3))
                self.encoder, self.words, self.head = (
                    nn.ModuleList([Block(), Block()]),
                    nn.Linear(4, 8),
                    nn.Linear(8, 2),
                )

            def step(self) -> Tensor:
                memory = self.words(torch.rand(2, 4))
                for block in self.encoder:
                    memory = block(memory)
                hidden = self.words(torch.rand(2, 4))
                for block in self.decoder:
                    hidden = block(hidden + memory)
                return self.head(hidden).sum()

        decoder = [[f"decoder.{k}"] for k in (2, 1, 0)]
        assert stages_in(Model(), Model.step) == [["head"], *decoder, ["encoder.1"], ["encoder.0"], ["words"]]


class TestDetached:
    @pytest.mark.parametrize("detach", [False, True])
    def test_an_averaged_target_is_in_no_stage(self, detach: bool) -> None:
        model = Student()

        assert stages_in(model, lambda model: model.step(detach=detach)) == [["predictor"], *BODY]
        look = looked_at(model, Student.step)
        assert look.detached == [name for name, _ in model.named_parameters() if name.startswith("target.")]
        assert not look.uncalled

    def test_a_momentum_copy_without_gradient_is_in_no_stage(self) -> None:
        model = Student()
        model.target.requires_grad_(False)

        assert stages_in(model, Student.step) == [["predictor"], *BODY]

    def test_a_network_with_an_optimizer_of_its_own_has_its_turn_later(self) -> None:
        model = Student()
        target = [name for name, _ in model.named_parameters() if name.startswith("target.")]

        look = looked_at(model, Student.step, groups=[target])

        assert not look.detached
        assert set(target) <= {name for level in look.levels for name in level.names}

    def test_a_generator_and_a_discriminator_have_equal_places_when_each_is_toggled(self) -> None:
        class Gan(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.generator, self.critic = Net(2, 3, 4), Net(2, 4, 1)

            def step(self) -> list[Tensor]:
                losses = []
                for trained, other in ((self.generator, self.critic), (self.critic, self.generator)):
                    other.requires_grad_(False)
                    losses.append(self.critic(self.generator(torch.rand(2, 3))).mean())
                    other.requires_grad_(True)
                    assert trained is not other
                return losses

        assert stages_in(Gan(), Gan.step)[0] == ["generator.out", "critic.out"]


class TestNotCalled:
    def test_a_block_that_is_left_out_at_random_goes_with_its_neighbour(self) -> None:
        model = Net(4)
        model.skipped = {2}

        found = stages_in(model, lambda model: model(torch.rand(2, 4)).sum())

        assert found == [["out"], ["blocks.3", "norm"], ["blocks.1", "blocks.2"], ["blocks.0"], ["stem"]]
        assert all(
            name.startswith("blocks.2") for name in looked_at(model, lambda m: m(torch.rand(2, 4)).sum()).uncalled
        )

    def test_an_expert_without_a_token_goes_with_the_other_experts(self) -> None:
        class Experts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 1)
                self.experts = nn.ModuleList(Block() for _ in range(4))

            def step(self) -> Tensor:
                hidden = self.stem(torch.rand(2, 4))
                return self.head(sum(expert(hidden) for expert in list(self.experts)[:3])).sum()

        assert stages_in(Experts(), Experts.step) == [["head"], ["experts"], ["stem"]]

    def test_the_head_of_another_task_goes_with_the_head_of_this_one(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.trunk = Net()
                self.heads = nn.ModuleDict(
                    {name: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)) for name in "ab"}
                )

            def step(self) -> Tensor:
                return self.heads["b"](self.trunk(torch.rand(2, 4))).sum()

        found = stages_in(Model(), Model.step)

        assert [name for patterns in found[:-3] for name in patterns] in (
            ["heads"],
            ["heads.a.2", "heads.b.2", "heads.a.0", "heads.b.0"],
        )

    def test_a_loss_without_a_graph_has_no_stages(self) -> None:
        with pytest.raises(PlanError, match="depends on no parameter"):
            looked_at(Net(), lambda model: model(torch.rand(2, 4)).sum().detach())

    def test_without_a_loss_the_order_of_use_counts_else_that_of_registration(self) -> None:
        model = Towers()
        index = ModelIndex(model)
        mode = UsageMode(index, (), with_gradient=True)
        with mode.calls(), mode:
            model.step()

        used = without_loss(mode, index, index.parameters)
        registered = without_loss(None, index, index.parameters)

        assert used.stages(index)[-1].patterns == ["text.stem", "vision.stem"]
        assert registered.stages(index)[-1].patterns == ["scale", "text.stem"]


class TestUses:
    def test_a_tied_head_counts_at_the_embedding_and_tokens_join_it(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.places = nn.Embedding(20, 8), nn.Parameter(torch.zeros(6, 8))
                self.token, self.blocks = nn.Parameter(torch.zeros(1, 1, 8)), nn.ModuleList([Block(), Block()])
                self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 20, bias=False)
                self.head.weight = self.words.weight

            def step(self) -> Tensor:
                words = self.words(torch.randint(20, (2, 5)))
                hidden = torch.cat([self.token.expand(2, -1, -1), words], 1) + self.places
                for block in self.blocks:
                    hidden = block(hidden)
                return self.head(self.norm(hidden)).sum()

        assert stages_in(Model(), Model.step) == [["blocks.1", "norm"], ["blocks.0"], ["places", "token", "words"]]

    def test_cells_that_run_step_by_step_are_ordered_as_they_are_stacked(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.upper, self.lower = nn.LSTMCell(8, 8), nn.LSTMCell(8, 8)
                self.words, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)

            def step(self) -> Tensor:
                low, high, outputs = (torch.zeros(2, 8),) * 2, (torch.zeros(2, 8),) * 2, []
                for word in self.words(torch.randint(9, (4, 2))):
                    low = self.lower(word, low)
                    high = self.upper(low[0], high)
                    outputs.append(self.head(high[0]))
                return torch.stack(outputs).sum()

        assert stages_in(Model(), Model.step) == [["head"], ["upper"], ["lower"], ["words"]]

    def test_a_penalty_of_all_weights_changes_nothing(self) -> None:
        def step(model: nn.Module) -> Tensor:
            return model(torch.rand(2, 4)).sum() + sum(weight.square().sum() for weight in model.parameters())

        assert stages_in(Net(), step) == [["out"], ["blocks.1", "norm"], ["blocks.0"], ["stem"]]

    def test_weights_that_an_autograd_function_rounds_are_used_where_they_meet_data(self) -> None:
        class Rounded(torch.autograd.Function):
            @staticmethod
            def forward(ctx: object, weight: Tensor) -> Tensor:
                return weight.round()

            @staticmethod
            def backward(ctx: object, gradient: Tensor) -> Tensor:
                return gradient

        def step(model: Net) -> Tensor:
            hidden = F.linear(torch.rand(2, 4), Rounded.apply(model.stem.weight), model.stem.bias)
            for block in model.blocks:
                hidden = block(hidden)
            return F.linear(model.norm(hidden), Rounded.apply(model.out.weight)).sum()

        assert stages_in(Net(), step) == [["out"], ["blocks.1", "norm"], ["blocks.0"], ["stem"]]

    def test_only_what_can_train_is_in_a_stage(self) -> None:
        model = Net()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "norm" in name or name == "out.weight"

        found = stages_in(model, lambda model: model(torch.rand(2, 4)).sum())

        assert found == [["out.weight"], ["blocks.1.norm", "norm"], ["blocks.0.norm"]]

    def test_so_many_stages_are_asked_and_the_head_stays_alone(self) -> None:
        found = stages_in(torchvision.models.resnet18(num_classes=2), lambda m: m(torch.rand(2, 3, 32, 32)).sum(), 3)

        assert len(found) == 3
        assert found[0] == ["fc"]

    def test_a_detector_runs_from_its_heads_down_to_the_stem(self) -> None:
        model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=3
        )
        target = {"boxes": torch.tensor([[5.0, 5, 30, 30]]), "labels": torch.tensor([1])}

        found = stages_in(model, lambda model: sum(model([torch.rand(3, 64, 64)], [target]).values()))

        assert "roi_heads.box_predictor" in found[0]
        assert found[-1] == ["backbone.body.0"]
