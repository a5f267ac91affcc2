"""The worked examples of examples/, shortened: each prints what it shows, and its YAML runs under LightningCLI."""

from __future__ import annotations

import warnings
from pathlib import Path
from unittest import mock

import emoji_data
import layer_adaptive
import middle_layer
import pitfalls
import progressive
import pytest
import rotating
import two_tasks
from lightning.pytorch.cli import LightningCLI

EXAMPLES = Path(middle_layer.__file__).parent
SHORT = [
    "--trainer.limit_train_batches=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def _lightning_advises_at_length() -> None:
    warnings.simplefilter("ignore")


def run_yaml(name: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> LightningCLI:
    """`python examples/NAME.py fit --config examples/NAME.yaml` in this process."""
    config = str(EXAMPLES / f"{name}.yaml")
    monkeypatch.chdir(EXAMPLES)
    with mock.patch("sys.argv", [f"{name}.py", "fit", "--config", config, *SHORT, *options]):
        return LightningCLI(save_config_callback=None)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_yaml_lies_beside_its_script(path: Path) -> None:
    script = path.with_suffix(".py")
    assert f"{path.stem}.yaml" in script.read_text()


class TestMiddleLayer:
    def test_no_grad_stops_the_layer_before_as_well_and_freezing_does_not(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = middle_layer.main(epochs=1)
        under_no_grad, by_flag, by_callback = found.values()
        assert under_no_grad["first"] == under_no_grad["middle"] == by_flag["middle"] == by_callback["middle"] == 0
        assert under_no_grad["last"] > 0
        assert by_flag == by_callback
        assert by_flag["first"] > 0
        assert "0, exactly" in capsys.readouterr().out

    def test_the_yaml_freezes_it_for_four_epochs(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_yaml("middle_layer", monkeypatch)
        assert "epoch 4, step 8: unfrozen 2 parameters (middle.weight to middle.bias)" in capsys.readouterr().out


class TestPitfalls:
    def test_each_way_by_hand_leaves_something_moving_and_the_callbacks_nothing(self) -> None:
        zeros, flag, mode, both, lightning, ours = pitfalls.main(epochs=2).values()
        assert zeros[0] > 0, "AdamW moves what has a gradient of zero"
        assert flag[0] == 0
        assert flag[1] > 0, "statistics follow the mode"
        assert flag[2] == both[2] == "ON"
        assert mode[0] > 0, "eval mode freezes no weight"
        assert mode[1:] == (0, "off")
        assert both[1] > 0
        assert lightning[0] > 0, "BatchNorm's weights train"
        assert ours == (0, 0, "off")

    def test_the_yaml_runs_with_its_proof(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_yaml("pitfalls", monkeypatch)
        said = capsys.readouterr().out
        assert "epoch 1, step 2: frozen 4 parameters (backbone.0.weight to backbone.1.bias)" in said
        assert "FreezeAudit: 5 audits, 7 frozen tensors" in said


class TestTwoTasks:
    def test_there_are_as_many_emoji_with_picture_name_and_category_as_the_page_says(self) -> None:
        seen, read, kinds = emoji_data.emoji()
        assert seen.shape == (1898, 3, emoji_data.SIDE, emoji_data.SIDE)
        assert read.shape == (1898, emoji_data.PIECES)
        assert set(kinds.tolist()) == set(range(emoji_data.CLASSES))

    def test_a_branch_strays_in_steps_of_the_other_task_only_without_the_callback(self) -> None:
        found = two_tasks.main(epochs=1, steps=12)
        for task in two_tasks.TASKS:
            assert found["without"][f"{task}_strayed"] > 0
            assert found["TaskFreeze"][f"{task}_strayed"] == 0
            assert 0 < found["TaskFreeze"][f"{task}_accuracy"] < 1

    def test_the_yaml_runs(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        run_yaml("two_tasks", monkeypatch, "--trainer.max_epochs=1")
        assert "with its batches" in capsys.readouterr().out


class TestOnDigits:
    def test_rotating_holds_the_state_of_what_is_active(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (whole, _), (drawn, _), (in_turn, _) = rotating.main(epochs=1).values()
        model = rotating.DigitNet()
        block, ends = (2 * 4 * sum(p.numel() for p in part.parameters()) for part in (model.blocks[0], model.stem))
        head = 2 * 4 * sum(p.numel() for p in model.head.parameters())
        assert (whole, drawn, in_turn) == (4 * block + ends + head, block + ends + head, max(head, block))
        run_yaml("rotating", monkeypatch, "--trainer.limit_train_batches=10")
        assert "; frozen blocks." in capsys.readouterr().out

    def test_progressive_trains_less_and_less(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (never, _), (by_clock, _), (by_gradient, _) = progressive.main(epochs=5).values()
        assert never == 1
        assert by_clock < 1
        assert by_gradient < 1
        run_yaml("progressive", monkeypatch)
        assert "epoch 8, step 16: frozen blocks.3" in capsys.readouterr().out

    def test_a_trust_ratio_lets_sgd_learn_where_its_rate_does_not(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (none, plain), (factors, adapted), _, (moments, _) = layer_adaptive.main(epochs=4).values()
        assert none == {}
        assert adapted > plain + 0.1
        assert set(factors) == set(moments) == set(layer_adaptive.ALL)
        run_yaml("layer_adaptive", monkeypatch)
        assert "trust_ratio" in capsys.readouterr().out
