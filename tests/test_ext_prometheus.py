"""What a scrape says is what stats() says."""

import subprocess
import sys

import pytest

import sona

prometheus_client = pytest.importorskip("prometheus_client")

from sona.ext.prometheus import Collector  # noqa: E402


def scraped(source, **options) -> dict[str, float]:
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector(source, **options))
    lines = prometheus_client.generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_a_scrape_counts_requests_rewards_and_what_went_wrong(tmp_path):
    with sona.Router(["a", "b"], dim=2, store=tmp_path / "s.db") as router:
        for _ in range(3):
            decision = router.route([1.0, 0.0])
        router.feedback(decision.id, 1.0)
        router.feedback(12345, 1.0)
        router.flush()
        found = scraped(router)
        assert found["sona_requests_total"] == 3
        assert found["sona_learned_total"] == 1
        assert found["sona_unknown_feedback_total"] == 1
        assert found["sona_arms"] == 2
        assert found["sona_store_leading"] == 1
        assert found["sona_store_dropped_total"] == 0
        assert found['sona_guard_weight{model="current"}'] == pytest.approx(router.stats()["guard_weights"]["current"])
        timed = router.stats()["latency"]["route"]
        assert timed["count"] == found["sona_route_seconds_count"] == found['sona_route_seconds_bucket{le="+Inf"}']
        assert found["sona_route_seconds_sum"] == timed["seconds"]
        router.engine.enabled = False
        assert scraped(router)["sona_enabled"] == 0


def test_without_a_store_or_a_guard_there_are_fewer_families():
    with sona.Router(["a", "b"], dim=2, guard=False) as router:
        assert not any(name.startswith("sona_store") for name in scraped(router))
    with sona.SonaEngine(sona.SonaConfig(hidden_dim=4)) as engine:
        assert "sona_requests_total" not in scraped(engine)
        assert scraped(engine)["sona_enabled"] == 1


def test_labels_tell_several_routers_of_a_process_apart():
    with sona.Router(["a", "b"], dim=2) as one:
        assert scraped(one, labels={"router": "faq"})['sona_arms{router="faq"}'] == 2


def test_a_closed_router_yields_nothing_and_breaks_no_scrape():
    router = sona.Router(["a", "b"], dim=2)
    router.close()
    assert scraped(router) == {}


def test_another_source_is_refused():
    with pytest.raises(sona.SonaTypeError, match="expected a Router or a SonaEngine, got str"):
        Collector("router")


def test_without_the_package_the_error_names_the_command():
    hide = "import sys, sona; sys.modules['prometheus_client'] = None"
    script = f"{hide}\ntry:\n    import sona.ext.prometheus\nexcept sona.SonaError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "sona.ext.prometheus needs prometheus-client: pip install 'sona[prometheus]'"
