"""The worked examples of examples/, shortened: each prints what it shows, and its YAML runs under LightningCLI."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from unittest import mock

import emoji_data
import layer_adaptive
import middle_layer
import per_layer_rates
import pitfalls
import progressive
import pytest
import rotating
import sentiment
import task_steps
import torch
import two_tasks
from lightning.pytorch.cli import LightningCLI
from processes import run_ranks

from lightning_freeze.cli import main

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
def test_each_yaml_says_how_to_run_it(path: Path) -> None:
    found = re.search(r"#   python examples/(\w+\.py) fit --config examples/(\w+\.yaml)", path.read_text())
    assert found is not None
    assert (EXAMPLES / found[1]).exists()
    assert found[2] == path.name


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


class TestPerLayerRates:
    def test_four_schedules_scale_the_factors_of_the_stages_and_the_picture_is_drawn(self, tmp_path: Path) -> None:
        path = per_layer_rates.main(str(tmp_path), epochs=4, steps=4)
        assert path.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("name", list(per_layer_rates.RUNS)[:2])
    def test_each_stage_has_half_the_rate_of_the_one_above_it(self, name: str, tmp_path: Path) -> None:
        rates = per_layer_rates.rates_of(name, tmp_path, epochs=1, steps=4)
        head, *below = [
            rates[stage] for stage in ("model.fc", "model.layer4", "model.layer3", "model.layer1-2-and-2-more")
        ]
        assert len(head) == 4
        for depth, stage in enumerate(below, start=1):
            assert [rate for _, rate in stage] == pytest.approx([rate * 0.5**depth for _, rate in head])

    def test_the_yaml_unfreezes_a_stage_per_epoch(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        plot = f"--trainer.callbacks.plot={tmp_path / 'rates.png'}"
        run_yaml("per_layer_rates", monkeypatch, plot)
        assert "epoch 3, step 6: unfrozen model.layer1-2-and-2-more" in capsys.readouterr().out
        assert (tmp_path / "rates.png").exists()


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


class TestTextAndImages:
    def test_both_ways_train_a_head_on_the_pretrained_encoder(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert list(sentiment.main(epochs=1, count=16, tested=32)) == list(sentiment.WAYS)
        said = capsys.readouterr().out
        assert re.search(r"FreezeLayers +frozen throughout +22,\d", said)
        assert re.search(r"^ *encoder.encoder.layer.4 +epoch 1 ! ", said, flags=re.MULTILINE)

    def test_the_yaml_of_the_text_unfreezes_the_encoder_stage_by_stage(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_yaml("sentiment", monkeypatch, "--trainer.limit_train_batches=1", "--data.count=16")
        said = capsys.readouterr().out
        assert "epoch 1, step 1: unfrozen encoder.encoder.layer.4-5; " in said
        assert "epoch 3, step 3: unfrozen encoder.encoder.layer.0-1-and-1-more; " in said

    def test_the_yaml_of_what_happens_within_a_stage_writes_a_slim_file_that_merges(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        short = ("--trainer.limit_train_batches=1", "--data.count=16", f"--trainer.callbacks.dirpath={tmp_path}")
        trained = run_yaml("sentiment_within", monkeypatch, *short).model.state_dict()
        said = capsys.readouterr().out
        assert "one_cycle in each stage, 30% of it rising" in said
        assert "each step pulls it to its start, strength 10" in said
        slim = tmp_path / "last.ckpt"
        assert len(torch.load(slim, weights_only=True)["state_dict"]) == 18, "of the head and the last layer"
        config, full = str(EXAMPLES / "sentiment_within.yaml"), tmp_path / "full.ckpt"
        assert main(["merge", str(slim), "--config", config, "--out", str(full)]) == 0
        merged = torch.load(full, weights_only=True)["state_dict"]
        assert all(torch.equal(value, merged[name]) for name, value in trained.items())

    def test_the_yaml_of_the_images_trains_the_last_stage_and_the_head(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        short = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1")
        run_yaml("groceries_late", monkeypatch, *short)
        assert re.search(r"GroceryNet, 904,014 of 2,241,806 parameters \(40\.3%\) train\s+now", capsys.readouterr().out)


class TestTaskSteps:
    def test_each_branch_is_updated_in_the_steps_of_its_task_and_the_frozen_one_not_in_its_window(self) -> None:
        for optimizer, count in task_steps.main(1, steps=12).items():
            assert count.moved == {"see": 6, "name_picture": 6, "read": 4, "name_word": 6, "trunk": 12}
            assert optimizer == "SGD" or count.counted == count.moved

    def test_two_processes_count_alike_and_more_than_one_alone(self, tmp_path: Path) -> None:
        run_ranks("task_steps_worker.py", tmp_path)
        ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
        assert ranks[0] == ranks[1]
        for moved, counted in ranks[0].values():
            assert moved["trunk"] == 12 <= moved["see"] + moved["name_word"]
            assert moved["see"] == moved["name_picture"] > 6
            assert 0 < moved["read"] < moved["name_word"]
            assert set(counted.values()) == {None} or counted == moved

    def test_the_yaml_freezes_a_window(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_yaml("task_steps", monkeypatch, "--trainer.limit_train_batches=22")
        said = capsys.readouterr().out
        assert "epoch 0, step 10: frozen" in said
        assert "epoch 0, step 20: unfrozen" in said


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
        assert "each step's rate times" in capsys.readouterr().out


class TestStaged:
    def test_the_yaml_trains_with_a_proof_and_a_picture(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_yaml(
            "staged",
            monkeypatch,
            f"--trainer.logger.init_args.save_dir={tmp_path}",
            f"--trainer.callbacks.plot={tmp_path / 'run.png'}",  # of the last callback in the list
        )
        said = capsys.readouterr().out
        assert "unfrozen blocks.1;" in said
        assert "unfrozen 4 of 6 tensors of blocks.0-and-1-more;" in said
        assert "FreezeAudit: 7 audits" in said
        assert (tmp_path / "run.png").exists()
        assert "freeze/grad_norm/head" in next(tmp_path.rglob("metrics.csv")).read_text()

    def test_its_preview_says_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["preview", "--config", str(EXAMPLES / "staged.yaml")]) == 0
        assert "6 epochs, 174 optimizer steps, AdamW" in capsys.readouterr().out
