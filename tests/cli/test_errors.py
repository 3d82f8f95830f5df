"""Wrong command lines: each ends with code 2, at most three lines, and says what is wrong."""

import shlex
import warnings
from pathlib import Path

import pytest
import torch

import imgsynth
from imgsynth.cli import main
from imgsynth.cli.errors import UsageError, message, nearest, plain_warnings

N = (
    "fit --model HingeGAN --model.generator MLPGenerator --model.discriminator MLPDiscriminator "
    "--data Digits"
)
B = f"{N} --images 64"
C = "fit -c tiny.yaml"

FILES = {
    "typo.yaml": "traner: {max_epochs: 3}",
    "abbreviated.yaml": "trainer: {max_epoch: 3}",
    "brackets.yaml": "model: [1",
    "number.yaml": "model: 3",
    "group.yaml": "trainer: 5",
    "list.yaml": "- a\n- b",
    "empty.yaml": "",
    "control.yaml": "\x00\x01",
    "init_arg.yaml": "model:\n  class_path: HingeGAN\n  init_arg: {generator: 3}",
    "generatr.yaml": "model:\n  class_path: HingeGAN\n  init_args: {generatr: 3}",
    "size.yaml": "data:\n  class_path: Digits\n  init_args: {size: big}",
    "shorthand.yaml": "model:\n  HingeGAN:\n    generator: 3",
    "a_file": "x",
    "my_errors_package.py": """
from torch import nn
from imgsynth.methods import HingeGAN

class Mine(HingeGAN):
    def __init__(self, generator, discriminator, extra: int = 3, **kwargs):
        super().__init__(generator, discriminator, **kwargs)

class Net(nn.Module):
    def __init__(self, size: int = 3):
        super().__init__()
""",
    "my_broken_package.py": "import nothing_of_this_name",
}

