import json
import shlex
import signal
from pathlib import Path

import pytest
import torch
import yaml

import imgsynth
from imgsynth.callbacks import GracefulStop
from imgsynth.cli import runs
from imgsynth.images import save_png
from imgsynth.loggers import read_rows
from imgsynth.testing.contract import first_difference

RUN = Path("runs/tiny")


def test_fit_leaves_a_run_folder_that_can_be_loaded(here, run):
    code, out, _ = run("fit", "-c", "tiny.yaml")
    assert code == 0
    names = {"config.yaml", "run.json", "record.jsonl", "checkpoints", "samples", "final.png"}
    assert names <= {path.name for path in RUN.iterdir()}
    assert out.splitlines()[0] == "Run folder: runs/tiny"
    method = imgsynth.load(RUN)
    assert method.images_seen == 128
    assert method.sample(3).shape == (3, 1, 8, 8)


def test_the_checkpoint_and_the_record_describe_the_configured_method(here, run):
    run("fit", "-c", "tiny.yaml")
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert json.loads((RUN / "run.json").read_text())["method"] == config["model"]
    assert config["model"]["init_args"]["generator"]["init_args"]["image_shape"] == [1, 8, 8]


def test_the_saved_configuration_repeats_the_run(here, run):
    run("fit", "-c", "tiny.yaml")
    run("fit", "-c", str(RUN / "config.yaml"), "--name", "again")
    again = Path("runs/again")
    assert (again / "config.yaml").read_text() == (RUN / "config.yaml").read_text()
    assert (again / "final.png").read_bytes() == (RUN / "final.png").read_bytes()


def test_another_seed_is_another_run(here, run):
    run("fit", "-c", "tiny.yaml")
    run("fit", "-c", "tiny.yaml", "--seed", "1", "--name", "other")
    assert (RUN / "final.png").read_bytes() != Path("runs/other/final.png").read_bytes()


def test_runs_without_a_name_are_numbered(here, run):
    assert run("fit", "-c", "tiny.yaml").out.startswith("Run folder: runs/tiny\n")
    assert run("fit", "-c", "tiny.yaml").out.startswith("Run folder: runs/tiny-2\n")


def test_a_run_is_named_after_its_first_configuration(here, run):
    Path("layer.yaml").write_text("seed: 1\n")
    assert run("fit", "-c", "tiny.yaml", "-c", "layer.yaml").out.startswith("Run folder: runs/tiny")


def test_a_run_that_failed_before_it_began_leaves_its_name_free(here, run):
    assert run("fit", "-c", "tiny.yaml", "--name", "a", "--data.batch_size", "9999").code == 2
    assert run("fit", "-c", "tiny.yaml", "--name", "a").code == 0


def test_the_length_may_be_given_in_steps(here, run):
    text = Path("tiny.yaml").read_text().replace("images: 128\n", "")
    Path("steps.yaml").write_text(text)
    assert run("fit", "-c", "steps.yaml", "--trainer.max_steps", "1").code == 0
    assert imgsynth.load("runs/steps").images_seen == 64


def test_callbacks_and_loggers_of_the_user_come_on_top_of_ours(here, run):
    options = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv"]
    options += ["--trainer.callbacks+", "LearningRateMonitor"]
    assert run("fit", "-c", "tiny.yaml", *options).code == 0
    assert list(Path("csv").rglob("metrics.csv"))
    assert read_rows(RUN)


def test_print_config_prints_yaml_and_trains_nothing(here, run):
    code, out, _ = run("fit", "-c", "tiny.yaml", "--seed", "4", "--print_config")
    assert code == 0
    assert yaml.safe_load(out)["seed"] == 4
    assert not Path("runs").exists()


def test_a_method_of_the_working_directory_is_trained_sampled_and_resumed(here, run):
    Path("my_fit_package.py").write_text(
        "from imgsynth.methods import HingeGAN\n\nclass Mine(HingeGAN):\n    pass\n"
    )
    assert run("fit", "-c", "tiny.yaml", "--model", "my_fit_package.Mine").code == 0
    assert run("resume", str(RUN), "--images", "192").code == 0
    assert run("sample", str(RUN), "--num", "2", "--out", "out").code == 0


