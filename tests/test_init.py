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


def test_the_table_of_lazy_names_and_the_declared_ones_agree():
    assert {*imgsynth._WHERE, "__version__"} == set(imgsynth.__all__)
    assert set(imgsynth.__all__) <= set(dir(imgsynth))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(imgsynth, "HingGAN")
