"""Methods that are wrong on purpose, each in a way that trains without an error."""

import random

import torch
from torch import nn

from imgsynth import losses
from imgsynth.methods import HingeGAN
from imgsynth.networks import MLPGenerator


class RawBackward(HingeGAN):
    """Back-propagates by itself: on several devices nothing would be synchronised."""

    def discriminator_loss(self, batch, fakes):
        terms = super().discriminator_loss(batch, fakes)
        terms["real"].backward(retain_graph=True)
        return terms


class ForgottenTerm(HingeGAN):
    """Never shows the discriminator a fake."""

    def discriminator_loss(self, batch, fakes):
        return {"real": losses.hinge_d_real(self.critic(batch["image"], self.labels_of(batch)))}


class FakeNotDetached(HingeGAN):
    """Makes fakes of its own, with graph, so that the gradient runs into the generator."""

    def discriminator_loss(self, batch, fakes):
        return super().discriminator_loss(batch, self.fakes(batch))


class HiddenRandomNumber(HingeGAN):
    """Draws from Python's generator, which nothing seeds or saves."""

    def discriminator_loss(self, batch, fakes):
        noisy = batch["image"] + 0.1 * random.random()
        return super().discriminator_loss({**batch, "image": noisy}, fakes)


class DeadTerm(HingeGAN):
    """A term that looks fine in the log and teaches nothing."""

    def generator_loss(self, batch, fakes):
        terms = super().generator_loss(batch, fakes)
        return {**terms, "brightness": (fakes["image"].mean() ** 2).detach()}


class HiddenState(HingeGAN):
    """Counts in an attribute that no checkpoint holds."""

    calls = 0

    def generator_loss(self, batch, fakes):
        self.calls += 1
        terms = super().generator_loss(batch, fakes)
        return {name: term * self.calls for name, term in terms.items()}


class ForgottenSuper(HingeGAN):
    """Saves something of its own and forgets the rest."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = 1

    def on_load_checkpoint(self, checkpoint):
        pass


class ExtraStep(HingeGAN):
    """Steps the generator once more by itself; Lightning counts it."""

    def generator_loss(self, batch, fakes):
        self.optimizers()[0].step()
        return super().generator_loss(batch, fakes)


class CountedTwice(HingeGAN):
    """Runs the hook after an update twice: schedules and averages run twice as fast."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self._updated(len(batch["image"]))


class LeftOut(HingeGAN):
    """Overrides the optimisers and leaves a part of the discriminator out."""

    def configure_optimizers(self):
        generator, _ = super().configure_optimizers()
        last = list(self.discriminator.parameters())[-2:]
        discriminator = torch.optim.SGD(last, lr=1e-3)
        discriminator.param_groups[0]["initial_lr"] = 1e-3
        return [generator, discriminator]


class OfNoPlayer(HingeGAN):
    """Has a parameter outside both players; no optimiser knows of it."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, **kwargs):
        super().__init__(generator, discriminator, **kwargs)
        self.gain = nn.Parameter(torch.ones(1))

    def generate(self, latents, labels=None):
        return super().generate(self.gain * latents, labels)


class PickledState(HingeGAN):
    """Saves an object that a checkpoint without pickle cannot hold."""

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["random"] = random.Random(0)


class UnusedLayer(MLPGenerator):
    """Has a layer that no image depends on."""

    def __init__(self, image_shape, num_classes=None, latent_dim=4, width=8):
        super().__init__(image_shape, num_classes, latent_dim, width)
        self.unused = nn.Linear(2, 2)


class NotInRange(MLPGenerator):
    """Makes images beyond [-1, 1]."""

    def forward(self, z, labels=None):
        return super().forward(z, labels) + 1.5
