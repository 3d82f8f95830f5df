# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart
#
# A class-conditional GAN on real handwritten digits (8x8 pixels, from scikit-learn), trained for
# about a minute on a CPU; then samples, the record, and resuming. Everything here is a plain
# Lightning `Trainer` with parts that you can exchange.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer, seed_everything

import imgsynth
from imgsynth.callbacks import (
    Checkpoint,
    Evaluate,
    Length,
    Progress,
    Samples,
    newest_checkpoint,
    quiet,
)
from imgsynth.data import Digits
from imgsynth.images import grid, to_uint8
from imgsynth.loggers import Record, read_rows
from imgsynth.methods import HingeGAN
from imgsynth.networks import DCGANDiscriminator, DCGANGenerator
from imgsynth.optim import Adam

quiet()  # Lightning's tips
torch.set_num_threads(1)  # images this small are fastest with one thread
IMAGES = int(os.environ.get("IMGSYNTH_NOTEBOOK_IMAGES", 100_000))  # length of the run
RUN = Path("runs/quickstart")

# %% [markdown]
# ## The data
#
# A datamodule says what it holds. Inside imgsynth images are always float `(B, C, H, W)` in
# [-1, 1].

# %%
data = Digits(batch_size=64)
print(data.image_shape, data.num_classes, data.class_counts)

# %% [markdown]
# ## The method
#
# An objective (`HingeGAN`) takes networks, an augmentation and optimisers as arguments. With
# `num_classes` both networks are conditional.


# %%
def make():
    return HingeGAN(
        DCGANGenerator(
            data.image_shape, data.num_classes, latent_dim=32, width=32, full_size_map=True
        ),
        DCGANDiscriminator(
            data.image_shape,
            data.num_classes,
            width=32,
            start=2,
            full_size_map=True,
            batch_norm=False,
            spectral_norm=True,
        ),
        generator_optimizer=Adam(lr=8e-4, beta1=0.0, beta2=0.99),
        discriminator_optimizer=Adam(lr=2e-3, beta1=0.0, beta2=0.99),
    )


def trainer(images):
    return Trainer(
        accelerator="cpu",
        logger=Record(RUN),
        callbacks=[
            Length(images),
            Samples(),
            Evaluate(every=IMAGES // 5, metrics="fd,precision,recall", num="2k"),
            Checkpoint(monitor="val/fd2k"),  # after Evaluate, keeps the best as well
            Progress(),
        ],
        enable_model_summary=False,
    )


seed_everything(0)
if not newest_checkpoint(RUN / "checkpoints"):
    trainer(IMAGES).fit(make(), data)

# %% [markdown]
# ## What it learnt
#
# `imgsynth.load` rebuilds the method from the run's newest checkpoint. Image i depends on the
# checkpoint, the seed, i and the label alone. One class a column:

# %%
method = imgsynth.load(RUN)


def show(images, columns=10):
    picture = to_uint8(grid(images, columns=columns))[0]
    plt.figure(figsize=(6, 6 * picture.shape[0] / picture.shape[1]))
    plt.imshow(picture, cmap="gray", vmin=0, vmax=255)
    plt.axis("off")
    plt.show()


show(method.sample(50, seed=0))
show(method.sample(20, labels=3, seed=1))

# %% [markdown]
# ## The record
#
# Each run folder has a record: one row per report, safe to read while the run goes on. Loss terms
# and scores have rows of their own.


# %%
def curves(kind, ylabel):
    rows = [row for row in read_rows(RUN) if any(key.startswith(kind) for key in row)]
    images = [row["images"] for row in rows]
    for key in sorted(k for k in rows[-1] if k.startswith(kind)):
        plt.plot(images, [row[key] for row in rows], label=key.removeprefix(kind))
    plt.xlabel("images seen")
    plt.ylabel(ylabel)
    plt.legend()
    plt.show()


curves("train/", "loss term")

# %% [markdown]
# ## Scores
#
# `fd2k`: the Frechet distance of 2,000 generated images to the real ones, in the features of a
# classifier of these digits (lower is better; it is no FID, which needs the Inception network).
# Precision is the share of generated images that lie among the real ones, recall the share of real
# images that lie among the generated ones. `imgsynth evaluate runs/quickstart` shows them in a
# table, with what held-out real images get, and with a hash of what they were measured by.

# %%
curves("val/", "score")

# %% [markdown]
# ## Going on
#
# A run is continued from a checkpoint: the data order, the random numbers and the averages are
# exactly those of a run that was never interrupted. Here the run gets a tenth longer.

# %%
method = make()
trainer(IMAGES * 11 // 10).fit(
    method, data, ckpt_path=newest_checkpoint(RUN / "checkpoints"), weights_only=True
)
print(method.images_seen, "images seen")
