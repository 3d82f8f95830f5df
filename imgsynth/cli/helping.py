"""The texts of the command line: overview, lists, and the options of any class."""

import re
import textwrap

import imgsynth
from imgsynth.cli import catalogue, recipes
from imgsynth.cli.arguments import Parser
from imgsynth.cli.errors import UsageError, did_you_mean, listing, nearest

_WIDTH = 100

OVERVIEW = f"""\
imgsynth {imgsynth.__version__}: image synthesis with PyTorch Lightning

  imgsynth fit -c gan/hinge_digits       train what a recipe describes
  imgsynth resume RUN                    continue a run exactly where it was stopped
  imgsynth sample RUN --num 100          generate images from a trained model
  imgsynth evaluate RUN                  score a trained model by a declared protocol
  imgsynth reconstruct RUN               encode images and decode them again; find odd ones
  imgsynth likelihood RUN                say how probable held-out images are to a VAE
  imgsynth check-data FOLDER             look at a folder of images before training on it
  imgsynth list                          show recipes, methods, networks and data
  imgsynth help NAME                     show the options of a class, such as HingeGAN

Each command has --help. Errors take three lines; IMGSYNTH_TRACEBACK=1 shows where they come from.
"""

FIT = """\
usage: imgsynth fit [-c RECIPE]... [--option VALUE]...

Train a model. A recipe says what; options change it; all of it is kept in the run's folder.

  imgsynth fit -c gan/hinge_digits --name first
  imgsynth fit -c gan/hinge_digits --images 50k --model.generator.width 64
  imgsynth fit --model HingeGAN --model.generator DCGANGenerator \\
      --model.discriminator DCGANDiscriminator --data Digits --images 200k

the run
  -c, --config RECIPE     a recipe (`imgsynth list recipes`) or a YAML file; may be repeated, later
                          ones win; options win over all of them
  --images N              length in real images seen, such as 200k or 1.5M
  --seed N                decides everything random (0)
  --threads N             processor threads of torch; small images are fastest with 1 (torch's own
                          choice)
  --name NAME             name of the run's folder; without it, the recipe's
  --out DIR               the folder of runs (runs)
  --print_config          print the whole configuration as YAML, and stop
  --profile               print at the end where the time of a step goes

what is trained
  --model CLASS           the method: GAN, HingeGAN, ... or my_package.MyGAN
  --model.generator CLASS, --model.discriminator CLASS
                          the networks of a GAN; their size and classes follow the data
  --model.encoder CLASS, --model.decoder CLASS, --model.likelihood CLASS
                          those of a VAE, and what its outputs mean: OptimalGaussian, Bernoulli, ...
  --model.augment CLASS   what happens to real and fake images before the discriminator
  --model.generator_optimizer CLASS, --model.discriminator_optimizer CLASS, --model.optimizer CLASS
                          Adam, AdamW, SGD, RMSprop; --model.generator_optimizer.lr 1e-4
  --data CLASS            where images come from: ImageFolder, Arrays, Digits, CIFAR10, ...;
                          --data.root FOLDER, --data.batch_size 64
  --model.OPTION, --model.generator.OPTION, --data.OPTION
                          options of the chosen classes: `imgsynth help HingeGAN`

how
  --trainer.OPTION        Lightning's Trainer: accelerator, devices, precision, log_every_n_steps...
  --samples.every N       images from one sheet of samples to the next
  --evaluate.every N      images from one evaluation to the next; --evaluate.metrics fid,is,kid or,
                          without Inception weights, fd,cls_score,precision,recall; any of these
                          options turns it on, and the best checkpoint is kept
  --checkpoint.every N    images from one checkpoint to the next; --checkpoint.keep how many
  --wandb.mode MODE       Weights & Biases: online, offline or disabled; without it, WANDB_MODE,
                          else online if you are logged in, else offline
`imgsynth help Trainer`, `Samples`, `Evaluate`, `Checkpoint` and `WandB` show all of these.

Options are written out in full. Classes of your own are found in the working directory.
"""

_EXTRA = {
    "Samples": "--samples",
    "Checkpoint": "--checkpoint",
    "Evaluate": "--evaluate",
    "Trainer": "--trainer",
    "WandB": "--wandb",
}
_PARTS = ("generator", "discriminator", "encoder", "decoder", "quantizer")
"""Arguments of methods that take networks named like them."""

_FOLLOW = {"folder", "config"}
"""Arguments of theirs that follow from the run."""


