"""Names that wrappers and adapters made longer or shorter are matched, and only if there is one way to."""

import pytest

from torch_dropblock.networks.names import renamed


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (["1", "3"], ["1", "3"]),
        (["1", "3"], ["_orig_mod.1", "_orig_mod.3"]),
        (["module.1", "module.3"], ["1", "3"]),
        (["net.1", "net.3"], ["model._orig_mod.1", "model._orig_mod.3"]),
        (["a.bn", "b.bn"], ["base.a.base_layer.bn", "base.b.bn"]),
        (["base.a.base_layer.bn", "base.b.bn"], ["a.bn", "b.bn"]),
        (["a.b", "b"], ["a.base_layer.b.base_layer", "b.base_layer"]),  # the longest name that is inside
        ([""], ["module"]),
    ],
)
def test_one_way_to_match(theirs, mine):
    values = [0.9, 0.6][: len(mine)]
    given = dict(reversed(list(zip(theirs, values, strict=True))))  # a file may have any order
    assert renamed(given, mine) == dict(zip(mine, values, strict=True))


@pytest.mark.parametrize("names", [["0.module", "0"], ["a.b", "b"]])
def test_equal_names_need_no_match(names):
    """Without the parts that wrappers add, the first two are alike."""
    assert renamed({names[0]: 0.6, names[1]: 0.7}, names[::-1]) == {names[0]: 0.6, names[1]: 0.7}


@pytest.mark.parametrize(
    ("theirs", "mine", "message"),
    [
        (["1", "9"], ["1", "3"], "only in the model: '3'; only in the state: '9'"),
        ([""], ["1", "3"], "only in the model: '1', '3'; only in the state: ''"),
        (["1"], ["1", "3"], "only in the model: '3'; only in the state: none"),
        (["a", "b"], ["x.a.b", "x.b.a"], "only in the model: 'x.a.b', 'x.b.a'; only in the state: 'a', 'b'"),
    ],
)
def test_no_way_or_two(theirs, mine, message):
    with pytest.raises(ValueError, match=f"{message}$"):
        renamed(dict.fromkeys(theirs, 0.9), mine)
