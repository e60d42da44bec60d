"""How one tensor is represented, and in words."""

import pytest

from fewbits.errors import InputError
from fewbits.planning.scheme import Scheme


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_group_size_goes_with_groups_and_only_with_them(per):
    with pytest.raises(InputError, match="group size"):
        Scheme("int4", per, 32)
    with pytest.raises(InputError, match="group size"):
        Scheme("int4", "group")
    assert Scheme("int4", "group", 32).group_size == 32


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        (Scheme("int8", "channel"), "int8 per channel"),
        (Scheme("uint8"), "uint8 per tensor"),
        (Scheme("int4", "group", 128), "int4 per g128"),
        (Scheme("uint8", dynamic=True), "uint8 dynamic"),
        (Scheme("fp16"), "fp16"),
    ],
)
def test_in_words(scheme, words):
    assert str(scheme) == words
    assert scheme.is_float == (words == "fp16")
