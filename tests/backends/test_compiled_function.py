"""A function in C says what it lacks, in words for users."""

import pytest

from stillhouse.backends.compiled_function import CompiledFunction
from stillhouse.errors import RuntimeMissing

FUNCTION = CompiledFunction("int8_attention", "attention in int8", ("avx512f", "avx512_vnni"), "open it otherwise")


def test_what_is_missing_is_named() -> None:
    reason = FUNCTION.missing_reason(("avx2",))
    assert reason == "attention in int8 needs avx512f and avx512_vnni, which this processor lacks"
    assert "avx512f" not in FUNCTION.missing_reason(("avx512f",))


def test_without_a_compiler_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.backends.compiled_function.find_spec", lambda name: None)
    assert "install a C compiler" in FUNCTION.missing_reason(FUNCTION.instructions)


def test_a_missing_function_is_refused_with_the_way_out() -> None:
    impossible = CompiledFunction("int8_attention", "attention in int8", ("no_such_extension",), "open it otherwise")
    with pytest.raises(RuntimeMissing, match="needs no_such_extension") as caught:
        impossible.load()
    assert "open it otherwise" in str(caught.value)
