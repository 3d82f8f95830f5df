"""The contract as checks, for our own classes and for yours.

``check_method(lambda: MyGAN(...))`` trains a few updates on the CPU and raises
:class:`ContractError` with a sentence that says what is wrong. Put it into a test.
"""

from imgsynth.testing.contract import ContractError
from imgsynth.testing.data import check_datamodule
from imgsynth.testing.methods import check_method
from imgsynth.testing.networks import check_network

__all__ = ["ContractError", "check_datamodule", "check_method", "check_network"]