WRONG = [
    # commands
    ("fi", "Did you mean imgsynth fit?"),
    ("train", "sample | evaluate | reconstruct | likelihood | check-data | list | help"),
    ("reconstuct", "Did you mean imgsynth reconstruct?"),
    ("--hlep", "Did you mean imgsynth --help?"),
    ("list method", "Did you mean imgsynth list methods?"),
    ("list methods networks", "Unexpected 'networks'"),
    ("list --al", "list has no option --al"),
    ("help HingGAN", "Did you mean imgsynth help HingeGAN?"),
    ("help GAN LSGAN", "Unexpected 'LSGAN'"),
    # the command line itself
    ("fit", "There is no --model"),
    ("fit --images 10", "-c RECIPE"),
    (N, "The run has no length"),
    ("fit --data Digits --images 64", "There is no --model"),
    (B.replace("--data Digits", ""), "There is no --data"),
    ("fit stray", "Unexpected 'stray'"),
    (f"{B} stray", "'64' is followed by 'stray'"),
    (f"{B} --trainer.devices 0 1", "lists brackets: --trainer.devices '[0,1]'"),
    (f"{B} --seed", "--seed expects a value"),
    (f"{B} --model.minimax", "--model.minimax expects a value"),
    (f"{B} --sed 1", "Did you mean --seed?"),
    (f"{B} --see 1", "Did you mean --seed?"),
    (f"{B} --seed.x 1", "There is no option --seed.x"),
    (f"{B} --nam x", "Did you mean --name?"),
    (f"{B} --checkpont.keep 3", "Did you mean --checkpoint?"),
    (f"{B} --trainer 5", "imgsynth help Trainer"),
    # the run
    (f"{B} --seed x", "--seed expects a whole number, got 'x'"),
    (f"{B} --seed 1.5", "--seed expects a whole number, got '1.5'"),
    (f"{B} --seed -1", "between 0 and 4294967295, got -1"),
    (f"{N} --images many", "such as 200000, '200k' or '1.5M', got 'many'"),
    (f"{N} --images -5", "got -5"),
    (f"{N} --images 0", "--images must be at least 1"),
    (f"{N} --images 1.5", "got '1.5'"),
    (f"{B} --trainer.max_steps 5", "both say how long the run is"),
    (f"{C} --name a/b", "--out says in which folder"),
    (f"{C} --name ..", "no name of a folder"),
    (f"{C} --name ''", "no name of a folder"),
    (f"{C} --name trained", "imgsynth resume runs/trained"),
    (f"{C} --out a_file", "Not a directory: 'a_file/tiny'"),
    # the Trainer and our callbacks
    (f"{B} --trainer.max_epoch 5", "Did you mean --trainer.max_epochs?"),
    (f"{B} --trainer.max_epochs five", "expects a whole number, got 'five'"),
    (f"{B} --trainer.foo.bar 1", "There is no option --trainer.foo.bar"),
    (f"{B} --trainer.accelerator gpuu", "invalid accelerator name"),
    (f"{B} --trainer.devices 0", "Expected at least 1"),
    (f"{B} --trainer.strategy ddpp", "invalid strategy name"),
    (f"{B} --trainer.strategy deepspeed", "cannot train HingeGAN: it steps a single optimiser"),
    (f"{B} --trainer.strategy deepspeed_stage_2", "Expected ddp, or nothing"),
    (f"{B} --trainer.strategy fsdp", "it keeps a part of each parameter on each device"),
    (f"{B} --trainer.precision 31", "'bf16-mixed'"),
    (f"{B} --trainer.callbacks Nothing", "--trainer.callbacks expects a list"),
    (f"{B} --trainer.gradient_clip_val 1.0", "Expected --model.generator_clip"),
    (f"{B} --trainer.accumulate_grad_batches 2", "Expected --model.accumulate"),
    (f"{B} --trainer.enable_checkpointing false", "Expected --checkpoint.every"),
    (f"{B} --samples.evry 3", "Did you mean --samples.every?"),
    (f"{B} --samples.every often", "got 'often'"),
    (f"{B} --samples.every 0", "every must be at least 1 image"),
    (f"{B} --checkpoint.kep 3", "Did you mean --checkpoint.keep?"),
    (f"{B} --checkpoint.keep all", "--checkpoint.keep expects a whole number, got 'all'"),
    (f"{B} --checkpoint.keep -1", "keep must be at least 0"),
    (f"{B} --checkpoint.minutes 0", "minutes must be above 0"),
    # the method
    (f"{B} --model HingGAN", "Did you mean --model HingeGAN?"),
    (f"{B} --model hingegan", "Did you mean --model HingeGAN?"),
    (f"{B} --model MLPGenerator", "'MLPGenerator' is of another kind"),
    (f"{B} --model torch.nn.Linear", "'torch.nn.Linear' is of another kind"),
    (f"{B} --model imgsynth.methods.Foo", "has no attribute 'Foo'"),
    (f"{B} --model no_package.Foo", "No module named 'no_package'"),
    (f"{B} --model my_errors_package.Minee", "has no attribute 'Minee'"),
    (f"{B} --model my_broken_package.Net", "No module named 'nothing_of_this_name'"),
    (f"{B} --model Method", "--model is no class that has options"),
    ("fit --model HingeGAN --data Digits --images 64", "needs --model.generator and"),
    (
        "fit --model.generator MLPGenerator --data Digits",
        "Expected a class: --model Classifier or GAN",
    ),
    (f"{B} --model.lrr 3", "--model.generator_optimizer.lr or"),
    (f"{B} --model.width 3", "--model.generator.width or --model.discriminator.width?"),
    (f"{B} --model.generater.width 64", "Did you mean --model.generator.width?"),
    (f"{B} --model.generator_clp 3", "Did you mean --model.generator_clip?"),
    (f"{B} --model.generator_clip -1", "generator_clip must be above 0"),
    (f"{B} --model.discriminator_steps two", "expects a whole number, got 'two'"),
    (f"{B} --model.discriminator_steps 0", "discriminator_steps must be at least 1"),
    (f"{B} --model.accumulate 3", "cannot be cut into accumulate = 3"),
    (f"{B} --model LSGAN --model.real_label high", "expects a number, got 'high'"),
    (f"{B} --model.init_args.acumulate 3", "Did you mean --model.accumulate?"),
    (f"{B} --model.ema_half_life long", "ema_half_life: expected a number"),
    (f"{B} --model my_errors_package.Mine --model.extr 3", "Did you mean --model.extra?"),
    # its parts
    (f"{B} --model.generator MLPGenerater", "Did you mean --model.generator MLPGenerator?"),
    (f"{B} --model.generator Digits", "'Digits' is of another kind"),
    (f"{B} --model.generator.wdth 3", "Did you mean --model.generator.width?"),
    (f"{B} --model.generator.widt 3", "Did you mean --model.generator.width?"),
    (f"{B} --model.generator.width wide", "--model.generator.width expects a whole number"),
    (f"{B} --model.generator.image_shape 8", "values in brackets, such as [3,32,32]"),
    (f"{B} --model.generator.image_shape [3,8,8]", "they must agree"),
    (f"{B} --model.generator.num_classes 3", "they must agree"),
    (f"{B} --model.generator my_errors_package.Net --model.generator.sise 3", "generator.size?"),
    (f"{B} --model.generator_optimizer Adamm", "Did you mean --model.generator_optimizer Adam?"),
    (f"{B} --model.generator_optimizer MLPGenerator", "Expected Adam, AdamW, SGD, RMSprop"),
    (f"{B} --model.generator_optimizer.beta 0.1", "--model.generator_optimizer.beta1?"),
    (f"{B} --model.generator_optimizer.lr fast", "expects a number, got 'fast'"),
    (f"{B} --model.generator_optimizer.lr -1", "lr must be at least 0, got -1.0"),
    (f"{B} --model.generator_schedule LinearDecay --model.generator_schedule.strt 3", ".start?"),
    (f"{B} --model.augment RandomTranslatio", "--model.augment RandomTranslation?"),
    (f"{B} --model.augment RandomTranslation --model.augment.max_shif 2", "max_shift?"),
    (f"{B} --model.augment RandomTranslation --model.augment.max_shift -2", "0 or more, got -2"),
    # the data
    (f"{B} --data Digit", "Did you mean --data Digits?"),
    (f"{B} --data Adam", "'Adam' is of another kind"),
    (f"{B} --data Arrays", "Arrays needs --data.images"),
    (f"{B} --data MNIST --data.root nowhere", "No MNIST files in nowhere"),
    (f"{B} --data.sze 3", "Did you mean --data.size?"),
    (f"{B} --data.size x", "--data.size expects a whole number, got 'x'"),
    (f"{B} --data.batch_size 0", "batch_size must be at least 1"),
    (f"{B} --data.batch_size 5000", "the training split has 1,297"),
    (f"{B} --data.num_workers -1", "num_workers must not be negative"),
    (f"{B} --model.generator DCGANGenerator --data.size 9", "9x9 pixels"),
    # configurations
    (f"{C} -c no_file.yaml", "'no_file.yaml' is neither a file nor a recipe"),
    (f"{C} -c .", "'.' is a folder"),
    (f"{C} -c typo.yaml", "There is no option --traner (in typo.yaml)."),
    (f"{C} -c abbreviated.yaml", "--trainer.max_epoch (in abbreviated.yaml)"),
    (f"{C} -c brackets.yaml", "brackets.yaml: the file is no valid YAML in line 1"),
    (f"{C} -c number.yaml", "--model (in number.yaml): '3' is of another kind"),
    (f"{C} -c group.yaml", "trainer must hold options, got 5"),
    (f"{C} -c list.yaml", "the file is no mapping"),
    (f"{C} -c empty.yaml", "the file is empty"),
    (f"{C} -c control.yaml", "control.yaml: the file is no valid YAML"),
    (f"{C} -c latin.yaml", "the file is no text (UTF-8)"),
    (f"{C} -c init_arg.yaml", "class_path and, for its options, init_args"),
    (f"{C} -c generatr.yaml", "Did you mean --model.generator?"),
    (f"{C} -c size.yaml", "--data.size (in size.yaml) expects a whole number, got 'big'"),
    (f"{C} -c shorthand.yaml", "class_path and, for its options, init_args"),
    # resume
    ("resume", "arguments are required: RUN"),
    ("resume runs/traned", "Did you mean runs/trained?"),
    ("resume trained", "Did you mean runs/trained?"),
    ("resume .", "it has no config.yaml"),
    ("resume runs/trained more", "Unexpected 'more'"),
    ("resume runs/trained --image 200", "Did you mean --images?"),
    ("resume runs/trained --images", "--images expects a value"),
    ("resume runs/trained --images few", "got 'few'"),
    ("resume runs/trained --model.accumulate 2", "--model.accumulate cannot change"),
    ("resume runs/trained --data.size 16", "Expected options of --trainer"),
    ("resume --trainer.device 2 runs/trained", "Did you mean --trainer.devices?"),
    ("resume runs/trained --trainer.devices", "--trainer.devices expects a value"),
    # sample
    ("sample", "arguments are required: RUN"),
    ("sample runs/nothing", "There is no run or checkpoint at 'runs/nothing'"),
    ("sample runs", "holds no checkpoint"),
    ("sample runs/trained --num 0", "--num must be at least 1"),
    ("sample runs/trained --num some", "got 'some'"),
    ("sample runs/trained --n 7", "Did you mean --num?"),
    ("sample runs/trained --label 10", "Expected 0 to 9"),
    ("sample runs/trained --label -1", "Expected 0 to 9"),
    ("sample runs/trained --label three", "--label expects a whole number, got 'three'"),
    ("sample runs/trained --lable 3", "Did you mean --label?"),
    ("sample runs/trained --seed x", "--seed expects a whole number, got 'x'"),
    ("sample runs/trained --device tpu", "Expected auto, cpu, cuda"),
    ("sample runs/trained --device cuda:99", "this machine has no such device"),
    ("sample runs/trained --out a_file", "a_file"),
    ("sample half.ckpt", "truncated"),
    # reconstruct and likelihood, of a GAN; more in their own tests
    ("reconstruct runs/traned", "Did you mean runs/trained?"),
    ("reconstruct runs/trained", "HingeGAN does not reconstruct images: it has no encoder"),
    ("reconstruct runs/trained --num_samples 3", "Did you mean --num-samples?"),
    ("reconstruct half.ckpt a_file", "truncated"),
    ("likelihood runs/traned", "Did you mean runs/trained?"),
    ("likelihood runs/trained", "HingeGAN has no likelihood"),
    ("likelihood runs/trained --evaluate.num 3", "likelihood has no option --evaluate.num"),
    ("likelihood runs/trained --extractor Pixels", "likelihood has no option --extractor"),
    ("likelihood runs/trained --data.sze 3", "Did you mean --data.size?"),
    ("sample pickled.ckpt", "refused, nothing of it was run"),
    ("sample other.ckpt", "was not saved by imgsynth"),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny):
    """A folder with a run, and much that is wrong."""
    folder = tmp_path_factory.mktemp("workplace")
    for name, text in {**FILES, "tiny.yaml": tiny}.items():
        (folder / name).write_text(text)
    (folder / "latin.yaml").write_bytes(b"seed: \xff\xfe")
    torch.save({"x": Path("a")}, folder / "pickled.ckpt")
    torch.save({"x": 1}, folder / "other.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "-c", "tiny.yaml", "--name", "trained"]) == 0
    checkpoint = max((folder / "runs/trained/checkpoints").iterdir())
    (folder / "half.ckpt").write_bytes(checkpoint.read_bytes()[:2000])
    return folder


@pytest.mark.parametrize(("line", "fragment"), WRONG, ids=[line[-60:] for line, _ in WRONG])
def test_a_wrong_command_line_is_explained_in_three_lines(
    line, fragment, workplace, monkeypatch, run
):
    monkeypatch.chdir(workplace)
    code, _, err = run(*shlex.split(line))
    assert code == 2
    assert fragment in err
    assert len(err.splitlines()) <= 3
    assert "Traceback" not in err
    assert not Path("runs", "hingegan-digits", "record.jsonl").exists()


def test_there_are_more_than_sixty_wrong_lines_and_none_twice():
    lines = [line for line, _ in WRONG]
    assert len(set(lines)) == len(lines) > 60


def test_more_processes_than_processors_are_refused_before_they_start(here, run, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer.fit", None)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    code, _, err = run("fit", "-c", "tiny.yaml", "--trainer.devices", "3")
    assert code == 2
    assert "--trainer.devices 3: this machine has 2 processors" in err
    assert not Path("runs").exists()


def test_the_environment_variable_shows_the_traceback(here, run, monkeypatch):
    monkeypatch.setenv("IMGSYNTH_TRACEBACK", "1")
    with pytest.raises(UsageError, match="There is no command"):
        run("fi")


def test_a_fault_of_ours_keeps_its_traceback(run, monkeypatch):
    monkeypatch.setattr("imgsynth.cli.helping._recipes", lambda: {}["missing"])
    with pytest.raises(KeyError):
        run("list")


def test_an_error_of_another_library_says_how_to_see_more():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    assert message(caught.value).splitlines()[1].startswith("IMGSYNTH_TRACEBACK=1")


def test_a_message_of_many_lines_is_cut_to_three():
    assert len(message(ValueError("a\nb\nc\nd\ne")).splitlines()) <= 3
    assert message(UsageError("a\nb", "c", "d")) == "imgsynth: a b\nc\nd"


@pytest.mark.parametrize(
    ("word", "expected"),
    [("HingGAN", "HingeGAN"), ("hingegan", "HingeGAN"), ("hin", "HingeGAN"), ("ls-gan", "LSGAN")],
)
def test_the_nearest_name_is_found(word, expected):
    assert nearest(word, ["GAN", "LSGAN", "HingeGAN"]) == [expected]


def test_nothing_is_near_a_word_that_resembles_no_name():
    assert nearest("quux", ["GAN", "LSGAN"]) == []


def test_a_gpu_that_is_not_there_is_said_to_be_missing(here, run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("gpu", "cuda"):
        code, _, err = run(*C.split(), "--trainer.accelerator", name, "--trainer.devices", "3")
        assert code == 2
        assert f"--trainer.accelerator {name}: torch finds no GPU on this machine." in err


def test_a_wandb_logger_of_ones_own_and_our_options_contradict_each_other(here, run):
    logger = ("--trainer.logger", "lightning.pytorch.loggers.WandbLogger")
    code, _, err = run(*C.split(), *logger, "--wandb.project", "mine")
    assert code == 2
    assert "--wandb.project and a WandbLogger among --trainer.logger both describe" in err


def test_an_interrupt_before_training_has_its_own_exit_code(here, run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("imgsynth.methods.HingeGAN.configure_model", interrupted)
    assert run(*C.split()).code == 130


def test_warnings_of_ours_are_one_line_and_others_are_pythons():
    with plain_warnings():
        ours = warnings.formatwarning("Beware.", UserWarning, imgsynth.__file__, 3)
        others = warnings.formatwarning("Beware.", UserWarning, warnings.__file__, 3)
    assert ours == "imgsynth: warning: Beware.\n"
    assert others == warnings.formatwarning("Beware.", UserWarning, warnings.__file__, 3)
    assert "UserWarning: Beware." in others
