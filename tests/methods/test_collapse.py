from dataclasses import replace

import pytest

from imgsynth.methods.collapse import Posterior, collapse

DEAD = Posterior(
    kl=0.02, active=0, latent_dim=16, spread=0.5, sigma=None, beta=1.0, warmup=0, conditional=False
)


def test_a_posterior_with_an_active_latent_that_says_something_has_not_collapsed():
    assert collapse(replace(DEAD, active=1, kl=0.6)) is None
    assert collapse(replace(DEAD, active=0, kl=0.6)) is not None
    assert "14 of 16 latents" in collapse(replace(DEAD, active=14, kl=0.2))


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (replace(DEAD, spread=0.0, sigma=1.0), "images are all alike"),
        (replace(DEAD, sigma=0.6, beta=9.0), "sigma of 0.6 is larger than the spread"),
        (replace(DEAD, sigma=0.4, beta=9.0), "beta = 9 makes a nat of a latent cost 9"),
        (DEAD, "The KL had its full weight from the first image"),
        (replace(DEAD, warmup=100), "explains the images without latents"),
        (replace(DEAD, warmup=100, conditional=True), "explains the images with the labels"),
    ],
)
def test_the_first_cause_that_holds_is_named(found, cause):
    told = collapse(found)
    assert told.startswith("Posterior collapse: 0 of 16 latents are active (KL 0.02 nats an image)")
    assert cause in told
