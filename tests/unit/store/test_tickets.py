from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iotjobs.store.queue import Ticket, rank_of
from iotjobs.store.tickets import payload_of, priority_of, ticket_of_row

TICKETS = st.builds(
    Ticket,
    rank=st.builds(rank_of, st.integers(0, 9), st.booleans()),
    turn=st.integers(0, (1 << 26) - 1),
    seq=st.integers(1, 1 << 42),
    job_id=st.uuids().map(lambda number: number.hex),
    attempt=st.integers(0, 1000),
    lane=st.none() | st.uuids().map(lambda number: number.hex),
    queue=st.text(min_size=1, max_size=20).map(lambda name: name.replace("\x00", ":")),
)


@given(TICKETS, st.integers(0, (1 << 20) - 1))
def test_a_ticket_comes_back_out_of_its_row(ticket: Ticket, serial: int) -> None:
    priority = priority_of(ticket)

    assert -(1 << 31) <= priority < 1 << 31
    again = ticket_of_row(ticket.seq << 20 | serial, priority, payload_of(ticket).encode())
    assert (again, again.lane, again.queue) == (ticket, ticket.lane, ticket.queue)


@given(TICKETS, TICKETS)
def test_rows_sort_as_tickets_do(one: Ticket, other: Ticket) -> None:
    rows = sorted([one, other], key=lambda ticket: (-priority_of(ticket), ticket.seq))

    assert [(row.rank, row.turn, row.seq) for row in rows] == [
        (ticket.rank, ticket.turn, ticket.seq) for ticket in sorted([one, other])
    ]


def test_more_turns_than_a_priority_holds_stand_together_at_the_end() -> None:
    last = priority_of(Ticket(0, (1 << 26) - 1, 1, "a"))

    assert priority_of(Ticket(0, 1 << 30, 1, "a")) == last > priority_of(Ticket(1, 0, 1, "a"))
