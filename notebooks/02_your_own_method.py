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
# # Your own method, and your own data
#
# A method is an objective: two loss methods that return named terms. Optimisers, gradients,
# averaging, logging, resuming and sampling come with the base class. As an example, the
# relativistic pairing GAN (Jolicoeur-Martineau 2019; the loss of R3GAN): the discriminator judges
# whether a real image looks more real than a fake one.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from skimage.data import lfw_subset
from torch import Tensor
from torch.nn.functional import softplus

from imgsynth.callbacks import Length, Progress, quiet
from imgsynth.data import Digits, ImageDataModule, Split
from imgsynth.images import from_uint8, grid, to_uint8
from imgsynth.methods import GAN
from imgsynth.networks import DCGANDiscriminator, DCGANGenerator
from imgsynth.optim import Adam
from imgsynth.testing import ContractError, check_datamodule, check_method
from imgsynth.types import Batch, Losses

quiet()
torch.set_num_threads(1)  # images this small are fastest with one thread
IMAGES = int(os.environ.get("IMGSYNTH_NOTEBOOK_IMAGES", 60_000))


class RelativisticGAN(GAN):
    """GAN whose discriminator compares a real image with a fake one."""

    def difference(self, batch: Batch, fakes: Batch) -> Tensor:
        real = self.critic(batch["image"], self.labels_of(batch))
        return real - self.critic(fakes["image"], fakes.get("label"))

    def discriminator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        return {"relativistic": softplus(-self.difference(batch, fakes)).mean()}

    def generator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        return {"relativistic": softplus(self.difference(batch, fakes)).mean()}


# %% [markdown]
# ## Is it right?
#
# `check_method` trains a few updates and looks into them: who changed what along which gradients,
# whether a checkpoint holds everything, whether the same seed gives the same result. Put it into a
# test of yours.


# %%
def small(cls):
    shape = (1, 8, 8)
    generator = DCGANGenerator(shape, num_classes=2, width=4, latent_dim=8)
    discriminator = DCGANDiscriminator(
        shape, num_classes=2, width=4, batch_norm=False, spectral_norm=True
    )
    return cls(generator, discriminator)


check_method(lambda: small(RelativisticGAN))
print("RelativisticGAN keeps the contract.")

# %% [markdown]
# Mistakes that train without an error are what it is for:


# %%
class Mistaken(RelativisticGAN):
    """Makes fakes of its own in the discriminator's loss: the gradient runs into the generator."""

    def discriminator_loss(self, batch: Batch, fakes: Batch) -> Losses:
        return super().discriminator_loss(batch, self.fakes(batch))


try:
    check_method(lambda: small(Mistaken))
except ContractError as error:
    print(error)

# %% [markdown]
# ## Does it learn?
#
# The same class works on the command line, from a file in the working directory:
# `imgsynth fit -c gan/hinge_digits --model my_gan.RelativisticGAN`.

# %%
seed_everything(0)
data = Digits(batch_size=64)
method = RelativisticGAN(
    DCGANGenerator(data.image_shape, 10, latent_dim=32, width=32, full_size_map=True),
    DCGANDiscriminator(
        data.image_shape,
        10,
        width=32,
        start=2,
        full_size_map=True,
        batch_norm=False,
        spectral_norm=True,
    ),
    generator_optimizer=Adam(lr=8e-4, beta1=0.0, beta2=0.99),
    discriminator_optimizer=Adam(lr=2e-3, beta1=0.0, beta2=0.99),
)
Trainer(
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    callbacks=[Length(IMAGES), Progress()],
).fit(method, data)

picture = to_uint8(grid(method.sample(50), columns=10))[0]
plt.figure(figsize=(6, 3))
plt.imshow(picture, cmap="gray", vmin=0, vmax=255)
plt.axis("off")
plt.show()

# %% [markdown]
# ## Your own data
#
# A folder of images needs no code: `ImageFolder("photos", size=64)`. Anything else is a subclass
# with one method that returns a split: images as whole numbers `(N, C, H, W)` and their labels. The
# order of training, moving to the device, resuming, fingerprints, subsets and several processes
# come with the base class. As an example, the faces that scikit-image carries.


# %%
class Faces(ImageDataModule):
    """200 gray patches of photographs, 25x25 pixels: 100 faces and 100 that are none."""

    names = ("face", "none")

    def load_split(self, split: str) -> Split:
        pixels = torch.from_numpy(lfw_subset())  # (200, 25, 25), floats in [0, 1]
        images = (pixels * 255).round().to(torch.uint8)[:, None]
        labels = torch.arange(200) // 100
        held_out = torch.arange(200) % 5 == 0
        chosen = held_out if split == "test" else ~held_out
        return images[chosen], labels[chosen]


check_datamodule(Faces(batch_size=16))
faces = Faces()
print(faces.image_shape, dict(zip(faces.class_names, faces.class_counts, strict=True)))

images, _ = next(faces.reference("train", 160))
shown = torch.cat([images[:20], images[80:100]])
picture = to_uint8(grid(from_uint8(shown), columns=10, scale=2))[0]
plt.figure(figsize=(6, 2.6))
plt.imshow(picture, cmap="gray", vmin=0, vmax=255)
plt.axis("off")
plt.show()

# %% [markdown]
# On the command line it is `--data my_data.Faces`. Has a generator seen the images it is tested on?
# Each image has a hash, and a checkpoint holds those of all images it was trained on
# (`imgsynth.trained_on(run)`).

# %%
seen = np.isin(faces.fingerprint("test"), faces.fingerprint("train"))
print(f"{seen.sum()} of {len(seen)} test images are among those to train on.")
