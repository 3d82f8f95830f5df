"""What Lightning says that does not concern our runs."""

import logging
import warnings

_WARNINGS = (
    # The loaders index a tensor; more workers would make them slower.
    r".*does not have many workers.*",
    # The averaged copies stay in evaluation mode on purpose.
    r"Found \d+ module\(s\) in eval mode at the start of training.*",
    # Reports are counted in updates, not in epochs.
    r".*is smaller than the logging interval.*",
    # The length of a run is given in images.
    r"`max_epochs` was not set.*",
    # A datamodule has held-out images, whether or not the method validates by itself.
    r"You passed in a `val_dataloader` but have no `validation_step`.*",
    # Data without held-out images has no loader of them.
    r"Total length of `list` across ranks is zero.*",
    # About a class that torch renamed and Lightning still uses.
    r".*LeafSpec.*is deprecated.*",
)
_LINES = (
    "💡 Tip",
    "`Trainer.fit` stopped: `max_steps",
    "`weights_only` was not set",
    "Restoring states from",
    "Restored all states from",
    "GPU available",
    "TPU available",
    "HPU available",
    "Initializing distributed",
    "-" * 100,  # around how many processes there are: the command line says it in its first line
)

_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)


def _concerns_us(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LINES)


def quiet() -> None:
    """Silence Lightning's advice and tips that do not apply; harmless when called again."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # Filters of a logger do not see what its children emit, so they go where it is emitted.
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_concerns_us)
