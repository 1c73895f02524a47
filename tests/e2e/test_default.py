"""The default over HTTP: what `/status` shows of its streams, and answers without context."""

import pytest

from service.client import Client


def test_images_without_context_are_answered_alone_and_status_shows_it(serve, pictures):
    """The prior of a stream moves only by images that have a say in it; the answer tells which."""
    with serve(method="ttc_stream") as running, Client(running.url) as client:
        for stream, context in (("ordered", True), ("alone", False)):
            for start in range(0, 60, 10):
                answer = client.predict(
                    pictures[start : start + 10], stream=stream, context=context
                )
                assert answer.context == context
        running.at_rest()
        status = client.status()
        streams = status.streams
    assert status.calibrated == "record"
    assert 0.6 < status.record_temperature < 0.75
    for shown in streams.values():
        assert not shown.second_view_off
        assert shown.details.keys() == {
            *("late_layers", "images_before", "conditions", "doubt", "temperature"),
            *("harm", "harm_by_labels", "gain_by_labels", "harm_by_order", "alarms"),  # the guard's
            *("compared_while_adapting", "labelled_of_compared"),
        }
    assert streams["alone"].details["images_before"] == pytest.approx(0.2)
    assert streams["ordered"].details["images_before"] != pytest.approx(0.2)


def test_the_model_info_tells_that_its_statistics_follow_the_stream(serve):
    """As it does of the paper's methods where they are served."""
    with serve(method="ttc_stream") as running:
        assert 'statistics="moving"' in running.http.get("/metrics").text


def test_a_frame_that_comes_again_is_told_in_answer_status_and_metric(serve, pictures):
    """Of the stream that it came in alone, to the Python client too; without a guard it is none."""

    def suspect(client, stream="gate"):
        return client.predict(pictures[:1], stream=stream).predictions[0].suspect

    with serve(method="ttc_stream") as running, Client(running.url) as client:
        assert [suspect(client), suspect(client), suspect(client, "b")] == [None, "frozen", None]
        running.at_rest()
        streams = client.status().streams
        assert (streams["gate"].suspects, streams["gate"].suspect) == ({"frozen": 1}, "frozen")
        assert (streams["b"].suspects, streams["b"].suspect, streams["b"].silent) == (
            {},
            None,
            False,
        )
        text = running.http.get("/metrics").text
        assert 'ttc_suspect_images_total{kind="frozen"} 1.0' in text
    with serve(method="ttc") as running, Client(running.url) as client:
        assert [suspect(client), suspect(client)] == [None, None]