def list_command(argv: list[str]) -> int:
    """Show what there is: ``imgsynth list``."""
    parser = Parser("list", "Show recipes and classes, read from their source.")
    kinds = ["recipes", *catalogue.ROLES]
    parser.add_argument("kind", metavar="KIND", nargs="?", help=f"only these: {', '.join(kinds)}")
    kind = parser.parse(argv).kind
    if kind is not None and kind not in kinds:
        raise UsageError(
            f"There is no list of {kind!r}.",
            f"Expected one of {listing(kinds)}.",
            did_you_mean(f"imgsynth list {k}" for k in nearest(kind, kinds)),
        )
    parts = [_recipes()] if kind in {None, "recipes"} else []
    parts += [_classes(role) for role in catalogue.ROLES if kind in {None, role}]
    print("\n\n".join(parts))
    return 0


def _recipes() -> str:
    lines = [(name, recipes.claim(path)) for name, path in sorted(recipes.recipes().items())]
    return _table("recipes: imgsynth fit -c NAME", lines)


def _classes(role: str) -> str:
    entries = catalogue.choices(role)
    lines = [(name, entry.summary) for name, entry in entries.items()]
    return _table(f"{role}: {catalogue.ROLES[role].option} NAME", lines)


def _table(title: str, lines: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in lines), default=0)
    rows = [
        textwrap.fill(
            f"  {name:{width}}  {text}".rstrip(),
            _WIDTH,
            subsequent_indent=" " * (width + 4),
            break_long_words=False,
        )
        for name, text in lines
    ]
    return "\n".join([title, *(rows or ["  none"])])


def help_command(argv: list[str]) -> int:
    """Show an overview, a command's help or the options of a class: ``imgsynth help``."""
    if not argv or argv[0] in {"-h", "--help"}:
        print(OVERVIEW, end="")
        return 0
    if len(argv) > 1:
        raise UsageError(f"Unexpected {argv[1]!r}.", "Expected imgsynth help NAME.")
    name = argv[0].rpartition(".")[2]
    entries = {entry: catalogue.catalogue()[entry] for entry in _helpable()}
    lightning = catalogue.trainer()
    if name == "Trainer" and lightning is not None:
        parameters = {p.name: p for p in lightning.parameters}
        print(_class_help("Trainer", "Lightning's own", parameters, "--trainer"))
        return 0
    if name not in entries:
        known = [*entries, "Trainer"]
        raise UsageError(
            f"There is no class {argv[0]!r} to show.",
            f"Expected one of {listing(known)}.",
            did_you_mean(f"imgsynth help {n}" for n in nearest(name, known)),
        )
    option = _option_of(name)
    parameters = catalogue.parameters(name)
    if name in _EXTRA:
        parameters = {k: p for k, p in parameters.items() if k not in _FOLLOW}
    print(_class_help(name, entries[name].summary, parameters, option, entries[name].text))
    return 0


def _helpable() -> list[str]:
    classes = [name for role in catalogue.ROLES for name in catalogue.choices(role)]
    return [*classes, *(name for name in _EXTRA if name in catalogue.catalogue())]


def _option_of(name: str) -> str:
    if name in _EXTRA:
        return _EXTRA[name]
    role = next(role for role in catalogue.ROLES if name in catalogue.choices(role))
    if role == "networks":
        return f"--model.{_part(name)}"
    return catalogue.ROLES[role].option


def _part(network: str) -> str:
    """Return the argument of a method that a network is for, by its name."""
    parts = {**{part.lower(): part for part in _PARTS}, "transformer": "prior"}
    return next((p for end, p in parts.items() if network.lower().endswith(end)), "network")


def _class_help(
    name: str,
    summary: str,
    parameters: dict[str, catalogue.Parameter],
    option: str,
    paragraphs: tuple[str, ...] = (),
) -> str:
    use = "" if name in _EXTRA else f"{option} {name} "
    lines = [f"{name}: {summary}", ""]
    for paragraph in paragraphs:
        lines += [textwrap.fill(_as_text(paragraph), _WIDTH), ""]
    lines += [f"imgsynth fit {use}[{option}.OPTION VALUE]...", ""]
    for parameter in parameters.values():
        default = "required" if parameter.default is None else f"default {parameter.default}"
        kind = f" {parameter.annotation}" if parameter.annotation else ""
        lines.append(f"  {option}.{parameter.name}{kind} ({default})")
        if parameter.text:
            text = _as_text(parameter.text)
            indent = " " * 6
            lines.append(
                textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
            )
    return "\n".join(lines)


def _as_text(documentation: str) -> str:
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", documentation).replace("``", "`")
