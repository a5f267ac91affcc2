"""A config is built as the user's script would, nothing runs, and what is wrong is one error of ours."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from previewing import UNFREEZE, code_in, config

from lightning_freeze import FreezeError, GradualUnfreeze, PlanError
from lightning_freeze.preview.config import PACKAGES, Built, as_user_error, build, undisturbed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return code_in(tmp_path_factory.mktemp("config"))


def on_cpu(options: Any) -> None:
    options.accelerator = "cpu"


def built(*files: Any, **options: Any) -> Built:
    with undisturbed(files):
        return build(files, adjust=on_cpu, **options)


class TestForms:
    def test_trainer_model_and_data_are_those_of_the_config(self, folder: Path) -> None:
        found = built(config(folder, UNFREEZE, model__lr=0.5, data__batch_size=10))
        assert found.trainer.max_epochs == 4
        assert [type(one) for one in found.trainer.callbacks if isinstance(one, GradualUnfreeze)] == [GradualUnfreeze]
        assert (type(found.model).__name__, found.model.lr) == ("Net", 0.5)
        assert (type(found.data).__name__, found.data.batch_size) == ("Data", 10)
        assert found.config["trainer"]["accelerator"] == "cpu"

    def test_options_override_and_a_script_s_own_classes_are_named(self, folder: Path) -> None:
        path = config(folder, UNFREEZE, model={"lr": 0.5}, data={"batch_size": 10})
        named = {"model": "previewed:Net", "data": "previewed:Data"}
        found = built(path, overrides=["--trainer.max_epochs=3", "--model.lr", "0.25"], **named)
        assert (found.trainer.max_epochs, found.model.lr, found.data.batch_size) == (3, 0.25, 10)
        with pytest.raises(PlanError, match="no attribute 'Nett'"):
            built(path, model="previewed:Nett")
        with pytest.raises(PlanError, match="there is no option '--nonsense=1'"):
            built(path, overrides=["--nonsense=1"], **named)
        with pytest.raises(PlanError, match=r"--model previewed is not of the form pkg\.mod:Class"):
            built(path, model="previewed")

    def test_options_may_stand_under_fit_and_a_later_file_wins(self, folder: Path, tmp_path: Path) -> None:
        path, more = Path(config(folder, UNFREEZE)), folder / "more.yaml"
        path.write_text(yaml.safe_dump({"fit": yaml.safe_load(path.read_text())}))
        more.write_text("fit: {trainer: {max_epochs: 7}}")
        assert built(path, more).trainer.max_epochs == 7
        assert built(more, path).trainer.max_epochs == 4

    def test_a_config_that_a_run_saved_is_read(self, folder: Path) -> None:
        assert built(config(folder, UNFREEZE, seed_everything=3, ckpt_path=None)).trainer.max_epochs == 4

    def test_a_trainer_of_another_class_is_made_where_one_is_asked_for(self, folder: Path) -> None:
        asked = []

        def other(package: Any) -> type:
            asked.append(package.__name__)
            return type("Other", (package.Trainer,), {})

        assert type(built(config(folder, UNFREEZE), trainer_class=other).trainer).__name__ == "Other"
        assert asked == [PACKAGES[0]]

    def test_a_config_without_a_model_says_how_to_name_it(self, folder: Path) -> None:
        with pytest.raises(PlanError, match=r"names no model.*\n.*--model pkg\.mod:Model"):
            built(config(folder, UNFREEZE, model={"lr": 3}))


class TestErrors:
    def raised(self, error: BaseException) -> PlanError:
        with pytest.raises(PlanError) as caught, as_user_error("config a.yaml"):
            raise error
        return caught.value

    def test_whatever_the_user_s_code_raises_is_one_error(self) -> None:
        assert str(self.raised(ZeroDivisionError("division by zero"))).startswith("config a.yaml: ")
        assert "No module named 'nowhere'" in str(
            self.raised(ModuleNotFoundError("No module named 'nowhere'", name="x"))
        )
        assert self.raised(SystemExit(2)).__cause__ is not None

    def test_what_the_parser_needs_is_named_with_its_extra(self) -> None:
        error = ModuleNotFoundError("No module named 'jsonargparse'", name="jsonargparse")
        assert r"pip install 'lightning-freeze[cli]'" in str(self.raised(error))

    def test_an_error_of_ours_stays_itself_also_inside_another(self) -> None:
        ours = FreezeError("ours")
        with pytest.raises(FreezeError) as caught, as_user_error("config"):
            raise ours
        assert caught.value is ours

        def wrapped() -> None:
            try:
                raise ours
            except FreezeError as error:
                raise ValueError("the parser's") from error

        with pytest.raises(FreezeError) as caught, as_user_error("config"):
            wrapped()
        assert caught.value is ours

    @pytest.mark.parametrize("code", [0, None])
    def test_help_still_ends_the_command(self, code: Any) -> None:
        with pytest.raises(SystemExit), as_user_error("config"):
            raise SystemExit(code)

    def test_a_class_that_fails_is_named_with_its_config(self, folder: Path) -> None:
        path = config(folder, UNFREEZE, model={"class_path": "previewed.Broken"})
        with pytest.raises(PlanError, match=r"config .*config\.yaml: ZeroDivisionError: division by zero"):
            built(path)


class TestUndisturbed:
    def state(self) -> Any:
        loggers = [logging.getLogger(name).level for name in PACKAGES]
        return sys.path[:], sys.argv, dict(os.environ), random.getstate(), loggers, warnings.filters[:]

    @pytest.mark.parametrize("raises", [True, False])
    def test_everything_is_as_before(self, raises: bool, folder: Path) -> None:
        before, of_torch = self.state(), torch.get_rng_state()
        os.environ["KEPT"] = "1"
        try:
            with undisturbed([folder / "a.yaml"]):
                torch.rand(3), random.random()
                os.environ.update({"PL_GLOBAL_SEED": "3", "KEPT": "2"})
                sys.path.insert(0, "x")
                sys.argv = ["other"]
                warnings.warn("silent", stacklevel=2)
                if raises:
                    raise KeyError("x")
        except KeyError:
            assert raises
        assert os.environ.pop("KEPT") == "1"
        assert self.state() == before
        assert torch.equal(torch.get_rng_state(), of_torch)

    def test_modules_beside_the_config_are_found_before_those_of_the_current_folder(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["script", "--option"])
        with undisturbed([folder / "a.yaml", folder / "b.yaml"]):
            assert sys.path[:2] == [str(folder.resolve()), str(tmp_path)]
            assert sys.argv == ["script"]
            assert logging.getLogger("lightning.pytorch").level == logging.ERROR
