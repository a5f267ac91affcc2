"""examples/: the data is what it says, the demo claims what it ran, the YAML runs under LightningCLI."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import demo
import groceries
import pytest
import torch
import yaml
from demo_report import Result, findings
from groceries import Crops, Groceries, GroceryNet, Split, few_shot, load
from torchvision.models import mobilenet_v2

EXAMPLES = Path(groceries.__file__).parent


def as_set(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


def test_each_photograph_is_in_one_split_once() -> None:
    train, val, test = (as_set(load(split)) for split in ("train", "val", "test"))
    assert [len(load(split).labels) for split in ("train", "val", "test")] == [675, 57, 661]
    assert len(train | val | test) == 675 + 57 + 661


def test_few_shot_takes_as_many_of_each_class_and_the_same_for_the_same_seed() -> None:
    split = few_shot(load("train"), per_class=10, seed=3)
    assert split.labels.bincount().tolist() == [10] * groceries.CLASSES
    assert as_set(split) == as_set(few_shot(load("train"), per_class=10, seed=3)) <= as_set(load("train"))
    assert as_set(split) != as_set(few_shot(load("train"), per_class=10, seed=4))


def test_training_crops_vary_and_are_reproduced_by_the_seed_while_test_crops_stay() -> None:
    train, test = Crops(load("test"), augment=True), Crops(load("test"), augment=False)
    torch.manual_seed(0)
    first, second = train[0][0], train[0][0]
    torch.manual_seed(0)
    assert torch.equal(train[0][0], first)
    assert not torch.equal(first, second)
    assert torch.equal(test[0][0], test[0][0])
    assert first.shape == test[0][0].shape == (3, 96, 96)


def test_batches_come_in_the_same_order_for_the_same_seed() -> None:
    one, other = (torch.cat([labels for _, labels in Groceries(seed=1).train_dataloader()]) for _ in range(2))
    assert torch.equal(one, other)
    assert len(one) == 140


def test_the_network_is_the_pretrained_one_with_a_new_head() -> None:
    model, pretrained = GroceryNet(), mobilenet_v2(weights="IMAGENET1K_V1")
    for name, tensor in pretrained.features.state_dict().items():
        assert torch.equal(model.model.features.state_dict()[name], tensor), name
    assert model(model.example_input_array).shape == (1, groceries.CLASSES)


@pytest.fixture
def few_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(split: str) -> Split:
        return few_shot(load(split), per_class=2, seed=0)

    monkeypatch.setattr(groceries, "load", some)
    monkeypatch.setattr(demo, "load", some)


@pytest.mark.usefixtures("few_photographs")
def test_the_demo_trains_what_each_arm_says_and_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = len(demo.STAGES)
    results = {
        result.name: result
        for result in demo.main(["--epochs", str(epochs), "--per-class", "1", "--output", str(tmp_path)])
    }
    assert list(results) == [arm.name for arm in demo.ARMS]
    for name, result in results.items():
        assert len(result.trainable) == len(result.times) == 2 * epochs
        if "gradual" in name:
            assert result.trainable == sorted(result.trainable)
            assert len(set(result.trainable)) == epochs
            assert result.trainable[-1] == result.parameters
        else:
            assert set(result.trainable) == {17_934 if "head" in name else result.parameters}
    saved, printed = json.loads((tmp_path / "demo.json").read_text()), capsys.readouterr().out
    assert [arm["accuracy"] for arm in saved["arms"]] == [result.accuracy for result in results.values()]
    assert all(f"{arm['accuracy']:.3f}" in printed for arm in saved["arms"])
    unwrapped = "".join(printed.split())
    assert all("".join(sentence.split()) in unwrapped for sentence in saved["findings"])
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [(0.75, "15 points higher"), (0.45, "15 points lower"), (0.62, "no clear difference")],
)
def test_a_finding_says_what_the_numbers_say(accuracy: float, verdict: str) -> None:
    one = Result("one", 1e-3, parameters=4, accuracy=accuracy, seconds=3.0)
    other = Result("other", 1e-3, parameters=4, accuracy=0.60, seconds=4.0)
    said, caution = findings({"one": one, "other": other}, [("one", "other")], photographs=661)
    assert said == (
        f"one (lr 0.001) against other (lr 0.001): {verdict} ({accuracy:.3f} and 0.600), 0.75 of the CPU time."
    )
    assert "661 test photographs" in caution


def test_the_yaml_is_the_gradual_arm_of_the_demo() -> None:
    config = yaml.safe_load((EXAMPLES / "groceries.yaml").read_text())
    gradual, layerwise, _ = demo.gradual()
    unfreeze, rates, held = config["trainer"]["callbacks"]
    assert {name: getattr(gradual, name) for name in unfreeze["init_args"]} == unfreeze["init_args"]
    assert rates["init_args"] == {"decay": layerwise.decay}
    assert held == {"class_path": "lightning_freeze.BatchNormEval"}
    assert config["model"]["init_args"]["lr"] == pytest.approx(demo.ARMS[-1].lr)


@pytest.mark.filterwarnings("ignore")
def test_the_yaml_runs_under_lightning_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--trainer.max_epochs=6", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    script, config = EXAMPLES / "groceries.py", EXAMPLES / "groceries.yaml"
    options = ["fit", "--config", str(config), *short, "--trainer.enable_progress_bar=false"]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert "model.features.17-18" in said
    assert "unfrozen model.features" in said
    assert list((tmp_path / "demo_output").rglob("metrics.csv"))
