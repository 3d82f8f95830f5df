import subprocess
import sys

import imgsynth


def test_importing_the_package_loads_neither_torch_nor_lightning():
    code = (
        "import sys, imgsynth; "
        "print(sorted({'torch', 'lightning', 'numpy', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_found_and_is_called_so():
    for name in set(imgsynth.__all__) - {"__version__"}:
        assert getattr(imgsynth, name).__name__ == name


def test_submodules_are_found_when_they_are_used():
    assert imgsynth.optim.Adam.__module__ == "imgsynth.optim"


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(imgsynth, "HingGAN")
