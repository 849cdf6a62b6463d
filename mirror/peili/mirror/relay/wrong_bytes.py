"""What a transfer does if its bytes do not have the digest.

A wrong byte may be in the end that was withheld. So the end is fetched again from others first. Then the senders are
blamed, and what the runtime has is discarded.
"""

from __future__ import annotations

from peili.mirror.errors import Aborted, FailureReason, NotFound
from peili.mirror.oci.ranges import Span
from peili.mirror.relay.blame import IN_FLIGHT
from peili.mirror.relay.buffers import Reservation
from peili.mirror.relay.holders import Holders
from peili.mirror.relay.ingest import discard_ingest
from peili.mirror.relay.pipeline import CollectPipeline
from peili.mirror.relay.reception import Reception
from peili.mirror.relay.senders import Senders, blame_senders
from peili.mirror.relay.state import RelayState, TransferRequest
from peili.mirror.relay.verify import DigestMismatch, Verifier


class WrongBytes:
    """Handles wrong bytes of one transfer.

    Args:
        request: What is transferred.
        state: The state that all transfers share.
        holders: Opens the sources.
        reception: Knows who sent the bytes.
        memory: The memory of the transfer.

    Attributes:
        were_sent: Whether the runtime got wrong bytes. The store was asked to discard them.
    """

    def __init__(
        self,
        request: TransferRequest,
        state: RelayState,
        holders: Holders,
        reception: Reception,
        memory: Reservation,
    ) -> None:
        self.were_sent = False
        self._request = request
        self._state = state
        self._holders = holders
        self._reception = reception
        self._memory = memory

    async def fetch_end_again(self, error: DigestMismatch, verifier: Verifier, span: Span) -> bytes:
        """Fetch the withheld end again, from holders that sent none of it: the wrong byte may be in the end.

        Args:
            error: Raised if the end of other holders is wrong, too.
            verifier: Withholds the end.
            span: What is transferred.

        Returns:
            The end, with which the digest is right.

        Raises:
            DigestMismatch: Bytes before the end are wrong, or no other holder remains.
        """
        self._reception.discard()
        holders, rejections = self._holders, self._holders.rejections
        self._reception.trace_wrong_byte()
        wrong = bytes(verifier.rewind())
        start = span.stop - len(wrong)
        senders, senders_of_end = self._reception.unverified, self._reception.unverified.since(start)
        rejections.exclude(senders_of_end - {IN_FLIGHT})
        holders.reads_in_flight, holders.lease.end_reason = False, FailureReason.WRONG
        try:
            while wrong:
                self._reception.unverified = Senders(self._request.digest, self._state, rejections)
                await self._memory.reserve(len(wrong))
                pipeline = CollectPipeline(len(wrong), verifier, self._state.hash_threads.thread())
                try:
                    await self._reception.run(pipeline, await holders.resume(start, span), span)
                except DigestMismatch:
                    rejections.exclude(self._reception.unverified.since(start))
                    if verifier.rewind() == wrong:
                        break  # two holders agree about the end, so a byte before it is wrong
                else:
                    is_certain = len(senders_of_end) == 1
                    blame_senders(senders_of_end, rejections, is_certain=is_certain, size=span.size)
                    return pipeline.data
        except (NotFound, Aborted):
            pass  # there is no other holder, or no memory
        finally:
            self._reception.unverified = senders
        # Not the holders that sent the end again: the wrong byte may be before it.
        senders.blame(is_continuation=span.start > 0)
        raise error

    async def handle_unsent(self, span: Span) -> None:
        """Blame the senders. None of the bytes of `span` was sent to the runtime."""
        self._reception.trace_wrong_byte()  # first: hosts that are cut off now ask for its record
        self._reception.discard()
        await self._holders.disconnect()
        self._reception.unverified.blame(is_continuation=span.start > 0)
        self._reception.unverified.clear()

    async def handle_sent(self, span: Span) -> None:
        """Discard what the runtime has, because wrong bytes may be in it. `fetch_end_again` has blamed the senders."""
        state, digest = self._state, self._request.digest
        self._reception.discard()
        await self._holders.disconnect()
        self._reception.unverified.clear()
        self.were_sent = True
        state.blame.poison(digest)
        if await discard_ingest(state, digest):
            state.blame.fetch_in_vain(digest, span.size)