# -- resume -----------------------------------------------------------------------------------


def test_a_complete_run_says_so(here, run):
    run("fit", "-c", "tiny.yaml")
    before = (RUN / "record.jsonl").read_bytes()
    code, out, _ = run("resume", str(RUN))
    assert code == 0
    assert out == "runs/tiny is complete: 128 images. --images with a larger number continues it.\n"
    assert (RUN / "record.jsonl").read_bytes() == before


def test_a_longer_length_continues_as_if_it_had_been_so_long_from_the_start(here, run):
    run("fit", "-c", "tiny.yaml")
    assert run("resume", str(RUN), "--images", "320").code == 0
    run("fit", "-c", "tiny.yaml", "--images", "320", "--name", "whole")
    ours, whole = imgsynth.load(RUN), imgsynth.load("runs/whole")
    assert first_difference(ours.state_dict(), whole.state_dict()) is None
    assert yaml.safe_load((RUN / "config.yaml").read_text())["images"] == 320


def test_a_resumed_run_takes_options_of_where_and_how_it_runs(here, run):
    run("fit", "-c", "tiny.yaml")
    options = ("--checkpoint.every", "64", "--data.batch_size", "32", "--trainer.precision=64-true")
    assert run("resume", *options, str(RUN), "--images", "256").code == 0
    assert len(list((RUN / "checkpoints").iterdir())) == 3
    ours = imgsynth.load(RUN)
    assert (ours.images_seen, ours.updates) == (256, 6)
    assert json.loads((RUN / "run.json").read_text())["precision"] == "64-true"


def test_a_run_without_a_checkpoint_starts_again(here, run):
    run("fit", "-c", "tiny.yaml")
    final = (RUN / "final.png").read_bytes()
    for checkpoint in (RUN / "checkpoints").iterdir():
        checkpoint.unlink()
    code, out, _ = run("resume", str(RUN))
    assert code == 0
    assert out.startswith("runs/tiny has no checkpoint yet: it starts again.\n")
    assert (RUN / "final.png").read_bytes() == final


def test_a_run_can_be_set_back_to_one_of_its_checkpoints(here, run):
    run("fit", "-c", "tiny.yaml", "--checkpoint.every", "64")
    final = (RUN / "final.png").read_bytes()
    first = min((RUN / "checkpoints").iterdir())
    assert run("resume", str(first)).code == 0
    assert (RUN / "final.png").read_bytes() == final


def test_a_moved_run_continues_where_it_is(here, run):
    run("fit", "-c", "tiny.yaml")
    RUN.rename("elsewhere")
    assert run("resume", "elsewhere", "--images", "192").code == 0
    assert imgsynth.load("elsewhere").images_seen == 192
    assert not RUN.exists()


def test_a_signal_decides_the_exit_code(here, run, monkeypatch):
    def stop_at_once(self, trainer, *args):
        self.signal = signal.SIGTERM
        trainer.should_stop = True

    monkeypatch.setattr(GracefulStop, "on_train_batch_end", stop_at_once)
    assert run("fit", "-c", "tiny.yaml").code == 128 + signal.SIGTERM


# -- folders ----------------------------------------------------------------------------------


def test_a_further_process_of_a_run_takes_the_folder_of_the_first(here, monkeypatch):
    folder = runs.new_folder("runs", None, "proposal")
    (folder / "checkpoints").mkdir(parents=True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runs.new_folder("runs", None, "proposal") == folder


def test_processes_started_from_outside_need_a_name(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="cannot agree on a name"):
        runs.new_folder("runs", None, "proposal")
    assert runs.new_folder("runs", "mine", "proposal") == Path("runs/mine")


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("runs/a", "runs/a"),
        ("runs/a/checkpoints", "runs/a"),
        ("runs/a/checkpoints/images-000000000064.ckpt", "runs/a"),
        ("runs/a/last.ckpt", "runs/a"),
    ],
)
def test_a_run_is_found_from_any_of_its_parts(here, path, folder):
    Path("runs/a/checkpoints").mkdir(parents=True)
    for file in ("runs/a/checkpoints/images-000000000064.ckpt", "runs/a/last.ckpt"):
        Path(file).touch()
    assert runs.folder_of(Path(path)) == Path(folder)


