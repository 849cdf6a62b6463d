"""The router whose members are listed in its options."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.neighbours import entered

from peili.mirror import ConfigError, Peer, Plugins
from peili.routers.static import StaticRouter

A, B = "http://10.0.0.3:5051", "http://10.0.0.4:5051"


@pytest.mark.parametrize(
    ("entries", "peers"),
    [
        ([], []),
        ([A, B + "/"], [Peer(A, (A,)), Peer(B, (B,))]),
        ([[A, "https://[fd00::3]:5051/peili"]], [Peer(A, (A, "https://[fd00::3]:5051/peili"))]),
        ([{"url": A}], [Peer(A, (A,))]),
        (
            [{"urls": [A, B], "id": "a", "tls_name": "a.example", "labels": {"zone": "z"}}],
            [Peer("a", (A, B), "a.example", {"zone": "z"})],
        ),
    ],
)
@pytest.mark.anyio
async def test_entries_become_peers(entries: list[Any], peers: list[Peer]) -> None:
    async with entered(router := StaticRouter.from_config({"peers": entries})):
        assert router.ready()
        assert list(router.peers()) == peers


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, 'peers: a list of URLs, as in ["http://10.0.0.3:5051"]'),
    ({"peers": A}, f'peers: a list of URLs, as in ["http://10.0.0.3:5051"], not {A!r}'),
    ({"peers": [], "peer": []}, "peer: unknown option; did you mean peers? there are: peers"),
    ({"peers": [A, 7]}, 'peers[1]: a URL such as "http://10.0.0.3:5051", not 7'),
    ({"peers": [[]]}, 'peers[0]: a URL such as "http://10.0.0.3:5051", not []'),
    (
        {"peers": [[A, "10.0.0.4:5051"]]},
        "peers[0][1]: not a base URL: '10.0.0.4:5051'; expected http://HOST:PORT or https://HOST:PORT/PATH",
    ),
    (
        {"peers": [A, {"url": "http://[fe80::1:5051"}]},
        "peers[1].url: not a base URL: 'http://[fe80::1:5051'; expected http://HOST:PORT or https://HOST:PORT/PATH",
    ),
    ({"peers": [{"url": [A]}]}, f"peers[0].url: one URL, not {[A]!r}"),
    ({"peers": [{"urls": A}]}, f"peers[0].urls: a list of URLs, not {A!r}"),
    ({"peers": [{"urls": [3]}]}, 'peers[0].urls[0]: a URL such as "http://10.0.0.3:5051", not 3'),
    ({"peers": [{"id": "a"}]}, 'peers[0]: either url or urls, as in {url = "http://10.0.0.3:5051"}'),
    ({"peers": [{"url": A, "urls": [A]}]}, 'peers[0]: either url or urls, as in {url = "http://10.0.0.3:5051"}'),
    (
        {"peers": [{"url": A, "name": "a"}]},
        "peers[0].name: unknown option; did you mean tls_name? there are: id, labels, tls_name, url, urls",
    ),
    ({"peers": [{"url": A, "id": ""}]}, "peers[0].id: a string that is not empty, not ''"),
    ({"peers": [{"url": A, "tls_name": 1}]}, "peers[0].tls_name: a string that is not empty, not 1"),
    (
        {"peers": [{"url": A, "tls_name": "*.example"}]},
        "peers[0].tls_name: not a name for a certificate: '*.example'; expected a host name or an IP address",
    ),
    ({"peers": [{"url": A, "labels": "z"}]}, "peers[0].labels: a table of strings, as in {zone = \"a\"}, not 'z'"),
    ({"peers": [{"url": A, "labels": {"zone": 1}}]}, "peers[0].labels.zone: a string that is not empty, not 1"),
    ({"peers": [A, B, A + "/"]}, f"peers[2]: a peer with another id; {A!r} is the id of peers[0]"),
]


@pytest.mark.parametrize(("config", "line"), WRONG)
def test_the_error_for_a_wrong_option_is_one_line(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        StaticRouter.from_config(config)
    assert str(raised.value) == line


def test_the_router_is_found_by_name() -> None:
    assert isinstance(Plugins().router("static", {"peers": [A]}), StaticRouter)
