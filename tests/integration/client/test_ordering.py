"""MessageOrder: each message once and in order, every loss counted, with replay."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from streamseg.client.message_order import MessageOrder


def add_live(order, *seqs, room=True):
    return [item for seq in seqs for item in order.add_live(seq, seq, has_room=room)]


def add_replayed(order, *seqs):
    return [item for seq in seqs for item in order.add_replayed(seq, seq)]


def test_messages_in_order_are_returned_at_once() -> None:
    order = MessageOrder()
    assert add_live(order, 7, 8, 9) == [7, 8, 9]
    assert (order.lost, order.has_gap) == (0, False)


def test_later_messages_wait_for_missing_ones() -> None:
    order = MessageOrder()
    assert add_live(order, 0, 3, 4) == [0]
    assert order.has_gap
    assert order.start_request() == 0
    assert add_replayed(order, 1) == [1]
    assert add_replayed(order, 2) == [2, 3, 4]
    assert add_replayed(order, 3, 4) == []
    assert (order.lost, order.buffered, order.has_gap) == (0, 0, False)


def test_empty_answer_counts_the_gap_as_lost() -> None:
    order = MessageOrder()
    add_live(order, 0, 5, 6)
    order.start_request()
    assert order.end_request() == [5, 6]
    assert order.lost == 4


def test_messages_before_the_first_replayed_one_are_lost() -> None:
    order = MessageOrder()
    add_live(order, 0, 5)
    order.start_request()
    assert add_replayed(order, 3, 4, 5) == [3, 4, 5]
    assert order.end_request() == []
    assert (order.lost, order.has_gap) == (2, False)


def test_buffered_and_replayed_message_is_returned_once() -> None:
    order = MessageOrder()
    add_live(order, 0, 2, 3)
    order.start_request()
    assert add_replayed(order, 2, 3) == [2, 3]
    assert (order.lost, order.last) == (1, 3)


def test_gap_known_from_a_status_is_requested() -> None:
    order = MessageOrder()
    order.note_published(9)
    assert not order.has_gap  # published before the first received message
    add_live(order, 10)
    order.note_published(12)
    assert order.has_gap
    assert order.start_request() == 10
    assert add_replayed(order, 11) == [11]
    assert order.has_gap
    order.start_request()
    assert order.end_request() == []
    assert (order.lost, order.has_gap) == (1, False)


def test_message_without_room_is_requested() -> None:
    order = MessageOrder()
    add_live(order, 0, 2)
    add_live(order, 3, 4, room=False)
    assert add_replayed(order, 1) == [1, 2]
    assert order.start_request() == 2
    assert add_replayed(order, 3, 4) == [3, 4]
    assert order.lost == 0


def test_message_published_after_the_request_is_not_lost() -> None:
    order = MessageOrder()
    add_live(order, 0)
    order.note_published(1)
    order.start_request()
    add_live(order, 2, room=False)
    add_live(order, 3)
    assert order.end_request() == []
    assert (order.lost, order.start_request()) == (1, 1)
    assert add_replayed(order, 2) == [2, 3]


def test_give_up_and_restart_return_buffered_messages() -> None:
    order = MessageOrder()
    add_live(order, 0, 2, 5)
    assert order.give_up() == [2, 5]
    assert order.lost == 3
    add_live(order, 7)
    assert order.restart() == [7]
    assert order.lost == 4
    assert add_live(order, 0, 1) == [0, 1]
    assert order.lost == 4


@dataclass
class Simulation:
    """Simulation of a publisher, a lossy and repeating network, a history and a MessageOrder."""

    first: int
    next_seq: int = field(init=False)
    oldest: int = field(init=False)
    order: MessageOrder[int] = field(default_factory=MessageOrder)
    returned: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.next_seq = self.oldest = self.first

    def publish(self, is_received: bool, is_repeated: bool, has_room: bool) -> None:
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        for _ in range((1 + is_repeated) * is_received):
            self.returned += self.order.add_live(seq, seq, has_room=has_room)

    def publish_status(self) -> None:
        self.order.note_published(self.next_seq - 1)

    def forget(self, count: int) -> None:
        """Remove all but the latest ``count`` messages from the history."""
        self.oldest = min(self.next_seq, max(self.oldest, self.next_seq - count))

    def replay(self, max_count: int, publish_during_replay: bool) -> None:
        if not self.order.has_gap:
            return
        since = self.order.start_request()
        answer = range(max(since + 1, self.oldest), self.next_seq)[:max_count]
        if publish_during_replay:
            self.publish(True, False, False)
        for seq in answer:
            self.returned += self.order.add_replayed(seq, seq)
        self.returned += self.order.end_request()


steps = st.one_of(
    st.tuples(st.just("publish"), st.booleans(), st.booleans(), st.booleans()),
    st.tuples(st.just("publish_status")),
    st.tuples(st.just("forget"), st.integers(0, 10)),
    st.tuples(st.just("replay"), st.integers(1, 6), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.lists(steps, max_size=80))
def test_every_message_is_returned_once_in_order_or_counted_as_lost(first, script) -> None:
    simulation = Simulation(first)
    has_forgotten = False
    for name, *arguments in script:
        getattr(simulation, name)(*arguments)
        has_forgotten |= name == "forget"
        order, returned = simulation.order, simulation.returned
        assert returned == sorted(set(returned)), "repeated or out of order"
        if returned:
            assert order.lost == order.last - returned[0] + 1 - len(returned)
        assert has_forgotten or order.lost == 0
    simulation.publish_status()
    rounds = 0
    while simulation.order.has_gap:
        simulation.replay(3, False)
        rounds += 1
        assert rounds < 200, "requests without end"
    if simulation.returned:
        assert simulation.order.buffered == 0
        assert simulation.order.last == simulation.next_seq - 1
        if not has_forgotten:
            assert simulation.returned == list(range(simulation.returned[0], simulation.next_seq))
