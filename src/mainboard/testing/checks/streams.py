"""Checks of streams and events: which is current, what waits for what, and how long it took."""

from __future__ import annotations

from collections.abc import Iterator

from mainboard.testing.check import check
from mainboard.testing.subject import Subject

__all__: list[str] = []

_HOST = "work on the host is done when it is given"


@check("streams.synchronize", "after synchronize() all work that was given is done")
def synchronize(subject: Subject) -> Iterator[str]:
    """Without a device, for each device, and again with nothing to wait for."""
    import torch

    x = torch.zeros(1 << 21, device=subject.device)
    for _ in range(50):
        x += 1
    subject.ask("synchronize")
    if not subject.on_host and not subject.ask("current_stream").query():
        yield "the current stream still has work after synchronize()"
    for number in range(subject.device_count):
        subject.ask("synchronize", torch.device(subject.device.type, number))
    if x.cpu().min() != 50 or x.cpu().max() != 50:
        yield "fifty additions of one do not make fifty"


@check("streams.current", "stream() makes a stream current and restores the one before", "streams")
def current(subject: Subject) -> Iterator[str]:
    """Two streams are not equal, and a stream knows its device."""
    subject.elsewhere(_HOST)
    before = subject.ask("current_stream")
    one, other = subject.ask("Stream")(), subject.ask("Stream")()
    if one in (other, before):
        yield "a new stream is the current one, or the same as another new one"
    with subject.ask("stream", one):
        if subject.ask("current_stream") != one:
            yield "inside stream(s) the current stream is not s"
    if subject.ask("current_stream") != before:
        yield "after stream(s) the current stream is not the one before"
    if one.device.type != subject.device.type:
        yield f"a stream of {subject.device.type} says that its device is {one.device}"


@check("streams.order", "work waits for the event that it was told to wait for", "streams")
def order(subject: Subject) -> Iterator[str]:
    """One stream fills a buffer slowly; another reads it after the event."""
    import torch

    subject.elsewhere(_HOST)
    size = 1 << 16
    source = torch.zeros(size, device=subject.device)
    target = torch.zeros(size, device=subject.device)
    subject.ask("synchronize")
    producer, consumer = subject.ask("Stream")(), subject.ask("Stream")()
    for number in range(1, 6):
        done = subject.ask("Event")()
        with subject.ask("stream", producer):
            for _ in range(100):
                source += 1
            done.record(producer)
        with subject.ask("stream", consumer):
            consumer.wait_event(done)
            target.copy_(source)
            read = subject.ask("Event")()
            read.record(consumer)
        producer.wait_event(read)
        consumer.synchronize()
        if not consumer.query() or not done.query():
            yield "after synchronize() a stream, or an event before it, is not done"
        values = target.cpu()
        if values.min() != 100 * number or values.max() != 100 * number:
            yield f"the reader got {values.min():.0f} to {values.max():.0f}, not {100 * number}"
            return


@check("streams.time", "two events say how long the work between them took", "events")
def time(subject: Subject) -> Iterator[str]:
    """Never less than nothing, and more for more work."""
    import torch

    subject.elsewhere(_HOST)
    x = torch.zeros(1 << 16, device=subject.device)

    def span(count: int) -> float:
        start, end = (subject.ask("Event")(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            x.add_(1)
        end.record()
        end.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds

    # The least of several: a busy machine makes some of them long.
    nothing, something = (min(span(count) for _ in range(5)) for count in (0, 200))
    if not 0 <= nothing < something:
        yield f"nothing took {nothing} ms, and 200 additions {something} ms"


@check("streams.lifetime", "memory that queued work still uses is not given away")
def lifetime(subject: Subject) -> Iterator[str]:
    """Tensors are let go before the work on them is done."""
    import torch

    total = torch.zeros(1 << 20, device=subject.device)
    for number in range(100):
        total += torch.full((1 << 20,), float(number), device=subject.device)
    values = total.cpu()
    if values.min() != 4950 or values.max() != 4950:
        yield f"the sum of 0 to 99 is {values.min():.0f} to {values.max():.0f}, not 4950"
