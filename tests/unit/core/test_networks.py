"""What a `network_configuration` may look like."""

from __future__ import annotations

import pytest

from container_manager.core.errors import InvalidJob
from container_manager.core.networks import is_foreign_namespace, parse_networks
from container_manager.core.spec import NetworkAttachment


def entry(name: object = "net", **more: object) -> dict[str, object]:
    return {"network_name": name, **more}


@pytest.mark.parametrize(
    ("value", "networks"),
    [
        ([], ()),
        ((), ()),
        ([entry()], (NetworkAttachment(network_name="net"),)),
        ([entry(aliases=[])], (NetworkAttachment(network_name="net"),)),
        (
            [entry(aliases=["a", "b.c-d_e"])],
            (NetworkAttachment(network_name="net", aliases=("a", "b.c-d_e")),),
        ),
        (
            [entry("one", aliases=("x",)), entry("two_.-", aliases=["x"])],
            (
                NetworkAttachment(network_name="one", aliases=("x",)),
                NetworkAttachment(network_name="two_.-", aliases=("x",)),
            ),
        ),
        ([entry("bridge")], (NetworkAttachment(network_name="bridge"),)),
        ([entry("none")], (NetworkAttachment(network_name="none"),)),
        ([entry(aliases=["a" * 63])], (NetworkAttachment(network_name="net", aliases=("a" * 63,)),)),
    ],
)
def test_what_is_read(value: object, networks: tuple[NetworkAttachment, ...]) -> None:
    assert parse_networks(value) == networks


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "NoneType"),
        ("net", "it is a str"),
        ({"network_name": "net"}, "it is a dict"),
        (["net"], "entry 0 is a str"),
        ([entry(), 5], "entry 1 is a int"),
        ([{}], "entry 0 has"),
        ([{"aliases": ["a"]}], "network_name"),
        ([entry(None)], "network_name"),
        ([entry("")], "network_name ''"),
        ([entry("-net")], "network_name '-net'"),
        ([entry("a b")], "network_name 'a b'"),
        ([entry("a/../b")], "network_name"),
        ([entry("n" * 129)], "network_name"),
        ([entry("net\n")], "network_name"),
        ([entry(7)], "network_name 7"),
        ([entry(alias=["a"])], "unknown key 'alias'"),
        ([entry(ipv4_address="10.0.0.1")], "unknown key 'ipv4_address'"),
        ([entry(aliases="web")], "aliases that are a str"),
        ([entry(aliases=None)], "aliases that are a NoneType"),
        ([entry(aliases=["web", ""])], "alias ''"),
        ([entry(aliases=[3])], "alias 3"),
        ([entry(aliases=["a b"])], "alias 'a b'"),
        ([entry(aliases=["a" * 64])], "at most 63"),
        ([entry(aliases=["web\n"])], "alias"),
        ([entry(), entry(aliases=["a"])], "'net' is named twice"),
        ([entry("none"), entry()], "'none' means no network"),
        ([entry("bridge", aliases=["a"])], "'bridge' has no aliases"),
        ([entry("none", aliases=["a"])], "'none' has no aliases"),
    ],
)
def test_a_wrong_shape_names_the_entry_and_what_to_write(value: object, says: str) -> None:
    with pytest.raises(InvalidJob, match=says) as caught:
        parse_networks(value)
    assert caught.value.field == "network_configuration"


@pytest.mark.parametrize("name", ["host", "container:web", "container:", "ns:/proc/1/ns/net", "service:web"])
def test_the_network_of_somebody_else_is_known_as_such(name: str) -> None:
    assert is_foreign_namespace(name)


@pytest.mark.parametrize("name", ["net", "bridge", "none", "hosts", "container", "my-host"])
def test_a_network_of_ones_own_is_not(name: str) -> None:
    assert not is_foreign_namespace(name)
