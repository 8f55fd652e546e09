"""Whatever is lost, late, sent twice or given again: each message once, in order, every loss
counted."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from streamseg.client.message_order import Order


def live(order, *seqs, room=True):
    return [item for seq in seqs for item in order.live(seq, seq, room=room)]


def again(order, *seqs):
    return [item for seq in seqs for item in order.again(seq, seq)]


def test_what_comes_in_order_is_given_at_once() -> None:
    order = Order()
    assert live(order, 7, 8, 9) == [7, 8, 9]
    assert (order.lost, order.is_missing_some) == (0, False)


def test_what_is_newer_waits_for_what_is_missing() -> None:
    order = Order()
    assert live(order, 0, 3, 4) == [0]
    assert order.is_missing_some
    assert order.ask() == 0
    assert again(order, 1) == [1]
    assert again(order, 2) == [2, 3, 4]
    assert again(order, 3, 4) == []
    assert (order.lost, order.held, order.is_missing_some) == (0, 0, False)


def test_what_nobody_has_any_more_is_lost() -> None:
    order = Order()
    live(order, 0, 5, 6)
    order.ask()
    assert order.answered() == [5, 6]
    assert order.lost == 4


def test_an_answer_that_begins_later_than_asked_for_says_what_is_lost() -> None:
    order = Order()
    live(order, 0, 5)
    order.ask()
    assert again(order, 3, 4, 5) == [3, 4, 5]
    assert order.answered() == []
    assert (order.lost, order.is_missing_some) == (2, False)


def test_what_is_held_and_given_again_is_given_once() -> None:
    order = Order()
    live(order, 0, 2, 3)
    order.ask()
    assert again(order, 2, 3) == [2, 3]
    assert (order.lost, order.last) == (1, 3)


def test_what_is_known_from_a_status_alone_is_missing_too() -> None:
    order = Order()
    order.told(9)
    assert not order.is_missing_some  # it was before our time
    live(order, 10)
    order.told(12)
    assert order.is_missing_some
    assert order.ask() == 10
    assert again(order, 11) == [11]
    assert order.is_missing_some
    order.ask()
    assert order.answered() == []
    assert (order.lost, order.is_missing_some) == (1, False)


def test_what_there_was_no_room_for_is_asked_for() -> None:
    order = Order()
    live(order, 0, 2)
    live(order, 3, 4, room=False)
    assert again(order, 1) == [1, 2]
    assert order.ask() == 2
    assert again(order, 3, 4) == [3, 4]
    assert order.lost == 0


def test_what_came_after_the_question_is_not_lost_by_its_answer() -> None:
    order = Order()
    live(order, 0)
    order.told(1)
    order.ask()
    live(order, 2, room=False)
    live(order, 3)
    assert order.answered() == []
    assert (order.lost, order.ask()) == (1, 1)
    assert again(order, 2) == [2, 3]


def test_giving_up_and_a_restart_give_what_is_held() -> None:
    order = Order()
    live(order, 0, 2, 5)
    assert order.give_up() == [2, 5]
    assert order.lost == 3
    live(order, 7)
    assert order.restart() == [7]
    assert order.lost == 4
    assert live(order, 0, 1) == [0, 1]
    assert order.lost == 4


@dataclass
class World:
    """A publisher, a network that loses and repeats, a history, and a subscriber's order."""

    first: int
    next_seq: int = field(init=False)
    oldest: int = field(init=False)
    order: Order[int] = field(default_factory=Order)
    given: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.next_seq = self.oldest = self.first

    def publish(self, arrives: bool, twice: bool, room: bool) -> None:
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        for _ in range((1 + twice) * arrives):
            self.given += self.order.live(seq, seq, room=room)

    def say_status(self) -> None:
        self.order.told(self.next_seq - 1)

    def forget(self, count: int) -> None:
        """The history lets go of its oldest."""
        self.oldest = min(self.next_seq, max(self.oldest, self.next_seq - count))

    def replay(self, most: int, publish_meanwhile: bool) -> None:
        if not self.order.is_missing_some:
            return
        since = self.order.ask()
        answer = range(max(since + 1, self.oldest), self.next_seq)[:most]
        if publish_meanwhile:
            self.publish(True, False, False)
        for seq in answer:
            self.given += self.order.again(seq, seq)
        self.given += self.order.answered()


steps = st.one_of(
    st.tuples(st.just("publish"), st.booleans(), st.booleans(), st.booleans()),
    st.tuples(st.just("say_status")),
    st.tuples(st.just("forget"), st.integers(0, 10)),
    st.tuples(st.just("replay"), st.integers(1, 6), st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 3), st.lists(steps, max_size=80))
def test_each_is_given_once_in_order_and_what_is_not_is_counted(first, script) -> None:
    world = World(first)
    forgot = False
    for name, *arguments in script:
        getattr(world, name)(*arguments)
        forgot |= name == "forget"
        order, given = world.order, world.given
        assert given == sorted(set(given)), "twice, or out of order"
        if given:
            assert order.lost == order.last - given[0] + 1 - len(given)
        assert forgot or order.lost == 0
    world.say_status()
    rounds = 0
    while world.order.is_missing_some:
        world.replay(3, False)
        rounds += 1
        assert rounds < 200, "asks for ever"
    if world.given:
        assert world.order.held == 0
        assert world.order.last == world.next_seq - 1
        if not forgot:
            assert world.given == list(range(world.given[0], world.next_seq))
