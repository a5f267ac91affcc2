"""What holds for every exported callback, whatever it does."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from contract import ARGUMENTS, ContractNet, Seeded, beside, exported, make
from contract_worker import train
from helpers import Net, fit, moved, tensors, trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from processes import run_ranks

import lightning_freeze
from lightning_freeze import FreezeAudit, FreezeLayers, fingerprint

CALLBACKS = exported()
pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*the run (ends|ended) before its schedule d"),
]
every = pytest.mark.parametrize("name", CALLBACKS)


def test_every_exported_callback_is_under_contract() -> None:
    assert set(CALLBACKS) <= set(ARGUMENTS), "give the new callback a line in contract.py"
    assert len(CALLBACKS) >= 6


def public(callback: Any) -> dict[str, Any]:
    lightnings = ("log", "log_dict")  # methods that Lightning puts on every callback
    return {
        name: value for name, value in vars(callback).items() if not name.startswith("_") and name not in lightnings
    }


@every
def test_it_pickles_and_copies_before_and_after_a_fit(name: str) -> None:
    callbacks = beside(name)
    for _ in range(2):
        for again in (pickle.loads(pickle.dumps(callbacks[0])), copy.deepcopy(callbacks[0])):
            assert type(again) is type(callbacks[0])
            assert public(again) == public(callbacks[0])
        fit(ContractNet(), callbacks, epochs=1)


@every
def test_what_it_saves_is_plain(name: str, tmp_path: Path) -> None:
    running = fit(ContractNet(), beside(name), epochs=2)
    running.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["lightning_freeze"]["policies"]
    assert make(name).state_dict() == {}
    yaml.safe_dump(json.loads(json.dumps(ARGUMENTS[name])))


@every
def test_validate_test_and_predict_see_nothing_of_it(name: str) -> None:
    for verb in ("validate", "test", "predict"):
        model = ContractNet()
        model.stem[0].requires_grad_(False)
        model.mid[1].eval()
        before, flags = tensors(model), [p.requires_grad for p in model.parameters()]
        modes = [module.training for module in model.modules()]
        getattr(trainer(beside(name)), verb)(model, **({} if verb == "predict" else {"verbose": False}))
        assert not moved(before, tensors(model))
        assert [p.requires_grad for p in model.parameters()] == flags
        assert [module.training for module in model.modules()] == modes


@every
def test_after_a_fit_flags_and_modes_are_what_they_were(name: str) -> None:
    model = ContractNet()
    model.stem[0].requires_grad_(False)
    model.mid[3].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns of a module in eval mode
        fit(model, beside(name), epochs=2)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["stem.0.weight"]
    assert [n for n, m in model.named_modules() if not m.training] == ["mid.3"]
    assert all("train" not in vars(module) for module in model.modules())


@every
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(name: str, tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = trainer([Seeded(), *beside(name), keeper], 4, enable_checkpointing=True)
    whole.fit(one := ContractNet())
    resumed = trainer([Seeded(), *beside(name)], 4)
    resumed.fit(other := ContractNet(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert fingerprint(one) == fingerprint(other)
    assert [g["lr"] for g in whole.optimizers[0].param_groups] == [g["lr"] for g in resumed.optimizers[0].param_groups]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, int]]]:
    folder = tmp_path_factory.mktemp("contract")
    run_ranks("contract_worker.py", folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@every
def test_two_processes_end_with_the_bits_of_one(name: str, two_processes: Any, tmp_path: Path) -> None:
    alone = train(name, tmp_path)
    assert two_processes[0][name] == two_processes[1][name] == alone


@every
def test_two_of_a_kind_work_side_by_side(name: str) -> None:
    fit(ContractNet(), [*beside(name), make(name), FreezeAudit(verbose=False)], epochs=3)


@every
def test_its_place_in_the_list_does_not_matter(name: str) -> None:
    found = []
    for place in (0, 2):
        others: list[Any] = [FreezeLayers("stem.0", stop=2, verbose=False), FreezeAudit(verbose=False)]
        others[place:place] = beside(name)
        torch.manual_seed(1)
        fit(model := ContractNet(), others)
        found.append(fingerprint(model))
    assert found[0] == found[1]


# ---- beside Lightning's own

BESIDE: dict[str, Callable[[Path], tuple[list[Any], dict[str, Any]]]] = {
    "EarlyStopping": lambda _: ([EarlyStopping("val", patience=1)], {}),
    "ModelCheckpoint": lambda path: ([ModelCheckpoint(path, save_last=True)], {"enable_checkpointing": True}),
    "StochasticWeightAveraging": lambda _: ([StochasticWeightAveraging(0.01, swa_epoch_start=1)], {}),
    "LearningRateFinder": lambda _: ([LearningRateFinder(num_training_steps=12, update_attr=True)], {}),
    "BatchSizeFinder": lambda _: ([BatchSizeFinder(steps_per_trial=1, max_trials=2)], {}),
    "GradientAccumulationScheduler": lambda _: ([GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})], {}),
    "clipping": lambda _: ([], {"gradient_clip_val": 0.01}),
    "fast_dev_run": lambda _: ([], {"fast_dev_run": True}),
    "overfit_batches": lambda _: ([], {"overfit_batches": 2}),
    "barebones": lambda _: ([], {"barebones": True}),
}  # fmt: skip
if hasattr(pl.callbacks, "WeightAveraging"):
    BESIDE["WeightAveraging"] = lambda _: ([pl.callbacks.WeightAveraging()], {})


@every
@pytest.mark.parametrize("other", BESIDE)
def test_it_works_beside(other: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.tuner.batch_size_scaling.garbage_collection_cuda", lambda: None)  # slow
    callbacks, options = BESIDE[other](tmp_path)
    proof = FreezeAudit(verbose=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    model = ContractNet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running = pl.Trainer(
            callbacks=[*beside(name), proof, *callbacks], max_epochs=3, accelerator="cpu", default_root_dir=tmp_path,
            **quiet | options,
        )  # fmt: skip
        running.fit(model)
    assert proof.audits > 1
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors(model).values())


# ---- from YAML


def parse(folder: Path, entries: list[Any], *arguments: str) -> LightningCLI:
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": entries, "logger": False}}))
    return LightningCLI(
        Net,
        run=False,
        save_config_callback=None,
        args=["--config", str(folder / "config.yaml"), *arguments],
        seed_everything_default=False,
    )


def entry(name: str) -> dict[str, Any]:
    return {"class_path": f"lightning_freeze.{name}", "init_args": json.loads(json.dumps(ARGUMENTS[name]))}


def test_a_config_of_all_survives_its_own_print(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    entries = [entry(name) for name in CALLBACKS]
    with pytest.raises(SystemExit, match="0"):
        parse(tmp_path, entries, "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert [one["class_path"] for one in printed] == [one["class_path"] for one in entries]
    made = [parse(tmp_path, one).trainer.callbacks[: len(CALLBACKS)] for one in (entries, printed)]
    for name, first, second in zip(CALLBACKS, *made, strict=True):
        assert type(first).__name__ == name
        assert public(first) == public(second) == public(getattr(lightning_freeze, name)(**ARGUMENTS[name]))


@every
def test_a_misspelt_key_is_refused_by_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    wrong = entry(name)
    wrong["init_args"]["misspelt"] = 1
    with pytest.raises(SystemExit, match="2"):
        parse(tmp_path, [wrong])
    assert "misspelt" in capsys.readouterr().err
