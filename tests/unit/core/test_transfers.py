"""What a store sent, request by request, on the clock of a trial."""

from __future__ import annotations

import pytest

from labkit.core import record_schema, timeline, transfers
from labkit.core.control_call import call, call_json
from labkit.net import server as servers
from labkit.net.server import HTTPServer
from labkit.objects.publish import publish_model
from labkit.objects.store import Store

DIGEST = "0123456789abcdef" * 4
SIZES = {f"{DIGEST}-{i}": 1000 * i for i in range(1, 7)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An embedded store with objects of 1 to 6 kB, named by digests."""
    folder = tmp_path_factory.mktemp("model")
    for name, size_bytes in SIZES.items():
        (folder / name).write_bytes(bytes(size_bytes))
    with HTTPServer(Store(tmp_path_factory.mktemp("store"))) as server:
        publish_model(server.app.disk.root, folder, "models/m")
        yield server


def all_counted(server, requests):
    """A client has its last byte before the server has counted it."""
    until_s = timeline.now_s() + 10
    while server.counters.requests < requests and timeline.now_s() < until_s:
        pass


@pytest.fixture
def t0_s(store):
    """A moment after which every object has been read once."""
    began_s, counted = timeline.now_s(), store.counters.requests
    for name in SIZES:
        assert call(f"{store.url}/lab/models/m/{name}")[0] == 200
    all_counted(store, counted + len(SIZES))
    return began_s


def of_trial(store, t0_s, fragment="", requests=0):
    return transfers.of_trial({"bucket": f"{store.url}/_labkit/stats{fragment}"}, t0_s, requests)


def test_each_request_of_a_trial_has_its_moments_and_its_bytes(store, t0_s):
    kept, now_s = of_trial(store, t0_s), timeline.now_s() - t0_s
    found = transfers.read({"transfers": kept})
    assert sorted(t.size_bytes for t in found) == sorted(SIZES.values())
    assert all(0 <= t.start_s <= t.end_s <= now_s for t in found)
    assert [t.start_s for t in found] == sorted(t.start_s for t in found)


def test_what_was_sent_before_t0_is_no_transfer_of_the_trial(store, t0_s):
    assert of_trial(store, timeline.now_s()) == {}


def test_a_path_keeps_the_beginning_of_its_digests(store, t0_s):
    paths = {t.path for t in transfers.read({"transfers": of_trial(store, t0_s)})}
    assert paths == {f"/lab/models/m/{DIGEST[:12]}-{i}" for i in range(1, 7)}


def test_registry_and_bucket_on_one_server_are_told_apart_by_their_paths(store, t0_s):
    assert of_trial(store, t0_s, "#/v2/") == {}
    assert len(of_trial(store, t0_s, "#!/v2/")["rows"]) == len(SIZES)


def test_the_largest_are_kept_and_the_others_counted(store, t0_s, monkeypatch):
    monkeypatch.setattr(transfers, "MOST", 2)
    kept = of_trial(store, t0_s, requests=len(SIZES))
    assert sorted(row[3] for row in kept["rows"]) == [5000, 6000]
    assert kept["left_out"] == len(SIZES) - 2


def test_a_server_keeps_the_newest_and_forgets_them_when_it_is_reset(monkeypatch):
    monkeypatch.setattr(servers, "TRANSFERS_KEPT", 3)
    with HTTPServer(lambda request: servers.text(200, request.path)) as server:
        for i in range(5):
            call(f"{server.url}/{i}")
        all_counted(server, 5)
        listed = call_json(f"{server.url}/_labkit/transfers")
        assert [t[0] for t in listed] == ["/2", "/3", "/4"]
        server.counters.clear()
        assert call_json(f"{server.url}/_labkit/transfers") == []


@pytest.mark.parametrize("since, status", [("nonsense", 400), ("nan", 200), ("1e400", 200)])
def test_a_moment_that_is_none_is_refused_or_finds_nothing(store, t0_s, since, status):
    got, body = call(f"{store.url}/_labkit/transfers?since_s={since}")
    assert got == status and (status == 400 or body == b"[]")


def test_a_store_outside_of_the_lab_has_no_transfers():
    assert transfers.of_trial({"bucket": "interfaces"}, 0.0, 0) == {}
    assert transfers.of_trial({"bucket": "http://127.0.0.1:1/_labkit/stats"}, 0.0, 5) == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"rows": [[1, 0.0, 1.0, 5]]},
        {"rows": [[0, 0.0, 1.0]]},
        {"rows": [[0, "0", 1.0, 5]]},
        {"rows": [[0, 0.0, 1.0, -5]]},
        {"paths": [["registry"]]},
        {"left_out": -1},
    ],
)
def test_a_record_with_damaged_transfers_is_refused(damage):
    sound = {"paths": [["registry", "/v2/"]], "rows": [[0, 0.0, 1.0, 5]], "left_out": 0}
    trial = {"arm": "a", "block": 0, "order": 0, "outcome": "crashed"}
    run = {"id": "r", "created": "", "trials": [trial]}
    trial["facts"] = {"transfers": sound}
    record_schema.RUN(run, "")
    trial["facts"] = {"transfers": {**sound, **damage}}
    with pytest.raises(record_schema.InvalidField, match="transfers"):
        record_schema.RUN(run, "")
