"""Eval mode is held on what needs it, never on a module whose own forward branches on `self.training`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Batches, Net, fit, trainer
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from lightning_freeze import BatchNormEval, FreezeLayers, GradualUnfreeze, freeze, unfreeze

LOSSES = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
IMAGE = 64


class WithLosses(nn.Module):
    """Computes a loss in train mode only, as torchvision's RPN does; with BatchNorm and Dropout under it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.losses: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.inner(inputs)
        if self.training:
            self.losses.append(outputs.mean())
        return outputs


class Branching(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mid = WithLosses()


def modes(module: nn.Module) -> dict[str, bool]:
    return {name: child.training for name, child in module.named_modules() if name.startswith("mid")}


@pytest.mark.parametrize("callback", [FreezeLayers("mid"), GradualUnfreeze(["head", "mid", "stem"], at=[0, 9, 9])])
@pytest.mark.filterwarnings("ignore:.*before its schedule")
def test_a_frozen_module_that_branches_on_the_flag_goes_on_computing_its_losses(callback: Any) -> None:
    module = Branching()
    seen: list[dict[str, bool]] = []
    module.on_train_batch_end = lambda *_: seen.append(modes(module))  # type: ignore[method-assign]
    fit(module, [callback], epochs=1)
    assert len(module.mid.losses) == 2
    beneath = {name: False for name in seen[0] if name != "mid"}
    assert seen == [{"mid": True, **beneath}] * 2


def test_the_table_says_what_stays_in_train_mode(capsys: pytest.CaptureFixture[str]) -> None:
    fit(Branching(), [FreezeLayers("mid")], epochs=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "kept in train mode, because their forward branches on self.training: mid." in said
    fit(Net(), [FreezeLayers("mid")], epochs=1)
    assert "kept in train mode" not in capsys.readouterr().out


def test_a_norm_layer_is_held_although_its_source_branches() -> None:
    module = Branching()
    running = trainer([BatchNormEval()], epochs=1)
    seen: list[bool] = []
    module.on_train_batch_end = lambda *_: seen.append(module.mid.inner[1].training)  # type: ignore[method-assign]
    running.fit(module, Batches(1), Batches(1))
    assert seen == [False]


def test_freeze_of_a_plain_loop_leaves_a_branching_module_in_train_mode() -> None:
    module = Branching()
    freeze(module, "mid")
    module.train()
    assert [name for name, training in modes(module).items() if training] == ["mid"]
    unfreeze(module, "mid")
    assert all(modes(module.train()).values())


# ---- detectors


class Detector(pl.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[set[str]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.model(*batch)
        self.seen.append(set(losses))
        return sum(losses.values())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def tiny_detector() -> FasterRCNN:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1), nn.BatchNorm2d(4), nn.ReLU())
    backbone.out_channels = 4  # type: ignore[assignment]
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    return FasterRCNN(backbone, 2, rpn_anchor_generator=anchors, min_size=IMAGE, max_size=IMAGE)


def scene() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    target = {
        "boxes": torch.tensor([[4.0, 4, 40, 40], [20, 20, 60, 60]]),
        "labels": torch.tensor([1, 1]),
        "masks": torch.ones(2, IMAGE, IMAGE, dtype=torch.uint8),
        "keypoints": torch.tensor([[[10.0, 10, 1]] * 17] * 2),
    }
    return [torch.rand(3, IMAGE, IMAGE, generator=generator) for _ in range(2)], [target, target]


@pytest.mark.parametrize("frozen", ["model.rpn", "model.roi_heads", ["*", "!*box_predictor*"], "model.backbone"])
def test_a_detector_with_frozen_parts_has_all_of_its_losses(frozen: Any) -> None:
    module = Detector(tiny_detector())
    trainer([FreezeLayers(frozen)], epochs=1).fit(module, torch.utils.data.DataLoader([scene()], batch_size=None))
    assert module.seen == [LOSSES]


def in_eval(model: nn.Module, inputs: Any) -> tuple[Any, Any]:
    """Outputs with everything frozen after a call of `train()`, and in plain eval mode."""
    freeze(model, "*")
    model.train()
    with torch.no_grad():
        found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        unfreeze(model, "*")
        model.eval()
        return found, model(**inputs) if isinstance(inputs, dict) else model(inputs)


def first(outputs: Any) -> Tensor:
    while not isinstance(outputs, Tensor):
        outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs[0]
    return outputs


DETECTORS = [
    "fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large", "ssd300_vgg16",
]  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_of_torchvision_has_the_losses_frozen_that_it_has_unfrozen(name: str) -> None:
    torch.manual_seed(0)
    options = {} if name.startswith("ssd") else {"min_size": IMAGE, "max_size": IMAGE}
    model = get_model(name, weights=None, weights_backbone=None, **options)
    whole = set(model.train()(*scene()))
    for part in [*model._modules, "*"]:
        if part == "*" or any(True for _ in model.get_submodule(part).parameters()):
            freeze(model, part)
            assert set(model.train()(*scene())) == whole, part
            unfreeze(model, "*")


PLAIN = [
    "resnet18", "efficientnet_b0", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_16", "mobilenet_v3_small",
    "regnet_y_400mf", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50",
]  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize("name", PLAIN)
def test_torchvision_models_that_branch_nowhere_give_what_eval_mode_gives(name: str) -> None:
    torch.manual_seed(0)
    segments = name.startswith(("deeplab", "lraspp", "fcn"))
    model = get_model(name, weights=None, **({"weights_backbone": None} if segments else {}))
    size = 224 if "vit" in name else IMAGE
    found, expected = in_eval(model, torch.randn(2, 3, size, size))
    assert torch.equal(first(found), first(expected))


TIMM = [
    "resnet18", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto",
    "efficientnet_b0", "mixer_s32_224", "eva02_tiny_patch14_224", "xcit_nano_12_p8_224", "beit_base_patch16_224",
]  # fmt: skip


@pytest.mark.zoo
@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("name", TIMM)
def test_timm_models_give_what_eval_mode_gives(name: str) -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, drop_rate=0.5, drop_path_rate=0.5)
    found, expected = in_eval(model, torch.randn(2, 3, 224, 224))
    assert torch.equal(found, expected)


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["Bert", "Roberta", "Electra", "DistilBert", "ViT", "Dinov2", "CLIPVision", "T5"])
def test_transformers_with_dropout_give_what_eval_mode_gives(name: str) -> None:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    drop = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "attention_dropout": 0.5}
    shape = {"vocab_size": 60, "image_size": 32, "patch_size": 8, "drop_path_rate": 0.5}
    if name == "T5":
        sizes, drop = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}, {"dropout_rate": 0.5}
    if name == "DistilBert":
        sizes, drop = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}, {"dropout": 0.5}
    config = getattr(transformers, f"{name}Config")(**sizes, **drop, **shape)
    model = getattr(transformers, f"{name}{'Encoder' if name == 'T5' else ''}Model")(config)
    images = name in ("ViT", "Dinov2", "CLIPVision")
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)} if images else {"input_ids": torch.arange(5, 21).view(2, 8)}
    model.train()
    if name != "CLIPVision":
        assert not torch.equal(model(**inputs)[0], model(**inputs)[0])  # there is dropout to be turned off
    found, expected = in_eval(model, inputs)
    assert torch.equal(found[0], expected[0])
