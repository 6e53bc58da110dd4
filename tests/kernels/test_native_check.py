"""Compiled code is compared with the operations before it runs."""

from featherweight.kernels import native


def test_code_with_other_bits_is_found_out(monkeypatch):
    from featherweight.kernels import native_check

    loaded, _ = native.library()
    assert native_check.differing_result(loaded) == ""
    right = native.Write
    monkeypatch.setattr(native, "Write", lambda weight, alpha, beta, keys: right(weight, alpha, beta - 1e-6, keys))
    assert native_check.differing_result(loaded) == "weight"