def test_a_run_of_so_many_steps_is_made_longer_in_images(here, run):
    text = Path("tiny.yaml").read_text().replace("images: 128\n", "")
    Path("tiny.yaml").write_text(text.replace("trainer: {", "trainer: {max_steps: 1, "))
    assert run("fit", "-c", "tiny.yaml").code == 0
    code, out, err = run("resume", str(RUN), "--images", "128")
    assert code == 0, err
    assert "Trained on 128 images." in out


UNTYPED = """\
from imgsynth.methods import HingeGAN


class Untyped(HingeGAN):
    def __init__(self, generator, discriminator, gain=1.0, **kwargs):
        super().__init__(generator, discriminator, **kwargs)
"""


def test_an_argument_without_its_bases_type_is_asked_for_it(here, run):
    Path("untyped_gan.py").write_text(UNTYPED)
    code, _, err = run(
        "fit", "-c", "tiny.yaml", "--model", "untyped_gan.Untyped", "--model.generator.width", "8"
    )
    assert code == 2
    assert "Untyped.__init__ gives 'generator' no type" in err
    assert "Expected generator: nn.Module, as HingeGAN has it." in err


def test_the_summary_names_the_best_checkpoint(here, run):
    key = "train/discriminator/real"
    options = ("--images", "320", "--checkpoint.every", "64", "--checkpoint.keep", "1")
    out = run("fit", "-c", "tiny.yaml", *options, "--checkpoint.monitor", key).out
    rows = {row["images"]: row[key] for row in read_rows(RUN)}
    best = min(rows, key=rows.get)
    path = RUN / "checkpoints" / f"images-{best:012d}.ckpt"
    assert f"Best {key}: {rows[best]:.4g}, in {path}\n" in out
    assert path.is_file()


def test_the_summary_names_only_files_that_are_there(here, run):
    out = run("fit", "-c", "tiny.yaml", "--trainer.log_every_n_steps", "50").out
    assert not (RUN / "record.jsonl").exists()
    assert "final.png" in out
    assert "record.jsonl" not in out


def test_a_run_goes_on_after_its_folder_of_images_has_moved(here, run):
    for i in range(8):
        save_png(here / "photos" / f"{i}.png", torch.full((1, 8, 8), i, dtype=torch.uint8))
    Path("photos/9.png").write_bytes(b"")
    line = ["fit", "-c", "tiny.yaml", "--data", "ImageFolder", "--data.root", "photos"]
    line += ["--data.unusable", "skip", "--data.batch_size", "8", "--images", "8", "--name", "a"]
    with pytest.warns(UserWarning, match=r"1 of the 9 images in photos .* '9\.png' is empty"):
        assert run(*line).code == 0
    Path("photos").rename("moved")
    lost = run("resume", "runs/a", "--images", "16")
    assert lost.code == 2
    assert "The folder photos does not exist" in lost.err
    with pytest.warns(UserWarning, match=r"1 of the 9 images in moved"):
        assert run("resume", "runs/a", "--images", "16", "--data.root", "moved").code == 0
    assert [row["images"] for row in read_rows("runs/a")] == [8, 16]
    assert len(imgsynth.trained_on("runs/a")) == 8


def test_networks_that_do_not_fit_are_told_before_images_are_decoded(here, run, monkeypatch):
    save_png(here / "photos" / "a.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
    monkeypatch.setattr("imgsynth.data.folder.cached", None)
    line = shlex.split(
        "fit --model HingeGAN --model.generator DCGANGenerator --images 8 "
        "--model.discriminator DCGANDiscriminator --data ImageFolder"
    )
    failed = run(*line, "--data.root", "photos", "--data.size", "41", "--data.channels", "3")
    assert failed.code == 2
    assert "41x41" in failed.err
