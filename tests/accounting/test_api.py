"""The package imports alone and cheaply."""

import subprocess
import sys

import accounting


def test_public_names_are_sorted_and_all_exist():
    assert accounting.__all__ == sorted(accounting.__all__)
    for name in accounting.__all__:
        assert getattr(accounting, name) is not None
    assert set(accounting.__all__) <= set(dir(accounting))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(accounting, "moments_accountant")


def test_import_and_an_answer_need_neither_torch_nor_prv_accountant():
    code = (
        "import sys, accounting; assert 'scipy' not in sys.modules; "
        "accounting.make_accountant('prv', 'add-remove')"
        ".quote(accounting.PoissonGaussian(0.1, 1.0), 3, 1e-5); "
        "assert not {'torch', 'prv_accountant', 'dpclip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
